"""Long and wide: an overload that goes on, and the OpenTelemetry SDKs of several years. `make soak`."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers.payloads import SPANS_PER_REQUEST, requests

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
OVERLOAD_S = float(os.environ.get("SOAK_OVERLOAD_S", "600"))
SENDERS = 12
# What a collector with default limits may hold: 256 MiB that wait for the disk, segments of 32 MiB on their way
# to Parquet, and the libraries.
MEMORY_KIB = 1 << 20
SDKS = ("1.27.0", "1.36.0", "1.42.0", "1.45.2")
FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


@pytest.mark.timeout(OVERLOAD_S + 600)
def test_an_overload_that_goes_on_is_refused_within_the_memory_it_may_have(start: Any, tmp_path: Path) -> None:
    config = tmp_path / "collect.yaml"
    # The backlog may be small, so that refusals begin soon and go on.
    config.write_text(
        f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\npending_bytes: {64 << 20}\nqueued_bytes: {64 << 20}\n"
    )
    collector = start("lightning-collect", "--config", str(config))
    parts = urlsplit(collector.url)
    acknowledged, refused, others = [0] * SENDERS, [0] * SENDERS, []
    until = time.monotonic() + OVERLOAD_S

    def send(worker: int) -> None:
        bodies = requests("mixed", {}, seed=worker)[:8]
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        number = worker
        while time.monotonic() < until:
            number += SENDERS
            body = bodies[number % 8].fresh(number)
            try:
                connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # refused before the body was read, and hung up: the next request connects anew
                refused[worker] += 1
                continue
            if response.status == 200:
                acknowledged[worker] += SPANS_PER_REQUEST
            elif response.status == 503 and response.headers["retry-after"] == "1":
                refused[worker] += 1
            else:
                others.append(response.status)
        connection.close()

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(SENDERS)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, resident_kib(collector.popen.pid))
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    assert collector.stop() == 0
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "lake").glob("spans/*/*.parquet"))
    print(f"acknowledged {sum(acknowledged)}, refused {sum(refused)} requests, most {most >> 10} MiB")
    assert not others
    assert sum(refused) > 0 and sum(acknowledged) > 0
    assert sum(acknowledged) <= rows
    assert most < MEMORY_KIB


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


SENDER = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
if sys.argv[1] == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("sender")
for number in range(300):
    with tracer.start_as_current_span("span") as span:
        pass
    print(format(span.get_span_context().span_id, "016x"))
provider.shutdown()
"""


@pytest.fixture(scope="module", params=SDKS)
def sdk(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with one version of the SDK, kept under .cache."""
    folder = ROOT / ".cache" / "sdk" / request.param
    if not (folder / "ready").exists():
        packages = [f"opentelemetry-{name}=={request.param}" for name in ("sdk", "exporter-otlp")]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # Older releases import pkg_resources, which newer setuptools no longer bring.
        done = subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", "setuptools<81", *packages],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"needs the package index for opentelemetry-sdk {request.param}: {done.stderr.strip()[-200:]}")
        (folder / "ready").touch()
    return folder / "bin" / "python"


@pytest.mark.parametrize("refusing", [False, True], ids=["at once", "refused once"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_sdks_of_several_years_deliver_everything_once(
    start: Any, tmp_path: Path, sdk: Path, protocol: str, refusing: bool, shim: str
) -> None:
    """Refused once with 503 or UNAVAILABLE, each of them sends again: which is why we never say 429."""
    faults = {"LD_PRELOAD": shim, "FAULT_CALL": "fsync", "FAULT_PATH": ".wal", "FAULT_KIND": "EIO", "FAULT_AT": "1"}
    collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, **(faults if refusing else {}))
    endpoint = collector.line("listening grpc").split()[-1] if protocol == "grpc" else collector.url
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [str(sdk), "-c", SENDER, protocol],
        env=environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert collector.stop() == 0
    tables = [pq.read_table(path) for path in (tmp_path / "lake").glob("spans/*/*.parquet")]
    stored = [span_id for table in tables for span_id in table["span_id"].to_pylist()]
    assert sorted(stored) == sorted(done.stdout.split())
