"""Which Parquet files of a lake are live: one JSON file for each sealed segment of the write-ahead log.

    manifest/3f2a…-00000042.json
    {"collector_id": "3f2a…", "segment": 42, "first_seq": 9000, "last_seq": 9511, "wal_bytes": 812345,
     "files": [{"signal": "spans", "path": "spans/day=2026-11-22/3f2a…-00000042.parquet", "rows": 480, "sha256": "…"}]}

An entry appears whole, after the files it names are durable. A reader that lists the folder therefore
sees only complete files; a plain glob over the Parquet files by another tool is never wrong either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of one signal; `path` is relative to the lake."""

    signal: str
    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What one segment of one collector's log became."""

    collector_id: str
    segment: int
    first_seq: int
    last_seq: int
    wal_bytes: int
    files: tuple[DataFile, ...]

    @property
    def name(self) -> str:
        """The entry's file name without its ending; also the stem of its Parquet files."""
        return segment_name(self.collector_id, self.segment)


def segment_name(collector_id: str, segment: int) -> str:
    """The stem that a segment's Parquet files and manifest entry share."""
    return f"{collector_id}-{segment:08d}"


def write_entry(disk: Disk, lake: Lake, entry: Entry) -> None:
    """Make `entry` visible and durable in one step; the same entry again changes nothing."""
    final = lake.manifest / f"{entry.name}.json"
    temporary = lake.manifest / f".{entry.name}.json.tmp"
    disk.unlink(temporary)
    disk.append(temporary, (json.dumps(asdict(entry), sort_keys=True) + "\n").encode())
    disk.sync(temporary)
    disk.rename(temporary, final)
    disk.sync_folder(lake.manifest)


def read_entries(disk: Disk, lake: Lake) -> Iterator[Entry]:
    """Every entry, by file name; temporary files are not entries."""
    for name in disk.names(lake.manifest):
        if name.endswith(".json") and not name.startswith("."):
            yield parse_entry(disk.read(lake.manifest / name))


def parse_entry(data: bytes) -> Entry:
    """One entry from its JSON."""
    value = json.loads(data)
    files = tuple(DataFile(**file) for file in value.pop("files"))
    return Entry(**value, files=files)


def live_files(lake: Lake, signal: str) -> list[Path]:
    """Absolute paths of the live Parquet files of `signal`, oldest segment first."""
    from otel_lightning.store.fs import RealDisk

    found = [
        (entry.collector_id, entry.segment, lake.root / file.path)
        for entry in read_entries(RealDisk(), lake)
        for file in entry.files
        if file.signal == signal
    ]
    return [path for _, _, path in sorted(found)]
