"""Who can reach the collector, with what, and what they learn: addresses, tokens, certificates, host names, secrets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import trustme
from lake_search import found_in
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector import server_grpc, server_http
from otel_lightning.collector.server_http import is_private_name

FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def body(number: int = 1) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n")
    return request.SerializeToString()


def raw(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


@pytest.mark.row(60)
def test_it_listens_on_this_machine_only_by_a_literal_address(collector: Any) -> None:
    table = Path(f"/proc/{collector.popen.pid}/net/tcp")
    if not table.exists():
        pytest.skip("needs /proc: run on Linux")
    mine = {os.readlink(link) for link in Path(f"/proc/{collector.popen.pid}/fd").iterdir() if link.is_symlink()}
    listening: dict[str, str] = {}
    for name in ("tcp", "tcp6"):
        for line in (table.parent / name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                address, _, port = fields[1].partition(":")
                listening[str(int(port, 16))] = address
    ports = {line.rpartition(":")[2] for line in (collector.url, collector.line("listening grpc"))}
    assert listening.keys() == ports
    # 127.0.0.1 in the kernel's byte order; gRPC has it as an IPv6 address that stands for the same.
    assert set(listening.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.row(62)
def test_a_wrong_token_is_refused_before_the_body_is_read_and_compared_in_constant_time(
    start: Any, tmp_path: Path
) -> None:
    collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, LIGHTNING_COLLECT_TOKEN="sesame")
    head = (
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
        "Content-Length: 50000000\r\nAuthorization: {}\r\n\r\n"
    )
    for given in ("Bearer sesam", "Bearer sesame2", "sesame", "Basic c2VzYW1l", ""):
        with raw(collector.url) as connection:
            connection.sendall(head.format(given).encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    for module in (server_http, server_grpc):
        source = Path(str(module.__file__)).read_text()
        assert "hmac.compare_digest(" in source and "_token ==" not in source and "== self._token" not in source


class Pki:
    """A certificate authority of the test, and files signed by it."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.folder = trustme.CA(), folder
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(
        self, name: str, *hosts: str, expired: bool = False, authority: trustme.CA | None = None
    ) -> tuple[Path, Path]:
        options: dict[str, Any] = {}
        if expired:
            options = {
                "not_before": datetime.now(UTC) - timedelta(days=9),
                "not_after": datetime.now(UTC) - timedelta(days=1),
            }
        made = (authority or self.authority).issue_cert(*hosts, **options)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        return certificate, key


@pytest.mark.row(63)
def test_tls_and_client_certificates_let_in_who_has_them_and_nobody_else(start: Any, post: Any, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    certificate, key = pki.issue("server", "127.0.0.1")
    client, client_key = pki.issue("client", "agent")
    stranger, stranger_key = pki.issue("stranger", "agent", authority=trustme.CA())
    late, late_key = pki.issue("late", "agent", expired=True)
    config = tmp_path / "collect.yaml"
    config.write_text(f"tls_certificate: {certificate}\ntls_key: {key}\ntls_client_ca: {pki.ca}\n")
    collector = start("lightning-collect", "--config", str(config), "--lake", str(tmp_path / "lake"), *FREE)

    def sent(certificate: Path | None, key: Path | None, **changes: Any) -> int:
        context = ssl.create_default_context(cafile=str(pki.ca))
        for name, value in changes.items():
            setattr(context, name, value)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        request = urllib.request.Request(
            f"{collector.url}/v1/traces", body(), {"Content-Type": "application/x-protobuf"}
        )
        with urllib.request.urlopen(request, context=context, timeout=20) as response:
            return response.status

    assert sent(client, client_key) == 200
    for wrong in ((None, None), (stranger, stranger_key), (late, late_key)):
        with pytest.raises(OSError):
            sent(*wrong)
    with pytest.raises(OSError):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with raw(collector.url) as plain, old.wrap_socket(plain) as connection:
            connection.sendall(b"x")
    with raw(collector.url) as plain:  # plain HTTP on a TLS port ends, without an answer that could be mistaken for one
        plain.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(100).startswith(b"HTTP/1.1 2")
    address = collector.line("listening grpc").split("//")[-1]
    root = pki.ca.read_bytes()
    with grpc.secure_channel(
        address, grpc.ssl_channel_credentials(root, client_key.read_bytes(), client.read_bytes())
    ) as channel:
        assert channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body(2)) == b""
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root)) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body(3), timeout=5)
    assert sent(client, client_key) == 200
    assert collector.stop() == 0
    assert "stored 3 spans" in collector.lines[-1]


@pytest.mark.row(63)
def test_a_client_believes_only_a_certificate_that_is_ours_and_in_date(start: Any, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    for name, hosts, expired in (("wronghost", ("collector.example",), False), ("expired", ("127.0.0.1",), True)):
        certificate, key = pki.issue(name, *hosts, expired=expired)
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"tls_certificate: {certificate}\ntls_key: {key}\n")
        collector = start("lightning-collect", "--config", str(config), "--lake", str(tmp_path / name), *FREE)
        context = ssl.create_default_context(cafile=str(pki.ca))
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{collector.url}/healthz", context=context, timeout=20)
        assert collector.stop() == 0


@pytest.mark.row(64)
def test_a_page_in_a_browser_cannot_send_nor_read(collector: Any, post: Any) -> None:
    for path in ("/v1/traces", "/flush", "/metrics", "/healthz"):
        method = "GET" if path in ("/metrics", "/healthz") else "POST"
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example:4318"},
            {"Host": "rebind.evil.example"},
        ):
            answer = post(collector.url, path, body(), method=method, **headers)
            assert answer.status == 403, (path, headers)
            assert not any(name.lower().startswith("access-control") for name in answer.headers)
    preflight = post(
        collector.url,
        "/v1/traces",
        None,
        None,
        method="OPTIONS",
        Origin="http://evil.example",
        Access_Control_Request_Method="POST",
    )
    assert preflight.status == 403
    for host in ("localhost:4318", "127.0.0.1:4318", "[::1]:4318", "collector:4318", "lake.internal"):
        assert post(collector.url, "/v1/traces", body(), Host=host).status == 200, host


@pytest.mark.row(64)
@pytest.mark.parametrize(
    ("host", "private"),
    [
        (b"localhost", True), (b"app.localhost:80", True), (b"127.0.0.1", True), (b"10.1.2.3:4318", True), (b"[fe80::1]:1", True), (b"collect", True),
        (b"collect.ns.svc.cluster.local:4318", True), (b"", True), (b"otel.example.com", True), (b"evil.com", False), (b"127.0.0.1.evil.com", False),
        (b"localhost.evil.com", False), (b"evil.local", False), (b"evil.com.", False), (b"OTEL.example.com.", True),
    ],
)  # fmt: skip
def test_host_names_that_no_stranger_can_point_at_this_machine(host: bytes, private: bool) -> None:
    assert is_private_name(host, frozenset({"otel.example.com"})) is private


@pytest.mark.row(66)
def test_secrets_of_the_configuration_are_in_nothing_that_is_printed_or_stored(
    start: Any, post: Any, script: Any, tmp_path: Path
) -> None:
    secrets = {name: f"{name}-0f3c7d" for name in ("token", "hashkey0123456789", "header", "sent")}
    lake, headers, config = tmp_path / "lake", tmp_path / "headers", tmp_path / "collect.yaml"
    headers.write_text(f"authorization: Bearer {secrets['header']}\n")
    config.write_text(
        f"lake: {lake}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 0.05\nredact: {{hash: [user.id]}}\n"
        f"forward: [{{endpoint: 'http://127.0.0.1:9', headers_file: {headers}}}]\n"
    )
    environment = {
        "LIGHTNING_COLLECT_TOKEN": secrets["token"],
        "LIGHTNING_COLLECT_HASH_KEY": secrets["hashkey0123456789"],
    }
    collector = start("lightning-collect", "--config", str(config), **environment)
    allowed = {"Authorization": f"Bearer {secrets['token']}", "Cookie": secrets["sent"], "X_Api_Key": secrets["sent"]}
    assert post(collector.url, "/v1/traces", body(), **allowed).status == 200
    answers = [
        post(collector.url, "/v1/traces", body()[:-1], **allowed),
        post(collector.url, "/v1/traces", body(), Authorization=f"Bearer {secrets['token']}x"),
        post(collector.url, "/metrics", None, None, method="GET", **allowed),
        post(collector.url, "/flush", **allowed),
    ]
    assert [answer.status for answer in answers] == [400, 401, 200, 200]
    assert collector.stop() == 0
    second = script("lightning-collect", "--config", str(config), "--http", "0.0.0.0:0", **environment)
    assert second.returncode == 2
    config.write_text(config.read_text() + "unknown: 1\n")
    third = script("lightning-collect", "--config", str(config), **environment)
    assert third.returncode == 1
    printed = "\n".join([*collector.lines, second.stderr, third.stderr, *(str(answer.body) for answer in answers)])
    for name, secret in secrets.items():
        assert secret not in printed, name
        assert found_in(lake, [secret.encode()]) == set(), name


@pytest.mark.row(68)
def test_nothing_is_left_in_the_temporary_folder_and_no_memory_is_dumped(start: Any, post: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, TMPDIR=str(temporary))
    for number in range(5):
        post(collector.url, "/v1/traces", body(number + 1))
    post(collector.url, "/flush")
    limits = Path(f"/proc/{collector.popen.pid}/limits")
    if limits.exists():
        (line,) = [line for line in limits.read_text().splitlines() if line.startswith("Max core file size")]
        assert line.split()[4] == "0"
    assert list(temporary.iterdir()) == []
    assert collector.stop() == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.row(46)
def test_files_stay_for_the_log_however_many_connect(tmp_path: Path) -> None:
    wrapper = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); os.execv(sys.argv[1], sys.argv[1:])"
    command = Path(sys.executable).parent / "lightning-collect"
    arguments = [sys.executable, "-c", wrapper, str(command), "--lake", str(tmp_path / "lake"), *FREE]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "open files" in done.stderr and "max_connections" in done.stderr


@pytest.mark.row(47)
def test_it_does_not_start_on_a_protobuf_without_guards(script: Any, tmp_path: Path) -> None:
    done = script(
        "lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"
    )
    assert done.returncode == 1 and "python implementation" in done.stderr.splitlines()[-1]
