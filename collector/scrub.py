"""lightning-collect check: is everything on disk what was once written there, and what could not be read, and why.

Reads every live file, its hash, its pages' checksums and its rows, while a collector may be running. With `repair` a
damaged file is made again from its log segment if that is still there, and else set aside, so that readers go on
without it; nothing is ever deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from otel_lightning.collector.parquet import ParquetConverter, read_rows
from otel_lightning.collector.quarantine import set_aside
from otel_lightning.collector.recovery import Origin
from otel_lightning.collector.rewrite import maintenance
from otel_lightning.collector.wal import decode_frames
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk, put_whole
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import DataFile, Entry, live, parse_entry, write_entry
from otel_lightning.store.tombstones import read_deleted


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: where, what, and what to do."""

    path: str
    problem: str
    advice: str


@dataclass
class Scrubbed:
    """The state of a lake. `damage` must be acted on; the rest is for information."""

    files: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0))
    bytes: int = 0
    log_segments: int = 0
    replaced_files: int = 0
    deleted_traces: int = 0
    damage: list[Finding] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """One JSON document."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def scrub(lake: Lake, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
    """Look at everything. StorageError when the disk refuses."""
    try:
        return _scrub(lake, repair, progress)
    except OSError as error:
        raise disk_problem(lake.root, error) from None


def _scrub(lake: Lake, repair: bool, progress: Callable[[int, int], None] | None) -> Scrubbed:
    found = Scrubbed()
    entries = _entries(lake, found)
    files = live(entries)
    named = {file.path for entry in entries for file in entry.files}
    found.replaced_files = len(named) - len(files)
    for number, (entry, file) in enumerate(files):
        problem = _problem(lake, file)
        if problem is None:
            found.files += 1
            found.rows[file.signal] += file.rows
            found.bytes += (lake.root / file.path).stat().st_size
        elif not _is_live(lake, file):
            pass  # a compaction replaced it while we were looking
        elif repair:
            with maintenance(lake):
                found.repaired.append(_repair(lake, entry, file, problem))
        else:
            advice = f"run lightning-collect check --repair --lake {lake.root}"
            found.damage.append(Finding(file.path, problem, advice))
        if progress is not None:
            progress(number + 1, len(files))
    for signal in SIGNALS:
        for path in sorted(lake.signal(signal).glob("day=*/*.parquet")):
            relative = path.relative_to(lake.root).as_posix()
            # A file appears before its entry: what is younger than this may be on its way.
            if relative not in named and time.time() - path.stat().st_mtime > 60 and relative not in _named_now(lake):
                found.damage.append(
                    Finding(relative, "no manifest entry names it", "start lightning-collect on this lake once")
                )
    found.log_segments = len(list(lake.wal.glob("*.wal")))
    found.deleted_traces = len(read_deleted(lake).traces)
    for reason in sorted(lake.quarantine.glob("*.reason.json")):
        try:
            found.quarantine.append(json.loads(reason.read_text()))
        except (OSError, ValueError):
            found.quarantine.append(
                {"file": reason.name.removesuffix(".reason.json"), "reason": "its reason is unreadable"}
            )
    return found


def _entries(lake: Lake, found: Scrubbed) -> list[Entry]:
    entries: list[Entry] = []
    for path in sorted(lake.manifest.glob("*.json")):
        try:
            entries.append(parse_entry(path.read_bytes()))
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError):
            found.damage.append(
                Finding(f"manifest/{path.name}", "cannot be read", "start lightning-collect on this lake once; it rebuilds the entry")
            )  # fmt: skip
    return entries


def _problem(lake: Lake, file: DataFile) -> str | None:
    """What is wrong with a live file, or None."""
    import pyarrow as pa

    path = lake.root / file.path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({os.strerror(error.errno or 0)})"
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return "is not what was written: its sha256 differs from the manifest's"
    try:
        rows = read_rows(data).num_rows
    except (pa.ArrowException, OSError):
        return "cannot be decoded: its pages are damaged"
    return None if rows == file.rows else f"holds {rows} rows, the manifest says {file.rows}"


def _is_live(lake: Lake, file: DataFile) -> bool:
    return any(file.path == other.path for _, other in live(_entries(lake, Scrubbed())))


def _named_now(lake: Lake) -> set[str]:
    return {file.path for entry in _entries(lake, Scrubbed()) for file in entry.files}


def _repair(lake: Lake, entry: Entry, file: DataFile, problem: str) -> str:
    """Make a damaged file again from its log, or set it aside and let its entry go on without it."""
    disk, path = RealDisk(), lake.root / file.path
    log = lake.wal / f"{entry.segment:08d}.wal"
    if not entry.stem and log.exists():
        frames, _ = decode_frames(log.read_bytes(), bytes.fromhex(entry.collector_id))
        origin = Origin(entry.collector_id, entry.segment, entry.first_seq, entry.last_seq)
        made = ParquetConverter().convert(frames, origin).get(file.signal)
        if made is not None and hashlib.sha256(made.data).hexdigest() == file.sha256:
            put_whole(disk, path.parent, path.name, made.data)
            return f"{file.path} was made again from the log"
    if path.exists():
        why = f"this data file {problem}; its {file.rows} rows are lost unless a backup has them"
        set_aside(disk, lake, f"{file.signal}-{path.name}", path.read_bytes(), why)
    rest = tuple(other for other in entry.files if other.path != file.path)
    write_entry(disk, lake, Entry(**{**vars(entry), "files": rest}))
    disk.unlink(path)
    disk.sync_folder(path.parent)
    return f"{file.path} {problem}: set aside, {file.rows} rows are lost unless a backup has them"
