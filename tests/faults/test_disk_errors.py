"""A whole collector on a disk that errs: errors and delays by a preloaded library, a full file system of its own."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from ingest_driver import request
from running import Process
from victim import needed

from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import recover
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake

pytestmark = pytest.mark.faults

FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def ask(url: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/x-protobuf"})
        response = connection.getresponse()
        if response.status == 503 and method == "POST":
            assert response.headers["retry-after"] == "1"
        return response.status, response.read()
    finally:
        connection.close()


def send(url: str, number: int) -> int:
    return ask(url, "POST", "/v1/traces", bytes(request(number).body))[0]


def stored(lake: Path) -> list[int]:
    tables = [pq.read_table(path) for path in lake.glob("spans/*/*.parquet")]
    return sorted(int(span_id, 16) for table in tables for span_id in table["span_id"].to_pylist())


@pytest.mark.row(15)
def test_one_fsync_that_fails_refuses_and_the_next_file_takes_over(start: Any, tmp_path: Path, shim: str) -> None:
    lake = tmp_path / "lake"
    faults = {"LD_PRELOAD": shim, "FAULT_CALL": "fsync", "FAULT_PATH": ".wal", "FAULT_KIND": "EIO", "FAULT_AT": "3"}
    collector = start("lightning-collect", "--lake", str(lake), *FREE, **faults)
    statuses = [send(collector.url, number) for number in range(1, 7)]
    assert statuses == [200, 200, 503, 200, 200, 200]
    assert ask(collector.url, "GET", "/readyz")[0] == 200
    assert collector.stop() == 0
    assert stored(lake) == [1, 2, 4, 5, 6]


@pytest.mark.row(16)
def test_a_disk_that_never_syncs_is_refused_for_ever_and_the_process_lives(
    start: Any, tmp_path: Path, shim: str
) -> None:
    faults = {"LD_PRELOAD": shim, "FAULT_CALL": "fsync", "FAULT_PATH": ".wal", "FAULT_KIND": "EIO"}
    collector = start("lightning-collect", "--lake", str(tmp_path / "lake"), *FREE, **faults)
    for number in range(1, 20):
        assert send(collector.url, number) == 503
    status, why = ask(collector.url, "GET", "/readyz")
    assert (status, b"refused a write" in why) == (503, True)
    assert collector.popen.poll() is None
    assert collector.stop() == 0
    assert stored(tmp_path / "lake") == []
    assert sum("requests are refused" in line for line in collector.lines) == 1  # said once, not once a request


@pytest.mark.row(17)
def test_a_segment_that_cannot_be_read_is_moved_aside_and_the_rest_served(
    tmp_path: Path, shim: str, start: Any
) -> None:
    lake = tmp_path / "lake"
    first = recover(RealDisk(), Lake(lake), ParquetConverter()).wal
    from otel_lightning.collector.wal import Frame

    for number in (1, 2):
        first.append([Frame("spans", time.time_ns(), first.next_seq, 1, bytes(request(number).body))])
        first.seal()
    faults = {"LD_PRELOAD": shim, "FAULT_CALL": "read", "FAULT_PATH": "00000001.wal", "FAULT_KIND": "EIO"}
    collector = start("lightning-collect", "--lake", str(lake), *FREE, **faults)
    assert send(collector.url, 3) == 200
    assert collector.stop() == 0
    assert stored(lake) == [2, 3]
    aside = sorted(path.name for path in (lake / "quarantine").iterdir())
    assert aside[0].endswith("-00000001.wal") and aside[1] == aside[0] + ".reason.json"
    assert "EIO" in json.loads((lake / "quarantine" / aside[1]).read_text())["reason"]
    rows = [pq.read_table(path, columns=["span_id", "seq"]).to_pylist() for path in lake.glob("spans/*/*.parquet")]
    numbers = {int(row["span_id"], 16): row["seq"] for table in rows for row in table}
    assert numbers[3] > numbers[2] and numbers[3] not in (1, 2)  # what the lost segment numbered is not given again


@pytest.mark.row(27)
def test_a_slow_disk_queues_within_bounds_then_refuses(start: Any, tmp_path: Path, shim: str) -> None:
    import threading

    config = tmp_path / "collect.yaml"
    config.write_text(f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nqueued_bytes: 2000000\n")
    faults = {"LD_PRELOAD": shim, "FAULT_CALL": "fsync", "FAULT_PATH": ".wal", "FAULT_KIND": "sleep"}
    collector = start("lightning-collect", "--config", str(config), **faults)
    before = resident_kib(collector.popen.pid)
    body = many_spans(2_000)  # about 0.5 MB: four of them wait, more do not
    statuses: list[int] = []

    def sender() -> None:
        for _ in range(3):
            statuses.append(ask(collector.url, "POST", "/v1/traces", body)[0])

    threads = [threading.Thread(target=sender) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 503}
    assert resident_kib(collector.popen.pid) - before < 150 << 10
    accepted = statuses.count(200)
    assert collector.stop() == 0
    assert len(stored(tmp_path / "lake")) == 2_000 * accepted


def many_spans(count: int) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for number in range(1, count + 1):
        spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n" * 200)
    return message.SerializeToString()


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.row(12, 13)
def test_a_file_system_that_fills_up_refuses_keeps_and_recovers_by_itself(tmp_path: Path) -> None:
    unshare = needed("unshare", "util-linux")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    config = tmp_path / "collect.yaml"
    config.write_text(
        f"lake: {mounted / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nreserve_bytes: 0\nroll_s: 0.2\n"
    )
    collect = Path(sys.executable).parent / "lightning-collect"
    script = f"mount -t tmpfs -o size=5m tmpfs {mounted} && head -c 3000000 /dev/zero >{mounted}/ballast && exec {collect} --config {config}"
    try:
        process = Process([unshare, "-Urm", "sh", "-c", script])
    except RuntimeError as error:
        pytest.skip(f"needs user namespaces and tmpfs: allow them, or run as root ({error})")
    url = process.url
    try:
        inside = Path(f"/proc/{process.popen.pid}/root{mounted}")
        acknowledged: list[int] = []
        refused = number = 0
        body_size = 60_000
        while refused < 5 and number < 300:
            number += 1
            if ask(url, "POST", "/v1/traces", one_large_span(number, body_size))[0] == 200:
                acknowledged.append(number)
            else:
                refused += 1
        assert refused == 5 and len(acknowledged) > 5
        (inside / "ballast").unlink()  # somebody makes room; nobody restarts anything
        until = time.monotonic() + 30
        while time.monotonic() < until:
            number += 1
            if ask(url, "POST", "/v1/traces", one_large_span(number, 100))[0] == 200:
                acknowledged.append(number)
                break
            time.sleep(0.2)
        while ask(url, "POST", "/flush")[0] != 200 and time.monotonic() < until:
            time.sleep(0.2)
        assert ask(url, "GET", "/readyz")[0] == 200
        assert stored(inside / "lake") == acknowledged
        assert not list((inside / "lake").rglob("*.tmp"))
    finally:
        process.stop()
    assert not any("Traceback" in line for line in process.lines)


def one_large_span(number: int, size: int) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    # Not compressible, so that Parquet needs room too.
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name=os.urandom(size // 2).hex())
    return message.SerializeToString()


@pytest.mark.row(9)
def test_out_of_memory_ends_nothing_for_good(start: Any, tmp_path: Path) -> None:
    """A process that may not have more memory dies or refuses; the next start serves, with what was acknowledged."""
    wrapper = (
        "import resource, os, sys; limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_AS, (limit, limit));"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    lake = tmp_path / "lake"
    collect = str(Path(sys.executable).parent / "lightning-collect")
    acknowledged: list[int] = []
    number = 0
    for _ in range(2):  # the second start meets what the first one died of
        try:
            process = Process([sys.executable, "-c", wrapper, str(1_500 << 20), collect, "--lake", str(lake), *FREE])
        except RuntimeError:
            continue  # it could not even start its threads: gone as well
        url = process.url
        for size in (100, 10_000_000, 30_000_000, 31_000_000, 31_500_000, 100):
            number += 1
            try:
                if ask(url, "POST", "/v1/traces", one_large_span(number, size))[0] == 200:
                    acknowledged.append(number)
            except (OSError, http.client.HTTPException):
                break  # it is gone: as after the kernel's OOM killer
        process.kill()
    collector = start("lightning-collect", "--lake", str(lake), *FREE)
    assert collector.stop() == 0
    found = stored(lake)
    assert set(acknowledged) <= set(found) and len(found) == len(set(found))
    assert len(acknowledged) >= 2
