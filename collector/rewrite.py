"""Live files replaced by others while a collector may be adding new ones: the one way in which data files change.

    file of the new rows durable -> entry that `replaces` the old ones durable -> (grace) -> old files, old entries

Whoever crashes in between leaves either the old set or the new one live, never both and never none: readers follow
the entries. What a rewrite left unfinished is recognised by its stem and removed by the next one, or by the next start
of the collector (`recovery`). The same seam to the disk as the log's; how rows become bytes is the caller's business.

Everything here expects `maintenance(lake)`: one process at a time, and no collector starting meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from otel_lightning.app.errors import LightningError
from otel_lightning.collector.recovery import Content, Converter, Origin
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import Disk, RealDisk, put_whole
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import DataFile, Entry, live, read_entries, revision, rewrite_stem, write_entry

Live = tuple[Entry, DataFile]
Make = Callable[[Sequence[bytes], Origin], Content | None]


@dataclass(frozen=True, order=True)
class Drawer:
    """Where files may be merged with one another: one collector, one signal, one ingest day."""

    collector_id: str
    signal: str
    day: str


@contextmanager
def maintenance(lake: Lake) -> Iterator[None]:
    """Hold what changes data files that exist; waits for whoever holds it."""
    try:
        RealDisk().make_folder(lake.manifest)
        handle = os.open(lake.manifest / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_problem(lake.manifest, error) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def drawers(disk: Disk, lake: Lake) -> dict[Drawer, list[Live]]:
    """Every live file by where it lies, in the order of the log."""
    found: dict[Drawer, list[Live]] = {}
    for entry, file in live(read_entries(disk, lake)):
        day = file.path.split("/")[1].removeprefix("day=")
        found.setdefault(Drawer(entry.collector_id, file.signal, day), []).append((entry, file))
    return dict(sorted(found.items()))


def replace_files(
    disk: Disk,
    lake: Lake,
    drawer: Drawer,
    old: Sequence[Live],
    make: Make,
    now_unix_nano: int,
    *,
    verify: bool = True,
) -> Entry:
    """Let one file, or none, stand for the `old` ones of a drawer. `make` gets their bytes and gives the new one's.

    LightningError when an old file is not what its entry promises: then nothing is changed. Without `verify` old files
    are not opened and `make` gets no bytes.
    """
    contents = [_verified(disk, lake, file) for _, file in old] if verify else []
    number = 1 + max(revision(entry.name) for entry, _ in old)
    first = min(_first_segment(entry) for entry, _ in old)
    last = max(entry.segment for entry, _ in old)
    stem = rewrite_stem(drawer.collector_id, first, last, drawer.signal, number)
    taken = {entry.name for entry in read_entries(disk, lake)}
    while stem in taken:
        number += 1
        stem = rewrite_stem(drawer.collector_id, first, last, drawer.signal, number)
    origin = Origin(
        drawer.collector_id,
        last,
        min(entry.first_seq for entry, _ in old),
        max(entry.last_seq for entry, _ in old),
        stem,
        tuple(file.path for _, file in old),
    )
    content = make(contents, origin)
    files: tuple[DataFile, ...] = ()
    if content is not None:
        path = f"{drawer.signal}/day={drawer.day}/{stem}.parquet"
        put_whole(disk, lake.root / drawer.signal / f"day={drawer.day}", f"{stem}.parquet", content.data)
        files = (DataFile(drawer.signal, path, content.rows, hashlib.sha256(content.data).hexdigest()),)
    entry = Entry(
        origin.collector_id,
        origin.segment,
        origin.first_seq,
        origin.last_seq,
        wal_bytes=0,
        files=files,
        replaces=origin.replaces,
        stem=stem,
        written_unix_nano=now_unix_nano,
    )
    write_entry(disk, lake, entry)
    return entry


def remove_replaced(disk: Disk, lake: Lake, before_unix_nano: int) -> int:
    """Remove files that were replaced before a moment, then entries that say nothing any more; how many files went.

    A file goes before the entry that names it: one without an entry would be taken for one whose entry was lost.
    """
    entries = list(read_entries(disk, lake))
    due = {path for entry in entries if entry.written_unix_nano <= before_unix_nano for path in entry.replaces}
    named = {file.path for entry in entries for file in entry.files}
    removed = 0
    for folder in sorted({str(Path(path).parent) for path in due & named}):
        names = set(disk.names(lake.root / folder))
        gone = [path for path in due & named if str(Path(path).parent) == folder and Path(path).name in names]
        for path in sorted(gone):
            disk.unlink(lake.root / path)
        removed += len(gone)
        if gone:
            disk.sync_folder(lake.root / folder)
    # A segment whose log is still there (it waits to be forwarded) would be converted again without its entry.
    logs = {name for name in disk.names(lake.wal) if name.endswith(".wal")}
    entries = _drop_entries(
        disk, lake, entries, lambda entry: bool(entry.files) and due.issuperset(file.path for file in entry.files), logs
    )
    named = {file.path for entry in entries for file in entry.files}
    _drop_entries(disk, lake, entries, lambda entry: not entry.files and named.isdisjoint(entry.replaces), logs)
    return removed


def remove_unfinished(disk: Disk, lake: Lake, converter: Converter) -> None:
    """Remove what rewrites that were interrupted left behind: temporary files, and files that no entry names yet
    while all those they were made from are still there."""
    known = {entry.name for entry in read_entries(disk, lake)}
    for signal in SIGNALS:
        for day in disk.names(lake.signal(signal)):
            folder = lake.signal(signal) / day
            for name in disk.names(folder):
                stem = name.removeprefix(".").removesuffix(".tmp").removesuffix(".parquet")
                if not revision(stem):
                    continue
                if name.endswith(".tmp"):
                    disk.unlink(folder / name)
                elif stem not in known:
                    inspected = converter.inspect(disk.read(folder / name))
                    if inspected is not None and all(_exists(disk, lake, path) for path in inspected[0].replaces):
                        disk.unlink(folder / name)
                        disk.sync_folder(folder)


def _drop_entries(
    disk: Disk, lake: Lake, entries: list[Entry], says_nothing: Callable[[Entry], bool], logs: set[str]
) -> list[Entry]:
    """Remove entries, except each collector's highest: it keeps numbers from being given out again."""
    highest: dict[str, tuple[int, int, bool, str]] = {}
    for entry in entries:
        rank = (entry.segment, entry.last_seq, not says_nothing(entry), entry.name)
        highest[entry.collector_id] = max(highest.get(entry.collector_id, rank), rank)
    kept: list[Entry] = []
    for entry in entries:
        waits = not entry.stem and f"{entry.segment:08d}.wal" in logs
        if says_nothing(entry) and highest[entry.collector_id][3] != entry.name and not waits:
            disk.unlink(lake.manifest / f"{entry.name}.json")
        else:
            kept.append(entry)
    if len(kept) < len(entries):
        disk.sync_folder(lake.manifest)
    return kept


def _verified(disk: Disk, lake: Lake, file: DataFile) -> bytes:
    data = disk.read(lake.root / file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise LightningError(
            f"{lake.root / file.path}: is not what was written there; run lightning-collect check --lake {lake.root}"
        )
    return data


def _first_segment(entry: Entry) -> int:
    """The first segment whose rows an entry holds."""
    if not entry.stem:
        return entry.segment
    return int(entry.stem.removeprefix(f"{entry.collector_id}-").split("-")[0])


def _exists(disk: Disk, lake: Lake, path: str) -> bool:
    return Path(path).name in disk.names((lake.root / path).parent)
