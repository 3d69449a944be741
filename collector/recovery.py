"""Sealed segments to Parquet, and start-up after any crash. One function does both, so that recovery is no
special case: converting a segment again gives the same files under the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from otel_lightning.collector.wal import Frame, Wal, decode_frames
from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import DataFile, Entry, read_entries, segment_name, write_entry

# frames, collector_id -> {signal: (file bytes, rows)}; the real one writes Parquet, tests may copy bytes
Converter = Callable[[Sequence[Frame], str], dict[str, tuple[bytes, int]]]


@dataclass(frozen=True)
class Recovered:
    """The log, ready to be written to, and what start-up found: segments converted, damaged tails set aside."""

    wal: Wal
    segments: int
    rows: int
    quarantined: int


def recover(disk: Disk, lake: Lake, convert: Converter) -> Recovered:
    """Open the log of `lake` and finish every segment that a crash left unconverted."""
    for folder in (
        lake.root,
        lake.wal,
        lake.manifest,
        lake.quarantine,
        *(lake.signal(name) for name in SIGNALS),
    ):
        disk.make_folder(folder)
    _sweep(disk, lake.wal)
    _sweep(disk, lake.manifest)
    entries = list(read_entries(disk, lake))
    wal = Wal(
        disk,
        lake,
        next_segment=max((entry.segment for entry in entries), default=0) + 1,
        next_seq=max((entry.last_seq for entry in entries), default=0) + 1,
    )
    done = {entry.segment for entry in entries if entry.collector_id == wal.collector_id}
    segments = rows = quarantined = 0
    for segment in wal.leftover:
        if segment in done:
            _remove(disk, lake, wal.path(segment))
            continue
        before = len(disk.names(lake.quarantine))
        entry = convert_segment(disk, lake, wal, segment, convert)
        quarantined += len(disk.names(lake.quarantine)) > before
        if entry is not None:
            segments += 1
            rows += sum(file.rows for file in entry.files)
            wal.next_seq = max(wal.next_seq, entry.last_seq + 1)
    return Recovered(wal, segments, rows, quarantined)


def convert_segment(disk: Disk, lake: Lake, wal: Wal, segment: int, convert: Converter) -> Entry | None:
    """Turn one sealed segment into Parquet files and a manifest entry, then remove it.

    Returns the entry, or None when the segment held no whole frame. Safe to interrupt anywhere and repeat.
    """
    path = wal.path(segment)
    data = disk.read(path)
    frames, length = decode_frames(data)
    name = segment_name(wal.collector_id, segment)
    if length < len(data):
        _set_aside(disk, lake, name, data[length:], length)
    if not frames:
        _remove(disk, lake, path)
        return None
    # The day is that of our clock when the segment began, so that a repeat lands in the same folder.
    day = datetime.fromtimestamp(frames[0].received_unix_nano / 1e9, UTC).strftime("%Y-%m-%d")
    files = []
    for signal, (content, rows) in sorted(convert(frames, wal.collector_id).items()):
        folder = lake.signal(signal) / f"day={day}"
        disk.make_folder(folder)
        _write_file(disk, folder, f"{name}.parquet", content)
        relative = (folder / f"{name}.parquet").relative_to(lake.root).as_posix()
        files.append(DataFile(signal, relative, rows, hashlib.sha256(content).hexdigest()))
    last = frames[-1]
    entry = Entry(
        collector_id=wal.collector_id,
        segment=segment,
        first_seq=frames[0].first_seq,
        last_seq=last.first_seq + last.rows - 1,
        wal_bytes=sum(len(frame.body) for frame in frames),
        files=tuple(files),
    )
    write_entry(disk, lake, entry)
    _remove(disk, lake, path)
    return entry


def _set_aside(disk: Disk, lake: Lake, name: str, tail: bytes, offset: int) -> None:
    """Keep a damaged tail and the reason beside it. The reason goes last: with it the pair is complete."""
    reason = {
        "what": "end of a write-ahead log segment that does not check out",
        "why": "length or checksum of the next frame is wrong, as after a crash during a write",
        "segment": name,
        "offset": offset,
        "bytes": len(tail),
    }
    _write_file(disk, lake.quarantine, f"{name}.tail", tail)
    _write_file(disk, lake.quarantine, f"{name}.json", (json.dumps(reason, indent=2) + "\n").encode())


def _write_file(disk: Disk, folder: Path, name: str, content: bytes) -> None:
    temporary = folder / f".{name}.tmp"
    disk.unlink(temporary)
    disk.append(temporary, content)
    disk.sync(temporary)
    disk.rename(temporary, folder / name)
    disk.sync_folder(folder)


def _remove(disk: Disk, lake: Lake, path: Path) -> None:
    disk.unlink(path)
    disk.sync_folder(lake.wal)


def _sweep(disk: Disk, folder: Path) -> None:
    for name in disk.names(folder):
        if name.endswith(".tmp"):
            disk.unlink(folder / name)
