"""Which traces were deleted. Every reader leaves them out at once; ids only, nothing of their content.

    tombstones/2026-11-24.txt       one trace id (32 lower-case hex digits) a line

Reading side: who deletes writes whole files here.
"""

from __future__ import annotations

from otel_lightning.app.errors import StorageError
from otel_lightning.store.lake import Lake

TRACE_ID_DIGITS = 32


def deleted_traces(lake: Lake) -> frozenset[str]:
    """The ids of all deleted traces; empty when none ever was. StorageError when a file holds something else."""
    if not lake.tombstones.is_dir():
        return frozenset()
    found: set[str] = set()
    for path in sorted(lake.tombstones.glob("*.txt")):
        for line in path.read_text("ascii", errors="replace").split():
            if len(line) != TRACE_ID_DIGITS or not set(line) <= set("0123456789abcdef"):
                raise StorageError(f"{path}: holds a line that is no trace id; restore the file or remove that line")
            found.add(line)
    return frozenset(found)
