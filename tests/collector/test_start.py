"""Starting: one plain line for every mistake, private files, loopback unless protected, and a lake of one owner."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def body(number: int = 1, size: int = 10) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n" * size)
    return request.SerializeToString()


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lightning-collect: ")
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.row(10)
def test_a_second_collector_on_the_same_lake_is_refused(collector: Any, script: Any, tmp_path: Path) -> None:
    done = script("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE)
    assert_one_line(done, "another lightning-collect already serves", "--lake")


@pytest.mark.parametrize("which", ["--http", "--grpc"])
def test_a_busy_port_is_named(script: Any, tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = [*FREE]
        arguments[arguments.index(which) + 1] = f"127.0.0.1:{port}"
        done = script("lightning-collect", "--lake", str(tmp_path / "lake"), *arguments)
    assert_one_line(done, f"port {port}", "busy")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rol_s: 3\n", ("unknown key 'rol_s'", "did you mean 'roll_s'?")),
        ("roll_s: soon\n", ("'roll_s'", "soon")),
        ("tls_key: k.pem\n", ("tls_certificate",)),
        ("- a\n", ("must hold keys and values",)),
        ("token: abc\n", ("unknown key 'token'",)),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(
    script: Any, tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    config = tmp_path / "collect.yaml"
    config.write_text(text)
    assert_one_line(script("lightning-collect", "--config", str(config)), "collect.yaml", *parts)


def test_other_mistakes_are_one_line(script: Any, tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    assert_one_line(script("lightning-collect", "--config", str(tmp_path / "none.yaml")), "none.yaml", "cannot be read")
    assert_one_line(script("lightning-collect", "--lake", lake, "--http", "here"), "--http", "host:port", code=2)
    assert_one_line(script("lightning-collect", "--lak", lake), "--lak", code=2)
    (tmp_path / "file").write_text("")
    assert_one_line(script("lightning-collect", "--lake", str(tmp_path / "file"), *FREE), "file")


@pytest.mark.row(61)
def test_it_listens_beyond_this_machine_only_with_a_token_and_tls_or_insecure(
    script: Any, start: Any, tmp_path: Path
) -> None:
    arguments = ("--lake", str(tmp_path / "lake"), "--http", "0.0.0.0:0", "--grpc", "127.0.0.1:0")
    assert_one_line(script("lightning-collect", *arguments), "0.0.0.0", "--insecure", code=2)
    done = script("lightning-collect", *arguments, LIGHTNING_COLLECT_TOKEN="secret")
    assert_one_line(done, "token and TLS", code=2)
    assert "secret" not in done.stderr
    assert start("lightning-collect", *arguments, "--insecure").stop() == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from otel_lightning.collector.cli import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('pyarrow', 'duckdb', 'torch', 'grpc')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--lake", "--grpc", "--http", "--config", "--insecure"):
        assert option in done.stdout


@pytest.mark.row(68)
def test_files_are_private_and_content_is_in_no_line_we_print(start: Any, post: Any, tmp_path: Path) -> None:
    canary = "canary-7f3a"
    collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE)
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=b"\1" * 8, name=canary)
    spans.add(trace_id=b"", span_id=b"\1" * 8, name=canary)
    answers = [
        post(collector.url, "/v1/traces", request.SerializeToString()),
        post(collector.url, "/v1/traces", request.SerializeToString()[:-1]),
        post(collector.url, "/v1/traces", b'{"resourceSpans": "%s"}' % canary.encode(), "application/json"),
        post(collector.url, "/v1/traces", canary.encode(), "text/plain"),
        post(collector.url, f"/{canary}", b""),
        post(collector.url, "/metrics", None, None, method="GET"),
        post(collector.url, "/flush"),
    ]
    assert collector.stop() == 0
    assert not any(canary.encode() in answer.body for answer in answers)
    assert canary not in "\n".join(collector.lines)
    for path in (tmp_path / "lake").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} {mode:o}"


@pytest.mark.row(12, 19)
def test_a_full_disk_refuses_and_keeps_what_was_acknowledged(start: Any, post: Any, read: Any, tmp_path: Path) -> None:
    # Files of that process cannot grow past 64 KiB: the real kernel cuts a write short, then refuses.
    wrapper = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY));"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    lake = tmp_path / "lake"
    script = Path(sys.executable).parent / "lightning-collect"
    process = subprocess.Popen(
        [sys.executable, "-c", wrapper, str(script), "--lake", str(lake), *FREE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    grpc_address = process.stdout.readline().split("//")[-1].strip()
    statuses = []
    for number in range(1, 31):
        answer = post(url, "/v1/traces", body(number, size=5000))
        statuses.append(answer.status)
        if answer.status == 503:
            assert answer.headers["retry-after"] == "1"
    big = body(99, size=100_000)
    assert post(url, "/v1/traces", big).status == 503
    with grpc.insecure_channel(grpc_address) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            export(big)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    trailing = dict(refused.value.trailing_metadata() or ())  # type: ignore[attr-defined]
    assert {"google.rpc.retryinfo-bin", "grpc-status-details-bin"} <= trailing.keys()
    assert set(statuses) <= {200, 503} and statuses.count(200) > 15
    process.terminate()
    said = process.communicate(timeout=30)[0]
    assert "full" in said and "Traceback" not in said
    # The next start, with room again, has everything that was acknowledged, once, and nothing else.
    collector = start("lightning-collect", "--lake", str(lake), *FREE)
    assert collector.stop() == 0
    stored = [int(row["span_id"], 16) for row in read.rows("spans", "span_id, seq")]
    assert sorted(stored) == [number for number, status in enumerate(statuses, 1) if status == 200]


@pytest.mark.row(18)
def test_a_lake_that_cannot_be_written_is_one_line(script: Any, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        lake = Path("/proc/lake")  # root may write anywhere else
    else:
        lake = tmp_path / "closed" / "lake"
        lake.parent.mkdir(mode=0o500)
    assert_one_line(script("lightning-collect", "--lake", str(lake), *FREE), str(lake))


@pytest.mark.row(62)
def test_a_token_is_asked_for_on_both_protocols(start: Any, post: Any, tmp_path: Path) -> None:
    collector = start(
        "lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, LIGHTNING_COLLECT_TOKEN="open sesame"
    )
    assert post(collector.url, "/v1/traces", body()).status == 401
    assert post(collector.url, "/v1/traces", body(), Authorization="Bearer open").status == 401
    assert post(collector.url, "/v1/traces", body(), Authorization="Bearer open sesame").status == 200
    assert post(collector.url, "/flush").status == 401
    assert post(collector.url, "/metrics", None, None, method="GET").status == 401
    assert post(collector.url, "/healthz", None, None, method="GET").status == 200
    with grpc.insecure_channel(collector.line("listening grpc").split("//")[-1]) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            export(body())
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        assert export(body(2), metadata=(("authorization", "Bearer open sesame"),)) == b""


def test_tls_on_both_protocols(start: Any, script: Any, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs a certificate: install the package 'openssl'")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        (
            f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost "
            f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {certificate}"
        ).split(),
        check=True,
        capture_output=True,
    )
    config, token = tmp_path / "collect.yaml", tmp_path / "token"
    token.write_text("hush\n")
    config.write_text(f"tls_certificate: {certificate}\ntls_key: {key}\ntoken_file: {token}\n")
    arguments = ("--config", str(config), "--lake", str(tmp_path / "lake"))
    collector = start("lightning-collect", *arguments, "--http", "0.0.0.0:0", "--grpc", "127.0.0.1:0")
    port = collector.url.rpartition(":")[2]
    assert collector.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(certificate))
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}/v1/traces",
        body(),
        {"Content-Type": "application/x-protobuf", "Authorization": "Bearer hush"},
    )
    with urllib.request.urlopen(request, context=trusted, timeout=20) as response:
        assert response.status == 200
    address = collector.line("listening grpc").split("//")[-1]
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(address, credentials) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        assert export(body(2), metadata=(("authorization", "Bearer hush"),)) == b""
    assert collector.stop() == 0
    assert "stored 2 spans" in collector.lines[-1]
    config.write_text(f"tls_certificate: {key}\ntls_key: {key}\n")
    assert_one_line(script("lightning-collect", *arguments, *FREE), "PEM")
