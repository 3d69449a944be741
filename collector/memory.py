"""Memory that conversion frees is kept for the next conversion instead of going back to the system.

Every segment needs the same tens of megabytes again: read, decode, encode. Given back and asked for anew, each
page is zeroed and faulted in once more, which cost a third of the collector's CPU time (30 to 44 thousand spans
a CPU-second on mixed spans). What the process holds is its peak either way, and the peak is bounded elsewhere.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 1 << 30


def share_one_pool() -> None:
    """Let Arrow use the C library's memory too, unless it was told otherwise. Before Arrow is loaded: Parquet's writer takes
    the pool that is there then (`pyarrow.set_memory_pool` comes too late for it, which cost 5% of the CPU time)."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def keep_freed_memory() -> None:
    """Tell the C library, where it is glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library: slower, and no less right
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_ARENA_MAX, 1)  # an arena a thread would keep its own peak each
