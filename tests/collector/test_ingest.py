"""Refusals and retries of the durable path, with a disk that fails when told to."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.app.errors import BusyError
from otel_lightning.collector import ingest as ingest_module
from otel_lightning.collector.check import Accepted, check_protobuf
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import read_entries


class FailingDisk(RealDisk):
    """A real disk on which some calls fail for some paths; `failing` is shared by all threads' disks."""

    failing: dict[str, tuple[str, int]]

    def _check(self, operation: str, path: Path) -> None:
        part, number = self.failing.get(operation, ("", 0))
        if number and part in str(path):
            raise OSError(number, "simulated")

    def append(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        self._check("append", path)
        super().append(path, *pieces)

    def sync(self, path: Path) -> None:
        self._check("sync", path)
        super().sync(path)


@pytest.fixture
def failing() -> dict[str, tuple[str, int]]:
    """Operation -> (part of the path, errno); empty means all is well."""
    return {}


@pytest.fixture
def ingest(tmp_path: Path, failing: dict[str, tuple[str, int]]) -> Iterator[Ingest]:
    FailingDisk.failing = failing
    made = Ingest(FailingDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(roll_s=60))
    yield made
    failing.clear()
    if not made._closed:
        made.close()


def request(number: int, size: int = 10) -> Accepted:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n" * size)
    return check_protobuf("spans", message.SerializeToString())


def stored(ingest: Ingest) -> list[int]:
    found: list[int] = []
    for entry in read_entries(RealDisk(), ingest.lake):
        for file in entry.files:
            found += [int(s, 16) for s in pq.read_table(ingest.lake.root / file.path)["span_id"].to_pylist()]
    return sorted(found)


@pytest.mark.row(12, 15, 18)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("operation", ["append", "sync"])
def test_a_log_that_cannot_be_written_refuses_and_recovers_by_itself(
    ingest: Ingest, failing: dict[str, tuple[str, int]], operation: str, number: int
) -> None:
    ingest.submit(request(1)).result(10)
    failing[operation] = (".wal", number)
    for attempt in (2, 3):
        with pytest.raises(BusyError, match="full" if number == errno.ENOSPC else "refused a write"):
            ingest.submit(request(attempt)).result(10)
    assert ingest.problem is not None
    failing.clear()
    ingest.submit(request(4)).result(10)
    assert ingest.problem is None
    ingest.flush().result(10)
    assert stored(ingest) == [1, 4]
    assert ingest.counters.refused == {("disk_full" if number == errno.ENOSPC else "disk_error"): 2}
    assert ingest.counters.queued_bytes == ingest.counters.pending_bytes == 0


@pytest.mark.row(13)
def test_parquet_that_cannot_be_written_keeps_the_log_and_fails_the_flush(
    ingest: Ingest, failing: dict[str, tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "RETRY_S", 0.05)
    failing["append"] = (".parquet.tmp", errno.ENOSPC)
    ingest.submit(request(1)).result(10)
    with pytest.raises(BusyError, match="cannot be written"):
        ingest.flush().result(10)
    ingest.submit(request(2)).result(10)  # acknowledging goes on: the log is what makes it durable
    assert ingest.problem is not None and stored(ingest) == []
    failing.clear()
    ingest.flush().result(10)
    assert ingest.problem is None and stored(ingest) == [1, 2]


@pytest.mark.row(13)
def test_closing_on_a_full_disk_says_so_and_the_next_start_finishes(
    ingest: Ingest, failing: dict[str, tuple[str, int]]
) -> None:
    failing["append"] = (".parquet.tmp", errno.ENOSPC)
    ingest.submit(request(1)).result(10)
    assert ingest.close() is False
    with pytest.raises(BusyError, match="stopping"):
        ingest.submit(request(2)).result(10)
    with pytest.raises(BusyError, match="stopping"):
        ingest.flush().result(10)
    failing.clear()
    again = Ingest(FailingDisk, ingest.lake, ParquetConverter())
    assert again.recovered.rows == 1
    assert again.close() is True
    assert stored(ingest) == [1]


@pytest.mark.row(27)
def test_too_much_waiting_is_refused_and_one_large_request_still_fits(tmp_path: Path) -> None:
    gate = threading.Event()

    class SlowDisk(RealDisk):
        def sync(self, path: Path) -> None:
            if path.suffix == ".wal":
                gate.wait(20)
            super().sync(path)

    ingest = Ingest(SlowDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(queued_bytes=1000, roll_s=60))
    first = ingest.submit(request(1, size=5000))
    with pytest.raises(BusyError, match="waits for the disk"):
        ingest.submit(request(2)).result(10)
    gate.set()
    first.result(10)
    ingest.submit(request(3)).result(10)
    ingest.close()
    assert stored(ingest) == [1, 3]


@pytest.mark.row(14)
def test_a_backlog_or_a_nearly_full_disk_is_refused(tmp_path: Path) -> None:
    ingest = Ingest(RealDisk, Lake(tmp_path / "a"), ParquetConverter(), Limits(pending_bytes=10, roll_s=60))
    ingest.submit(request(1)).result(10)
    with pytest.raises(BusyError, match="more waits to become Parquet"):
        ingest.submit(request(2)).result(10)
    ingest.flush().result(10)
    ingest.submit(request(3)).result(10)
    ingest.close()
    full = Ingest(RealDisk, Lake(tmp_path / "b"), ParquetConverter(), Limits(reserve_bytes=1 << 62))
    with pytest.raises(BusyError, match="disk is full"):
        full.submit(request(1)).result(10)
    full.close()


def test_a_segment_lies_under_one_ingest_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[Any] = [1_795_046_399 * 10**9]  # one second before midnight, UTC

    class Clock:
        def __getattr__(self, name: str) -> Any:
            return (lambda: clock[0]) if name == "time_ns" else getattr(time, name)

    monkeypatch.setattr(ingest_module, "time", Clock())
    ingest = Ingest(RealDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(roll_s=60))
    ingest.submit(request(1)).result(10)
    clock[0] += 2 * 10**9
    ingest.submit(request(2)).result(10)
    ingest.close()
    folders = [path.name for path in sorted((tmp_path / "lake" / "spans").iterdir())]
    assert folders == ["day=2026-11-18", "day=2026-11-19"]


def test_segments_roll_by_size_and_by_time(tmp_path: Path) -> None:
    ingest = Ingest(RealDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(roll_bytes=2000, roll_s=0.1))
    for number in range(1, 4):
        ingest.submit(request(number, size=3000)).result(10)
    ingest.submit(request(4)).result(10)
    deadline = threading.Event()
    for _ in range(100):
        if len(stored(ingest)) == 4:
            break
        deadline.wait(0.05)
    assert stored(ingest) == [1, 2, 3, 4]
    assert len(list(read_entries(RealDisk(), ingest.lake))) == 4
    ingest.close()


def test_a_segment_holds_no_more_rows_than_parquet_keeps_together(tmp_path: Path) -> None:
    ingest = Ingest(RealDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(roll_s=60, roll_rows=2))
    for number in range(1, 6):
        ingest.submit(request(number)).result(10)
    ingest.close()
    entries = list(read_entries(RealDisk(), ingest.lake))
    assert sorted(sum(file.rows for file in entry.files) for entry in entries) == [1, 2, 2]
    assert stored(ingest) == [1, 2, 3, 4, 5]
