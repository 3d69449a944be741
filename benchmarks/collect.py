"""What durability costs: lightning-collect against an endpoint that parses each request and throws it away.

    python benchmarks/collect.py [--rounds 5] [--seconds 3]

Both are sent the same requests by the same client over HTTP/protobuf, in turns. Ours answers after fsync and
has written Parquet before its round ends (/flush is part of it); the other one answers after parsing.
CPU seconds are those of the server's process. Two payloads: spans captured from real frameworks, and long
LLM spans of the size that agents with a history send. Rows are counted before a figure is printed.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "otlp"
SPANS_PER_REQUEST = 100
CONNECTIONS = 4
PREPARED = 64  # requests made before the clock starts; sent over and over


def captured() -> list[bytes]:
    """Spans of real frameworks, regrouped to requests of SPANS_PER_REQUEST."""
    groups = []
    for path in sorted(FIXTURES.rglob("*-traces.pb")):
        request = ExportTraceServiceRequest.FromString(path.read_bytes())
        groups += [(of, scope, list(scope.spans)) for of in request.resource_spans for scope in of.scope_spans]
    bodies, number = [], 0
    while len(bodies) < PREPARED:
        request, count = ExportTraceServiceRequest(), 0
        while count < SPANS_PER_REQUEST:
            of, scope, spans = groups[number % len(groups)]
            number += 1
            taken = spans[: SPANS_PER_REQUEST - count]
            target = request.resource_spans.add(resource=of.resource).scope_spans.add(scope=scope.scope)
            target.spans.extend(taken)
            count += len(taken)
        bodies.append(request.SerializeToString())
    return bodies


def long_history() -> list[bytes]:
    """LLM spans with 16 messages of history: 40 attributes, about 5 KB each."""
    bodies = []
    for body in range(PREPARED):
        request = ExportTraceServiceRequest()
        of = request.resource_spans.add()
        of.resource.attributes.add(key="service.name").value.string_value = "bench"
        spans = of.scope_spans.add().spans
        for row in range(SPANS_PER_REQUEST):
            number = body * SPANS_PER_REQUEST + row
            span = spans.add(trace_id=(number // 10 + 1).to_bytes(16, "big"), span_id=(number + 1).to_bytes(8, "big"))
            span.name, span.start_time_unix_nano = "ChatOpenAI", 10**18 + number * 10**6
            for message in range(16):
                stem = f"llm.input_messages.{message}.message"
                span.attributes.add(key=f"{stem}.role").value.string_value = ("user", "assistant")[message % 2]
                text = " ".join(f"word{(number * 31 + message * 7 + k * k) % 997}" for k in range(32))
                span.attributes.add(key=f"{stem}.content").value.string_value = text
            span.attributes.add(key="openinference.span.kind").value.string_value = "LLM"
            span.attributes.add(key="llm.model_name").value.string_value = "gpt-4o-mini"
            for name in ("prompt", "completion", "total"):
                span.attributes.add(key=f"llm.token_count.{name}").value.int_value = number % 4000
            span.attributes.add(key="gen_ai.request.temperature").value.double_value = 0.7
        bodies.append(request.SerializeToString())
    return bodies


@dataclass
class Server:
    """A running endpoint."""

    process: psutil.Process
    port: int
    lake: Path | None

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def ours(folder: Path) -> Iterator[Server]:
    """lightning-collect with its defaults."""
    lake = folder / "lake"
    command = [str(Path(sys.executable).parent / "lightning-collect"), "--lake", str(lake)]
    with _started([*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], lake) as server:
        yield server


@contextmanager
def discarding(_: Path) -> Iterator[Server]:
    """The endpoint that parses and forgets, in a process of its own."""
    with _started([sys.executable, __file__, "--discard"], None) as server:
        yield server


@contextmanager
def _started(command: list[str], lake: Path | None) -> Iterator[Server]:
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    try:
        port = int(popen.stdout.readline().rstrip().rpartition(":")[2])
        yield Server(psutil.Process(popen.pid), port, lake)
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.communicate(timeout=60)


class Discard(http.server.BaseHTTPRequestHandler):
    """Parse, forget, answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve_discarding() -> None:
    """Run the discarding endpoint until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Discard)
    print(f"listening http http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


@dataclass
class Round:
    """One measured round."""

    spans: int
    wall_s: float
    cpu_s: float
    latencies_ms: list[float]


def measure(server: Server, bodies: list[bytes], seconds: float) -> Round:
    """Send for `seconds` over CONNECTIONS connections, then flush; every answer must be 200."""
    counts, latencies = [0] * CONNECTIONS, [[] for _ in range(CONNECTIONS)]
    failures: list[str] = []
    before_cpu, began = server.cpu_s(), time.monotonic()

    def send(worker: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        turn = worker
        while time.monotonic() - began < seconds and not failures:
            at = time.monotonic()
            connection.request(
                "POST", "/v1/traces", bodies[turn % PREPARED], {"Content-Type": "application/x-protobuf"}
            )
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                failures.append(f"answered {response.status}")
            latencies[worker].append((time.monotonic() - at) * 1000)
            counts[worker] += SPANS_PER_REQUEST
            turn += CONNECTIONS

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if server.lake is not None and not failures:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request("POST", "/flush")
        if connection.getresponse().status != 200:
            failures.append("flush failed")
    if failures:
        raise SystemExit(f"collect: {failures[0]}; nothing was measured")
    wall_s = time.monotonic() - began
    return Round(sum(counts), wall_s, server.cpu_s() - before_cpu, sorted(itertools.chain(*latencies)))


def stored_spans(lake: Path) -> int:
    """Rows that are really in Parquet."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in lake.glob("spans/*/*.parquet"))


def main() -> None:
    """Print both sides, by payload, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round of one side")
    parser.add_argument("--discard", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.discard:
        serve_discarding()
    for name, bodies in (("captured", captured()), ("long history", long_history())):
        kib = sum(map(len, bodies)) / len(bodies) / SPANS_PER_REQUEST / 1024
        print(f"{name}: {kib:.1f} KiB a span, {SPANS_PER_REQUEST} spans a request, {CONNECTIONS} connections")
        with tempfile.TemporaryDirectory(prefix="bench-collect-") as folder:
            with ours(Path(folder)) as collect, discarding(Path(folder)) as discard:
                sides: dict[str, tuple[Server, list[Round]]] = {
                    "lightning-collect, fsync, Parquet": (collect, []),
                    "parse and discard": (discard, []),
                }
                for server, _ in sides.values():
                    measure(server, bodies, 0.5)  # imports, page cache
                sent = stored_spans(Path(folder) / "lake")
                for _ in range(arguments.rounds):
                    for server, rounds in sides.values():
                        rounds.append(measure(server, bodies, arguments.seconds))
                sent += sum(found.spans for found in sides["lightning-collect, fsync, Parquet"][1])
                stored = stored_spans(Path(folder) / "lake")
            if stored != sent:
                raise SystemExit(f"collect: {sent} spans were acknowledged, {stored} are stored")
            _report({name: rounds for name, (_, rounds) in sides.items()})


def _report(sides: dict[str, list[Round]]) -> None:
    medians = []
    for name, rounds in sides.items():
        per_cpu = sorted(found.spans / found.cpu_s for found in rounds)
        wall = statistics.median(found.spans / found.wall_s for found in rounds)
        latencies = sorted(ms for found in rounds for ms in found.latencies_ms)
        medians.append(statistics.median(per_cpu))
        p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
        print(
            f"  {name:34s} {medians[-1]:8,.0f} spans/CPU-s ({per_cpu[0]:,.0f} to {per_cpu[-1]:,.0f})"
            f"  {wall:8,.0f} spans/s  p50 {p50:.1f} ms  p99 {p99:.1f} ms"
        )
    print(f"  ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
