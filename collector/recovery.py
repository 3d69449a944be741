"""Sealed segments to Parquet, and start-up after any crash. One function does both, so that recovery is no
special case: converting a segment again gives the same files under the same names.

The order that nothing may change: data files durable, manifest entry durable, segment removed. What the
bytes of a data file are is the converter's business; a test may copy bytes where the real one writes Parquet.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from otel_lightning.collector.quarantine import set_aside, set_aside_file
from otel_lightning.collector.wal import Frame, Wal, decode_frames
from otel_lightning.store.fs import Disk, put_whole
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import DataFile, Entry, parse_entry, revision, segment_name, write_entry

UNREAD_ROWS = 1 << 32  # more than a segment can hold, few enough to leave a billion such gaps


@dataclass(frozen=True)
class Origin:
    """The stretch of a log that a data file was made from; written into the file, so that it can be found again.

    A file made from other data files has the last of their segments, a stem of its own and names what it replaces.
    """

    collector_id: str
    segment: int
    first_seq: int
    last_seq: int
    stem: str = ""
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """One data file: its bytes and how many rows they hold."""

    data: bytes
    rows: int


class Converter(Protocol):
    """Turns frames into data files. Equal frames and origin give equal files."""

    def convert(self, frames: Sequence[Frame], origin: Origin) -> dict[str, Content]:
        """A file for each signal that has rows."""
        ...

    def inspect(self, data: bytes) -> tuple[Origin, int] | None:
        """Where a data file came from and its rows; None when it cannot be read."""
        ...


@dataclass(frozen=True)
class Recovered:
    """The log, ready to be written to, and what start-up did."""

    wal: Wal
    segments: int
    rows: int
    set_aside: int
    logs: tuple[int, ...] = ()  # segments that are converted and were kept


def recover(disk: Disk, lake: Lake, converter: Converter, *, keep_logs: bool = False) -> Recovered:
    """Open the log of `lake` and finish everything a crash left unfinished. Needs no human, may be interrupted.

    With `keep_logs` segments stay after they are converted, for whoever else wants them.
    """
    for folder in (lake.root, lake.wal, lake.manifest, *(lake.signal(name) for name in SIGNALS)):
        disk.make_folder(folder)
    before = len(disk.names(lake.quarantine))
    for folder in (lake.wal, lake.manifest, lake.quarantine):
        _sweep(disk, folder)
    wal = Wal(disk, lake)
    entries = {entry.name: entry for entry in _entries(disk, lake)}
    found = _data_files(disk, lake)
    waiting = {segment_name(wal.collector_id, segment) for segment in wal.leftover}
    replaced = {path for entry in entries.values() for path in entry.replaces}
    for entry in _adopt(disk, lake, converter, found, known=entries.keys() | waiting, replaced=replaced):
        entries[entry.name] = entry
    for entry in entries.values():
        wal.skip_to(segment=entry.segment + 1, seq=entry.last_seq + 1)
    segments = rows = 0
    logs: list[int] = []
    for segment in wal.leftover:
        name = segment_name(wal.collector_id, segment)
        if keep_logs:
            logs.append(segment)
        if name in entries:
            if not keep_logs:
                _remove(disk, lake, wal.path(segment))
            continue
        earlier = [path for _, path in found.get(name, ())]
        entry = convert_segment(
            disk, lake, wal, segment, converter, earlier, unread_rows=UNREAD_ROWS, keep_log=keep_logs
        )
        wal.skip_to(segment=segment + 1, seq=entry.last_seq + 1)
        segments += 1
        rows += sum(file.rows for file in entry.files)
    aside = (len(disk.names(lake.quarantine)) - before + 1) // 2
    return Recovered(wal, segments, rows, aside, tuple(logs))


def convert_segment(
    disk: Disk,
    lake: Lake,
    wal: Wal,
    segment: int,
    converter: Converter,
    earlier: Sequence[Path] = (),
    *,
    unread_rows: int = 0,
    keep_log: bool = False,
) -> Entry:
    """Turn one sealed segment into data files and a manifest entry, then remove it (unless `keep_log`).

    `earlier` are files that an interrupted attempt left; those that this one does not write again go. (A tail
    that was never acknowledged may have been in the log then, in memory only, and be gone now.)
    Safe to interrupt anywhere and to repeat. OSError when the disk refuses; the segment is then still there.
    What cannot be read or converted is set aside with its reason, alone; of a segment that the disk does not give
    back nobody knows how many rows it numbered, so `unread_rows` numbers are left out.
    """
    path = wal.path(segment)
    name = segment_name(wal.collector_id, segment)
    try:
        data = disk.lend(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return _unreadable(disk, lake, wal, segment, unread_rows)
    frames, damages = decode_frames(data, wal.marker)
    for damage in damages:
        why = "no whole frame is here: length or checksum is wrong, as after a crash during a write or a failing disk"
        set_aside(disk, lake, f"{name}-{damage.start}.frame", data[damage.start : damage.end], why)
    origin = Origin(
        wal.collector_id,
        segment,
        first_seq=min((frame.first_seq for frame in frames), default=0),
        last_seq=max((frame.last_seq for frame in frames), default=0),
    )
    # The day is that of our clock when the segment began, so that a repeat lands in the same folder.
    began = frames[0].received_unix_nano if frames else 0
    day = datetime.fromtimestamp(began // 1_000_000_000, UTC).strftime("%Y-%m-%d")
    files: list[DataFile] = []
    for signal, content in sorted(_contents(disk, lake, name, frames, origin, converter).items()):
        folder = lake.signal(signal) / f"day={day}"
        disk.make_folder(folder)
        put_whole(disk, folder, f"{name}.parquet", content.data)
        relative = f"{signal}/day={day}/{name}.parquet"
        files.append(DataFile(signal, relative, content.rows, hashlib.sha256(content.data).hexdigest()))
    written = {file.path for file in files}
    for stale in earlier:
        if stale.relative_to(lake.root).as_posix() not in written:
            disk.unlink(stale)
            disk.sync_folder(stale.parent)
    # Also without files: the entry keeps the segment's number from being used again.
    entry = Entry(
        collector_id=origin.collector_id,
        segment=segment,
        first_seq=origin.first_seq,
        last_seq=origin.last_seq,
        wal_bytes=sum(len(frame.body) for frame in frames),
        files=tuple(files),
    )
    write_entry(disk, lake, entry)
    if not keep_log:
        _remove(disk, lake, path)
    return entry


def _unreadable(disk: Disk, lake: Lake, wal: Wal, segment: int, unread_rows: int) -> Entry:
    """A segment on a broken stretch of disk is moved out of the way as it is: no start may hang on it for ever."""
    name = segment_name(wal.collector_id, segment)
    set_aside_file(disk, lake, wal.path(segment), f"{name}.wal", "the disk does not give this log segment back (EIO)")
    last_seq = wal.next_seq - 1 + unread_rows
    entry = Entry(wal.collector_id, segment, first_seq=last_seq, last_seq=last_seq, wal_bytes=0, files=())
    write_entry(disk, lake, entry)
    return entry


def _contents(
    disk: Disk, lake: Lake, name: str, frames: list[Frame], origin: Origin, converter: Converter
) -> dict[str, Content]:
    try:
        return converter.convert(frames, origin)
    except (OSError, MemoryError):
        raise
    except Exception:
        # One request that the converter cannot digest must neither stop the others nor be lost.
        good = [frame for frame in frames if _converts(disk, lake, name, frame, origin, converter)]
        return converter.convert(good, origin)


def _converts(disk: Disk, lake: Lake, name: str, frame: Frame, origin: Origin, converter: Converter) -> bool:
    try:
        converter.convert([frame], origin)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        why = f"this OTLP {frame.signal} request could not be turned into rows ({type(error).__name__})"
        set_aside(disk, lake, f"{name}-seq{frame.first_seq}.{frame.signal}.pb", frame.body, why)
        return False
    return True


def _entries(disk: Disk, lake: Lake) -> Iterator[Entry]:
    for name in disk.names(lake.manifest):
        if not name.endswith(".json") or name.startswith("."):
            continue
        data = disk.read(lake.manifest / name)
        try:
            yield parse_entry(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            set_aside(disk, lake, f"manifest-{name}", data, "this manifest entry cannot be read; it was rebuilt")
            disk.unlink(lake.manifest / name)
            disk.sync_folder(lake.manifest)


_Found = dict[str, list[tuple[str, Path]]]


def _data_files(disk: Disk, lake: Lake) -> _Found:
    """Every data file of the lake by its stem, with its signal. Temporary files are swept away."""
    found: _Found = {}
    for signal in SIGNALS:
        for day in disk.names(lake.signal(signal)):
            folder = lake.signal(signal) / day
            _sweep(disk, folder)
            for name in disk.names(folder):
                stem, _, ending = name.rpartition(".")
                if ending == "parquet":
                    found.setdefault(stem, []).append((signal, folder / name))
    return found


def _adopt(
    disk: Disk, lake: Lake, converter: Converter, found: _Found, known: set[str], replaced: set[str]
) -> Iterator[Entry]:
    """Entries for data files that no entry names and no segment will rewrite: their entry was lost.

    Files made from other files come first: while all of those are there, making the new one was not finished and it
    goes; else it stands for them. What is replaced needs no entry and goes.
    """
    lost: list[tuple[str, Entry]] = []
    for stem, paths in found.items():
        if stem not in known:
            entry = _rebuilt(disk, lake, converter, paths)
            if entry is not None and entry.name == stem:
                lost.append((stem, entry))
    there = {path.relative_to(lake.root).as_posix() for paths in found.values() for _, path in paths}
    for _, entry in sorted(lost, key=lambda item: (not item[1].replaces, revision(item[0]), item[0])):
        if entry.replaces:
            if there.issuperset(entry.replaces) or not replaced.isdisjoint(entry.replaces):
                _remove_files(disk, lake, entry)
                continue
            replaced.update(entry.replaces)
        elif replaced.issuperset(file.path for file in entry.files):
            _remove_files(disk, lake, entry)
            continue
        write_entry(disk, lake, entry)
        yield entry


def _remove_files(disk: Disk, lake: Lake, entry: Entry) -> None:
    for file in entry.files:
        disk.unlink(lake.root / file.path)
        disk.sync_folder((lake.root / file.path).parent)


def _rebuilt(disk: Disk, lake: Lake, converter: Converter, paths: list[tuple[str, Path]]) -> Entry | None:
    origin: Origin | None = None
    files: list[DataFile] = []
    for signal, path in paths:
        data = disk.read(path)
        inspected = converter.inspect(data)
        if inspected is None:
            set_aside(
                disk, lake, f"{signal}-{path.name}", data, "this data file cannot be read and no log holds its rows"
            )
            disk.unlink(path)
            disk.sync_folder(path.parent)
            continue
        origin, rows = inspected
        relative = path.relative_to(lake.root).as_posix()
        files.append(DataFile(signal, relative, rows, hashlib.sha256(data).hexdigest()))
    if origin is None:
        return None
    return Entry(
        origin.collector_id,
        origin.segment,
        origin.first_seq,
        origin.last_seq,
        wal_bytes=0,
        files=tuple(files),
        replaces=origin.replaces,
        stem=origin.stem,
    )


def _remove(disk: Disk, lake: Lake, path: Path) -> None:
    disk.unlink(path)
    disk.sync_folder(lake.wal)


def _sweep(disk: Disk, folder: Path) -> None:
    for name in disk.names(folder):
        if name.endswith(".tmp"):
            disk.unlink(folder / name)
