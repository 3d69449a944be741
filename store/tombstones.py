"""What was deleted. Every reader leaves it out at once, and the collector refuses it when it is sent again.

    tombstones/2026-11-24.txt       one trace id (32 lower-case hex digits) a line
    tombstones/2026-11-24.sha256    one hash a line, of a name that only a deleted trace had (a response id, a session):
                                    feedback that names its target so is kept out without keeping the name

Ids and hashes only, nothing of what was said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from otel_lightning.app.errors import StorageError
from otel_lightning.store.files import disk_problem, write_whole
from otel_lightning.store.lake import Lake

TRACE_ID_DIGITS = 32
HASH_DIGITS = 64
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Deleted:
    """Ids of deleted traces, and hashes (`name_hash`) of names that only they had."""

    traces: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.traces)

    @cached_property
    def sha256(self) -> str:
        """The same for equal sets, another for any other."""
        return hashlib.sha256("\n".join([*sorted(self.traces), *sorted(self.names)]).encode()).hexdigest()


def name_hash(kind: str, name: str) -> str:
    """How a name of a deleted trace is remembered; `kind` is response, tool_call, rollout, session or conversation."""
    return hashlib.sha256(f"{kind}\0{name}".encode()).hexdigest()


def deleted_traces(lake: Lake) -> frozenset[str]:
    """The ids of all deleted traces; empty when none ever was. StorageError when a file holds something else."""
    return _lines(lake, ".txt", TRACE_ID_DIGITS)


def read_deleted(lake: Lake, bad_lines: list[str] | None = None) -> Deleted:
    """Everything that was deleted. StorageError when a file holds something else, unless `bad_lines` takes its places."""
    return Deleted(_lines(lake, ".txt", TRACE_ID_DIGITS, bad_lines), _lines(lake, ".sha256", HASH_DIGITS, bad_lines))


def bury(lake: Lake, traces: Iterable[str], names: Iterable[str] = ()) -> None:
    """Add trace ids and hashed names, durably; the same again changes nothing. Callers exclude one another."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    try:
        lake.tombstones.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise disk_problem(lake.tombstones, error) from None
    # Hashes first: where the id is, what belongs to it is known.
    for ending, new in ((".sha256", set(names)), (".txt", set(traces))):
        path = lake.tombstones / f"{day}{ending}"
        known = set(path.read_text("ascii").split()) if path.exists() else set()
        if not new <= known:
            write_whole(path, "".join(f"{line}\n" for line in sorted(known | new)).encode())


def _lines(lake: Lake, ending: str, digits: int, bad_lines: list[str] | None = None) -> frozenset[str]:
    if not lake.tombstones.is_dir():
        return frozenset()
    found: set[str] = set()
    for path in sorted(lake.tombstones.glob(f"*{ending}")):
        if path.name.startswith("."):
            continue
        for number, line in enumerate(path.read_text("ascii", errors="replace").split(), 1):
            if len(line) != digits or not set(line) <= HEX:
                if bad_lines is not None:
                    bad_lines.append(f"{path.name}:{number}")
                    continue
                kind = "trace id" if ending == ".txt" else "hash"
                raise StorageError(f"{path}: holds a line that is no {kind}; restore the file or remove that line")
            found.add(line)
    return frozenset(found)
