"""Which Parquet files of a lake are live: one JSON file for each sealed segment of the write-ahead log.

    manifest/3f2a…-00000042.json
    {"collector_id": "3f2a…", "segment": 42, "first_seq": 9000, "last_seq": 9511, "wal_bytes": 812345, "replaces": [],
     "files": [{"signal": "spans", "path": "spans/day=2026-11-22/3f2a…-00000042.parquet", "rows": 480, "sha256": "…"}]}

A compaction, a deletion or the end of a retention adds an entry that `replaces` files of earlier ones; it carries a
`stem` of its own. From the moment it appears the replaced files are not live; they and their entries go afterwards.

An entry appears whole, after the files it names are durable. A reader that lists the folder therefore sees
only complete files; a plain glob over the Parquet files by another tool is never wrong about what exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from otel_lightning.app.errors import StorageError
from otel_lightning.store.fs import Disk, RealDisk
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
    """What one segment of one collector's log became. `replaces` names files (by path) that it stands for."""

    collector_id: str
    segment: int
    first_seq: int
    last_seq: int
    wal_bytes: int
    files: tuple[DataFile, ...]
    replaces: tuple[str, ...] = ()
    stem: str = ""
    written_unix_nano: int = 0  # of entries that replace others: from when the replaced files may go

    @property
    def name(self) -> str:
        """The entry's file name without its ending; also the stem of its Parquet files."""
        return self.stem or segment_name(self.collector_id, self.segment)


def segment_name(collector_id: str, segment: int) -> str:
    """The stem that a segment's Parquet files and manifest entry share."""
    return f"{collector_id}-{segment:08d}"


def rewrite_stem(collector_id: str, first: int, last: int, signal: str, number: int) -> str:
    """The stem of a file that stands for files of the segments `first` to `last`; `number` tells rewrites apart."""
    return f"{collector_id}-{first:08d}-{last:08d}-{signal}-r{number}"


def revision(stem: str) -> int:
    """How often what lies under `stem` was rewritten: 0 for a segment's own file."""
    head, _, number = stem.rpartition("-r")
    return int(number) if head and number.isdecimal() else 0


def write_entry(disk: Disk, lake: Lake, entry: Entry) -> None:
    """Make `entry` visible and durable in one step; the same entry again changes nothing."""
    final = lake.manifest / f"{entry.name}.json"
    temporary = lake.manifest / f".{entry.name}.json.tmp"
    disk.unlink(temporary)
    disk.append(
        temporary,
        (json.dumps(vars(entry) | {"files": [vars(file) for file in entry.files]}, sort_keys=True) + "\n").encode(),
    )
    disk.sync(temporary)
    disk.rename(temporary, final)
    disk.sync_folder(lake.manifest)


def read_entries(disk: Disk, lake: Lake) -> Iterator[Entry]:
    """Every entry, by file name. StorageError in one line when one cannot be read."""
    while True:
        try:
            names = [name for name in disk.names(lake.manifest) if name.endswith(".json") and not name.startswith(".")]
            contents = [(name, disk.read(lake.manifest / name)) for name in names]
        except FileNotFoundError:
            continue  # replaced since the folder was listed: what replaced it is in the next listing
        break
    for name, data in contents:
        try:
            yield parse_entry(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StorageError(
                f"{lake.manifest / name}: is damaged; start lightning-collect on this lake once, it rebuilds the entry"
            ) from None


def parse_entry(data: bytes) -> Entry:
    """One entry from its JSON; ValueError, KeyError, TypeError or AttributeError when it is none."""
    value = json.loads(data)
    files = tuple(DataFile(**file) for file in value.pop("files"))
    return Entry(**value | {"files": files, "replaces": tuple(value.get("replaces", ()))})


def live(entries: Iterable[Entry]) -> list[tuple[Entry, DataFile]]:
    """The files that no entry replaces, each with its entry, by collector and segment."""
    ordered = sorted(entries, key=lambda entry: (entry.collector_id, entry.segment, entry.first_seq, entry.name))
    replaced = {path for entry in ordered for path in entry.replaces}
    return [(entry, file) for entry in ordered for file in entry.files if file.path not in replaced]


def sources(entries: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    """For each file that stands for others: which."""
    return {file.path: entry.replaces for entry in entries if entry.replaces for file in entry.files}


def live_files(lake: Lake, signal: str) -> list[Path]:
    """Absolute paths of the live Parquet files of `signal`, by collector and segment."""
    return [lake.root / file.path for _, file in live(read_entries(RealDisk(), lake)) if file.signal == signal]
