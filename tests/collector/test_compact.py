"""Compaction of a real lake: fewer and bigger files, the same rows, readers and a collector going on meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.compact import compact, parquet_tools
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.retain import retain
from otel_lightning.collector.scrub import scrub
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files, read_entries
from otel_lightning.transforms.tables import open_tables

MEMORY = 64 << 20


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    made = Ingest(RealDisk, Lake(tmp_path / "lake"), ParquetConverter(), Limits(roll_s=60))
    yield made
    if not made._closed:
        made.close()


def store(ingest: Ingest, *numbers: int, text: str = "x") -> None:
    """One request, one segment, one file a signal."""
    request, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    records = logs.resource_logs.add().scope_logs.add().log_records
    for number in numbers:
        span = spans.add(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name=text)
        span.attributes.add(key="a").value.string_value = text * 50
        records.add(trace_id=number.to_bytes(16, "big"), event_name=text, time_unix_nano=number)
    ingest.submit(check_protobuf("spans", request.SerializeToString())).result(10)
    ingest.submit(check_protobuf("events", logs.SerializeToString())).result(10)
    ingest.flush().result(10)


def rows(lake: Lake, signal_name: str = "spans") -> list[dict[str, Any]]:
    found = [row for path in live_files(lake, signal_name) for row in pq.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: row["seq"])


def run_compact(lake: Lake, grace_s: float = 0) -> Any:
    return compact(
        RealDisk(), lake, parquet_tools(lake), memory_bytes=MEMORY, grace_s=grace_s, wait=lambda seconds: None
    )


def test_many_files_become_one_with_the_same_rows_sorted_and_compressed_further(ingest: Ingest) -> None:
    lake = ingest.lake
    for number in range(1, 6):
        store(ingest, number + 10, number)
    before, events = rows(lake), rows(lake, "events")
    done = run_compact(lake)
    assert (done.files_before, done.files_after, done.removed) == (10, 2, 10)
    assert rows(lake) == before and rows(lake, "events") == events
    (path,) = live_files(lake, "spans")
    table = pq.read_table(path, page_checksum_verification=True)
    assert table["trace_id"].to_pylist() == sorted(table["trace_id"].to_pylist())
    named = pq.read_metadata(path).metadata
    assert named[b"lightning.first_seq"] == b"1" and named[b"lightning.stem"].decode() == path.stem
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(lake.signal("spans").rglob("*.parquet")) == [path]
    assert len(list(read_entries(RealDisk(), lake))) == 2
    assert scrub(lake).damage == []
    assert run_compact(lake).files_before == 0
    # A collector goes on, starts again, and the next compaction takes up the last one's file.
    store(ingest, 99)
    ingest.close()
    again = Ingest(RealDisk, lake, ParquetConverter())
    assert again.recovered.segments == 0
    store(again, 100)
    again.close()
    assert run_compact(lake).files_before == 6
    assert len({row["seq"] for row in rows(lake)}) == len(rows(lake)) == 12


@pytest.mark.row(30)
def test_sent_twice_stored_once_also_when_a_compaction_lies_between(ingest: Ingest) -> None:
    lake = ingest.lake
    store(ingest, 1, 2)
    store(ingest, 2, 3)  # split differently
    assert run_compact(lake).copies == 2
    store(ingest, 1)  # days later
    store(ingest, 3, text="longer than before")  # not the same: that is for readers to judge
    assert run_compact(lake).copies == 2
    stored = [(int(row["span_id"], 16), row["name"]) for row in rows(lake)]
    assert sorted(stored) == [(1, "x"), (2, "x"), (3, "longer than before"), (3, "x")]
    assert [row["seq"] for row in rows(lake)][:3] == [1, 2, 6]  # the first to arrive stays
    assert len(rows(lake, "events")) == 4


@pytest.mark.row(26)
def test_who_reads_meanwhile_finds_every_file_of_its_list_until_the_grace_is_over(ingest: Ingest) -> None:
    lake = ingest.lake
    for number in range(1, 4):
        store(ingest, number)
    listed = live_files(lake, "spans")
    with open_tables(lake.root) as connection:
        done = run_compact(lake, grace_s=3600)
        assert done.removed == 0 and all(path.exists() for path in listed)
        assert connection.execute("select count(*) from spans").fetchone() == (3,)
    assert len(live_files(lake, "spans")) == 1
    with open_tables(lake.root) as connection:
        assert connection.execute("select count(*) from spans").fetchone() == (3,)
    assert run_compact(lake, grace_s=0).removed == 6
    assert not any(path.exists() for path in listed)


@pytest.mark.row(26)
def test_a_list_of_files_is_made_anew_when_one_vanishes_while_it_is_made(ingest: Ingest) -> None:
    lake = ingest.lake
    store(ingest, 1)
    stop = threading.Event()
    counts: set[int] = set()
    errors: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                counts.add(sum(file.rows for entry in read_entries(RealDisk(), lake) for file in entry.files if file.signal == "spans" and "-r" not in file.path) + 100 * any(entry.replaces for entry in read_entries(RealDisk(), lake)))  # fmt: skip
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2, 8):
        store(ingest, number)
        run_compact(lake)
    stop.set()
    reader.join()
    assert not errors and counts


POINTS_IN_SHORT = (3, 9, 15)
KILLED_AT = """
import os, signal, sys
from pathlib import Path
from otel_lightning.collector.compact import compact, parquet_tools
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
at, done = int(sys.argv[2]), 0
for name in ("append", "sync", "rename", "unlink", "sync_folder"):
    def call(self, *arguments, real=getattr(RealDisk, name)):
        global done
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)
    setattr(RealDisk, name, call)
lake = Lake(Path(sys.argv[1]))
compact(RealDisk(), lake, parquet_tools(lake), memory_bytes=1 << 26, grace_s=0)
"""


@pytest.mark.row(4)
@pytest.mark.parametrize(
    "points",
    [POINTS_IN_SHORT, pytest.param(range(1, 60), marks=pytest.mark.slow)],
    ids=["some calls", "every call"],
)
def test_killed_at_a_call_of_a_compaction_the_lake_is_whole(ingest: Ingest, points: Any) -> None:
    lake = ingest.lake
    for number in range(1, 4):
        store(ingest, number)
    ingest.close()
    before = rows(lake)
    hits = 0
    for point in points:
        code = subprocess.run([sys.executable, "-c", KILLED_AT, str(lake.root), str(point)], check=False).returncode
        hits += code == -signal.SIGKILL
        assert rows(lake) == before
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if point % 2:
            Ingest(RealDisk, lake, ParquetConverter()).close()
            assert rows(lake) == before
    assert hits
    run_compact(lake)
    assert rows(lake) == before and len(live_files(lake, "spans")) == 1
    assert not [path for path in lake.root.rglob("*.tmp")]


@pytest.mark.parametrize("where", [-20, 100])
def test_a_damaged_file_is_not_merged_but_named(ingest: Ingest, where: int) -> None:
    lake = ingest.lake
    store(ingest, 1)
    store(ingest, 2)
    path = live_files(lake, "spans")[0]
    data = bytearray(path.read_bytes())
    data[where] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"is not what was written there; run lightning-collect check"):
        run_compact(lake)
    assert len(live_files(lake, "spans")) == 2


def test_retain_takes_whole_days_and_leaves_the_numbers(ingest: Ingest, tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    lake = ingest.lake
    store(ingest, 1)
    (lake.quarantine).mkdir(exist_ok=True)
    old = lake.quarantine / "old.frame"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    today = datetime.now(UTC).date()
    assert retain(lake, 30_000, grace_s=0).rows == 0
    done = retain(lake, 3, grace_s=0, today=today + timedelta(days=4))
    assert (done.rows, done.files, done.quarantined) == (2, 2, 1)
    assert rows(lake) == [] and not list(lake.signal("spans").rglob("*.parquet"))
    highest = max(entry.last_seq for entry in read_entries(RealDisk(), lake))
    store(ingest, 2)
    assert rows(lake)[0]["seq"] > highest or highest == 2
    ingest.close()
    again = Ingest(RealDisk, lake, ParquetConverter())
    store(again, 3)
    again.close()
    assert len({row["seq"] for row in rows(lake)}) == 2
    assert scrub(lake).damage == []


@pytest.mark.row(24)
def test_check_finds_one_flipped_bit_and_repair_sets_the_file_aside(ingest: Ingest, script: Any) -> None:
    lake = ingest.lake
    store(ingest, 1)
    store(ingest, 2)
    ingest.close()
    done = script("lightning-collect", "check", "--lake", str(lake.root))
    assert done.returncode == 0 and "2 spans, 2 events" in done.stdout
    path = live_files(lake, "spans")[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    done = script("lightning-collect", "check", "--lake", str(lake.root))
    assert done.returncode == 1
    assert f"damaged: spans/{path.parent.name}/{path.name} is not what was written" in done.stdout
    assert scrub(lake, repair=True).repaired
    after = scrub(lake)
    assert after.damage == [] and after.rows["spans"] == 1 and len(after.quarantine) == 1
    assert "1 rows are lost" in after.quarantine[0]["reason"]
    assert (lake.quarantine / after.quarantine[0]["file"]).read_bytes() == bytes(data)


@pytest.mark.row(24)
def test_a_damaged_file_is_made_again_from_a_log_that_is_still_there(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    ingest = Ingest(RealDisk, lake, ParquetConverter(), backlog_bytes={"elsewhere": 1 << 30})
    store(ingest, 1, 2)
    path = live_files(lake, "spans")[0]
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"PAR1")
    assert "made again" in scrub(lake, repair=True).repaired[0]
    ingest.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == whole


def test_files_that_arrive_while_a_lake_is_compacted_are_left_to_the_next_run(ingest: Ingest) -> None:
    lake, said = ingest.lake, []

    def say(text: str) -> None:
        said.append(text)
        assert len(said) < 10
        for number in range(2):
            store(ingest, 100 * len(said) + number)

    store(ingest, 1)
    store(ingest, 2)
    tools = parquet_tools(lake)
    compact(RealDisk(), lake, tools, memory_bytes=MEMORY, grace_s=0, say=say)
    assert len(said) == 2  # spans and events, each once
    assert len(live_files(lake, "spans")) == 5
    assert len(rows(lake)) == 6


def test_a_collector_and_its_senders_go_on_while_a_lake_is_compacted(
    start: Any, post: Any, script: Any, tmp_path: Path
) -> None:
    lake = Lake(tmp_path / "lake")
    config = tmp_path / "collect.yaml"
    config.write_text(f"lake: {lake.root}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 0.03\n")
    collector = start("lightning-collect", "--config", str(config))
    stop = threading.Event()
    acknowledged: list[int] = []

    def send() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            request = ExportTraceServiceRequest()
            spans = request.resource_spans.add().scope_spans.add().spans
            spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n")
            if post(collector.url, "/v1/traces", request.SerializeToString()).status == 200:
                acknowledged.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(2):
            done = script("lightning-collect", "compact", "--lake", str(lake.root), "--grace-s", "0")
            assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        sender.join()
    assert "files (" in done.stdout
    assert collector.stop() == 0
    stored = [int(row["span_id"], 16) for row in rows(lake)]
    assert sorted(stored) == sorted(acknowledged) and len(stored) > 50
    assert len(live_files(lake, "spans")) < len(stored)
    assert scrub(lake).damage == []
