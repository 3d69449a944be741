"""The tee: another endpoint gets what was stored, whatever happens between; nothing here waits for it or trusts it."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_lightning.app.errors import ConfigError
from otel_lightning.collector import forward
from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.config import ForwardConfig
from otel_lightning.collector.forward import Forwarder, Target, is_forbidden
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake


def body(number: int, size: int = 10) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n" * size)
    return request.SerializeToString()


class Endpoint:
    """An OTLP/HTTP endpoint that answers as told; `got` are the span numbers of what it accepted."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.got: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.headers.append(dict(self.headers))
                endpoint.paths.append(self.path)
                status, headers, answer = endpoint.answers.pop(0) if endpoint.answers else (200, {}, b"")
                if status == 200:
                    request = ExportTraceServiceRequest.FromString(data)
                    endpoint.got += [
                        int.from_bytes(span.span_id, "big")
                        for of in request.resource_spans for scope in of.scope_spans for span in scope.spans
                    ]  # fmt: skip
                self.send_response(status)
                for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


class Tee:
    """A lake with one forwarder, in this process."""

    def __init__(self, lake: Path, url: str, **settings: Any) -> None:
        self.target = Target(ForwardConfig(endpoint=url, **settings))
        limits = {self.target.name: self.target.config.max_backlog_bytes}
        self.ingest = Ingest(RealDisk, Lake(lake), ParquetConverter(), Limits(roll_s=60), backlog_bytes=limits)
        assert self.ingest.backlog is not None
        self.forwarder = Forwarder(Lake(lake), self.ingest.backlog, self.target)
        self.forwarder.start()

    def store(self, *numbers: int, size: int = 10) -> None:
        for number in numbers:
            self.ingest.submit(check_protobuf("spans", body(number, size))).result(10)
        self.ingest.flush().result(10)

    def close(self) -> None:
        self.ingest.close()
        self.forwarder.stop()


@pytest.fixture
def tee(tmp_path: Path) -> Iterator[Callable[..., Tee]]:
    made: list[Tee] = []

    def make(url: str, **settings: Any) -> Tee:
        made.append(Tee(tmp_path / "lake", url, **settings))
        return made[-1]

    yield make
    for one in made:
        if not one.ingest._closed:
            one.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(forward, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(forward, "DRAIN_S", 0.3)


def until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about in 10 seconds")


def test_what_was_stored_goes_on_and_the_log_goes_when_it_is_there(
    endpoint: Endpoint, tee: Any, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text("authorization: Bearer hush\n\nx-project: p\n")
    one = tee(f"{endpoint.url}/proj/", headers_file=headers)
    one.store(1, 2)
    one.store(3)
    until(lambda: endpoint.got == [1, 2, 3])
    until(lambda: not list(one.ingest.lake.wal.glob("*.wal")))
    assert endpoint.headers[0]["authorization"] == "Bearer hush" and endpoint.headers[0]["x-project"] == "p"
    assert set(endpoint.paths) == {"/proj/v1/traces"}
    assert one.forwarder.counters.sent["spans"] == 3


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_may_be_tried_again_is(endpoint: Endpoint, tee: Any, status: int) -> None:
    endpoint.answers = [(status, {"Retry-After": "0"}, b""), (status, {}, b"")]
    one = tee(endpoint.url)
    one.store(1, 2)
    until(lambda: endpoint.got == [1, 2])
    assert one.forwarder.counters.retries == 2 and one.forwarder.problem is None


def test_what_an_endpoint_will_not_take_is_counted_and_the_rest_goes_on(endpoint: Endpoint, tee: Any) -> None:
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 1
    endpoint.answers = [(400, {}, b""), (200, {}, partial.SerializeToString()), (200, {"Connection": "close"}, b"")]
    one = tee(endpoint.url)
    one.store(1, 2, 3, 4)
    until(lambda: not list(one.ingest.lake.wal.glob("*.wal")))
    assert endpoint.got == [2, 3, 4]
    assert one.forwarder.counters.refused == {"400": 1, "partial": 1} and one.forwarder.counters.sent["spans"] == 2


@pytest.mark.row(65)
def test_redirects_are_not_followed_and_metadata_addresses_are_never_connected_to(
    endpoint: Endpoint, tee: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Endpoint()
    endpoint.answers = [(307, {"Location": f"{other.url}/v1/traces"}, b"")]
    one = tee(endpoint.url)
    one.store(1, 2)
    until(lambda: endpoint.got == [2])
    other.close()
    assert other.got == [] and one.forwarder.counters.refused == {"307": 1}

    for address in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1"):
        assert is_forbidden(address)
    assert not is_forbidden("127.0.0.1") and not is_forbidden("10.0.0.7")
    # A name that resolves to such an address, today or from now on.
    asked: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("169.254.169.254", 80))])
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: asked.append(a))
    target = Target(ForwardConfig(endpoint="https://innocent.example"))
    with pytest.raises(OSError, match="never forwarded to"):
        target.connect()
    assert asked == []


@pytest.mark.row(65)
def test_plain_http_goes_to_this_machine_only_unless_told() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        Target(ForwardConfig(endpoint="http://otel.example:4318"))
    assert Target(ForwardConfig(endpoint="http://otel.example:4318", insecure=True)).port == 4318
    assert Target(ForwardConfig(endpoint="http://localhost:6006")).name == "localhost:6006"


def test_a_name_with_several_addresses_is_tried_through(
    endpoint: Endpoint, tee: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    nobody, it = (2, 1, 6, "", ("127.0.0.2", port)), (2, 1, 6, "", ("127.0.0.1", port))
    real = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda host, *rest, **more: [nobody, it] if host == "localhost" else real(host, *rest, **more),
    )
    one = tee(f"http://localhost:{port}")
    one.store(1)
    until(lambda: endpoint.got == [1])


def test_an_endpoint_that_is_away_gets_everything_later_once_across_restarts(endpoint: Endpoint, tee: Any) -> None:
    address = endpoint.url
    endpoint.close()
    one = tee(address)
    one.store(1, 2)
    one.store(3)
    until(lambda: one.forwarder.problem is not None)
    assert one.forwarder.waiting_bytes > 0
    one.close()
    back = Endpoint()
    port = int(back.url.rpartition(":")[2])
    again = tee(address)  # still nobody there
    again.store(4)
    again.close()
    moved = Tee(again.ingest.lake.root, back.url)  # another endpoint starts with what still lies there
    until(lambda: back.got == [1, 2, 3, 4])
    moved.store(5)
    until(lambda: back.got == [1, 2, 3, 4, 5])
    moved.close()
    once_more = Tee(again.ingest.lake.root, f"http://127.0.0.1:{port}")
    once_more.store(6)
    until(lambda: back.got[-1:] == [6])
    once_more.close()
    back.close()
    assert back.got == [1, 2, 3, 4, 5, 6]
    assert len(once_more.ingest.recovered.logs) == 0


def test_a_backlog_has_a_limit_beyond_which_the_oldest_stays_in_the_lake_only(
    endpoint: Endpoint, tee: Any, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answers = [(503, {}, b"")] * 1000
    one = tee(endpoint.url, max_backlog_bytes=50_000)
    for number in range(1, 9):
        one.store(number, size=10_000)
    assert one.ingest.backlog.given_up[one.target.name] >= 3
    assert one.forwarder.waiting_bytes <= 50_000
    assert sum(path.stat().st_size for path in one.ingest.lake.wal.glob("*.wal")) <= 50_000
    endpoint.answers.clear()
    until(lambda: endpoint.got[-1:] == [8])
    assert endpoint.got[-4:] == [5, 6, 7, 8]
    assert len([line for line in caplog.messages if "are not forwarded" in line]) <= 1


def test_a_second_collector_gets_the_same_spans_and_says_so(start: Any, post: Any, tmp_path: Path) -> None:
    free = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    second = start("lightning-collect", "--lake", str(tmp_path / "second"), *free)
    config = tmp_path / "collect.yaml"
    config.write_text(f"roll_s: 0.1\nforward: [{{endpoint: '{second.url}'}}]\n")
    first = start("lightning-collect", "--lake", str(tmp_path / "lake"), "--config", str(config), *free)
    assert first.line("forwarding to 127.0.0.1:")
    for number in range(1, 21):
        assert post(first.url, "/v1/traces", body(number)).status == 200
    until(
        lambda: b'acknowledged_total{signal="spans"} 20' in post(second.url, "/metrics", None, None, method="GET").body
    )
    text = post(first.url, "/metrics", None, None, method="GET").body.decode()
    assert (
        f'lightning_collect_forwarded_total{{target="{second.url.removeprefix("http://")}",signal="spans"}} 20' in text
    )
    # What comes last is sent on before the process ends.
    post(first.url, "/v1/traces", body(21))
    assert first.stop() == second.stop() == 0
    assert "stored 21 spans" in second.lines[-1]


def test_forwarding_to_itself_is_refused(script: Any, tmp_path: Path, start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "collect.yaml"
    config.write_text(
        f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:{port}\ngrpc: 127.0.0.1:0\nforward: [{{endpoint: 'http://localhost:{port}'}}]\n"
    )
    done = script("lightning-collect", "--config", str(config))
    assert done.returncode == 1 and "is this collector itself" in done.stderr and "Traceback" not in done.stderr


PHOENIX = Path(__file__).parents[2] / "build" / "phoenix" / "bin"


@pytest.mark.slow
def test_phoenix_shows_what_we_forward(start: Any, post: Any, tmp_path: Path) -> None:
    """Needs: python3.11 -m venv build/phoenix && build/phoenix/bin/pip install 'arize-phoenix>=20,<21'."""
    import json
    import os

    if shutil.which(str(PHOENIX / "phoenix")) is None:
        pytest.skip("Phoenix is not installed in build/phoenix")
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            ports.append(probe.getsockname()[1])
    environment = {
        **os.environ, "PHOENIX_WORKING_DIR": str(tmp_path), "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(ports[0]), "PHOENIX_GRPC_PORT": str(ports[1]),
    }  # fmt: skip
    phoenix = subprocess.Popen(
        [PHOENIX / "phoenix", "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        config = tmp_path / "collect.yaml"
        url = f"http://127.0.0.1:{ports[0]}"
        config.write_text(f"roll_s: 0.1\nforward: [{{endpoint: '{url}', signals: [spans]}}]\n")
        free = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
        collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), "--config", str(config), *free)
        # Phoenix is still starting: what comes now waits.
        payload = next((Path(__file__).parents[1] / "fixtures" / "otlp" / "langchain").rglob("*traces.pb")).read_bytes()
        assert post(collector.url, "/v1/traces", payload).status == 200
        sent = check_protobuf("spans", payload).rows
        found = 0
        for _ in range(120):
            time.sleep(1)
            try:
                with urllib.request.urlopen(f"{url}/v1/projects/default/spans?limit=1000", timeout=5) as response:
                    found = len(json.load(response)["data"])
            except OSError:
                continue
            if found == sent:
                break
        assert found == sent
    finally:
        phoenix.terminate()
        phoenix.wait(30)
