"""The manifest names what is live, is rebuilt when damaged, and never stops a reader without saying how to go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.app.errors import LightningError, StorageError
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import convert_segment, recover
from otel_lightning.collector.wal import Frame
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import DataFile, Entry, live_files, read_entries, write_entry
from otel_lightning.store.tombstones import deleted_traces


def _lake(folder: Path, segments: int = 2) -> Lake:
    disk, lake = RealDisk(), Lake(folder / "lake")
    wal = recover(disk, lake, ParquetConverter()).wal
    for number in range(segments):
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        spans.add(trace_id=b"\1" * 16, span_id=(number + 1).to_bytes(8, "big"), name="n")
        wal.append([Frame("spans", 1_795_000_000 * 10**9, wal.next_seq, 1, request.SerializeToString())])
        for segment in wal.seal():
            convert_segment(disk, lake, wal, segment, ParquetConverter())
    return lake


def test_an_entry_says_what_its_file_holds(tmp_path: Path) -> None:
    lake = _lake(tmp_path)
    entries = list(read_entries(RealDisk(), lake))
    assert [(entry.segment, entry.first_seq, entry.last_seq) for entry in entries] == [(1, 1, 1), (2, 2, 2)]
    for entry, path in zip(entries, live_files(lake, "spans"), strict=True):
        (file,) = entry.files
        data = path.read_bytes()
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert path.parent.name == "day=2026-11-18"
        footer = pq.read_metadata(path)
        assert footer.num_rows == file.rows == 1
        assert footer.metadata[b"lightning.schema_version"] == b"1"
        assert footer.metadata[b"lightning.segment"] == str(entry.segment).encode()
        assert footer.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.row(25)
@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"files": [{}]}'])
def test_a_lost_or_damaged_entry_is_rebuilt_from_its_files(tmp_path: Path, damage: bytes | None) -> None:
    lake = _lake(tmp_path)
    first = sorted(lake.manifest.iterdir())[0]
    before = list(read_entries(RealDisk(), lake))
    if damage is None:
        first.unlink()
    else:
        first.write_bytes(damage)
        with pytest.raises(StorageError, match="start lightning-collect"):
            list(read_entries(RealDisk(), lake))
    wal = recover(RealDisk(), lake, ParquetConverter()).wal
    after = list(read_entries(RealDisk(), lake))
    assert [entry.files for entry in after] == [entry.files for entry in before]
    assert (wal.next_seq, wal.seal()) == (3, [])


@pytest.mark.row(23)
@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_torn_data_file_without_entry_is_set_aside(tmp_path: Path, damage: bytes | None) -> None:
    lake = _lake(tmp_path)
    path = live_files(lake, "spans")[0]
    sorted(lake.manifest.iterdir())[0].unlink()
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    recovered = recover(RealDisk(), lake, ParquetConverter())
    assert recovered.set_aside == 1
    assert not path.exists()
    assert [file.name for file in live_files(lake, "spans")] == [f"{recovered.wal.collector_id}-00000002.parquet"]
    reason = json.loads(next(lake.quarantine.glob("*.reason.json")).read_text())
    assert "cannot be read" in reason["reason"]


def test_files_that_another_entry_replaces_are_not_live(tmp_path: Path) -> None:
    lake = _lake(tmp_path)
    old = list(read_entries(RealDisk(), lake))
    new = DataFile("spans", "spans/day=2026-11-18/merged.parquet", 2, "0" * 64)
    paths = tuple(file.path for entry in old for file in entry.files)
    write_entry(RealDisk(), lake, Entry(old[0].collector_id, 3, 1, 2, 0, (new,), replaces=paths))
    assert live_files(lake, "spans") == [lake.root / new.path]
    assert live_files(lake, "events") == []


def test_deleted_traces_are_ids_and_nothing_else(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert deleted_traces(lake) == frozenset()
    lake.tombstones.mkdir()
    (lake.tombstones / "2026-11-24.txt").write_text("ab" * 16 + "\n" + "cd" * 16 + "\n")
    assert deleted_traces(lake) == {"ab" * 16, "cd" * 16}
    (lake.tombstones / "2026-11-25.txt").write_text("not an id\n")
    with pytest.raises(StorageError, match="no trace id"):
        deleted_traces(lake)


def test_a_lake_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LightningError, match="no lake at"):
        Lake.existing(tmp_path / "none")
