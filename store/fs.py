"""The seam to the disk for everything that must survive power loss.

The write-ahead log, the manifest and recovery touch the disk only through `Disk`, so that tests can run
the very same code on a simulated disk that loses power between any two operations.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Protocol

from otel_lightning.store.files import sync_folder

PIECES_AT_ONCE = 1024  # what Linux takes in one call (IOV_MAX)


class Disk(Protocol):
    """The file operations that durability is built from. Paths are absolute or relative to one root.

    Every method raises OSError as the operating system does.
    """

    def make_folder(self, path: Path) -> None:
        """Create `path` and its parents, durably; nothing happens if it exists."""
        ...

    def names(self, folder: Path) -> list[str]:
        """Sorted names in `folder`; empty if it does not exist."""
        ...

    def read(self, path: Path) -> bytes:
        """The whole file."""
        ...

    def lend(self, path: Path) -> bytes | memoryview:
        """The whole file, in memory that the next `lend` uses again: for large files read one after another."""
        ...

    def append(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        """Add `pieces` at the end of `path`, creating it if need be; not durable before `sync`."""
        ...

    def truncate(self, path: Path, length: int) -> None:
        """Cut `path` to `length` bytes."""
        ...

    def sync(self, path: Path) -> None:
        """Make the content of `path` durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step; durable after `sync_folder`."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove `path`; durable after `sync_folder`."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Make creations, renames and removals in `folder` durable."""
        ...


def put_whole(disk: Disk, folder: Path, name: str, content: bytes) -> None:
    """Put a file into `folder` so that, whatever happens, it is there whole or not at all; durable on return."""
    temporary = folder / f".{name}.tmp"
    disk.unlink(temporary)
    disk.append(temporary, content)
    disk.sync(temporary)
    disk.rename(temporary, folder / name)
    disk.sync_folder(folder)


class RealDisk:
    """The operating system's file system. Files are private to their owner (0600).

    The file appended to last stays open, since a write-ahead log appends to one file for long.
    Not thread-safe: one writer owns one RealDisk.
    """

    def __init__(self) -> None:
        self._open: tuple[Path, int] | None = None
        self._lent: mmap.mmap | bytearray = bytearray()

    def make_folder(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def lend(self, path: Path) -> memoryview:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(self._lent):
                # Not a bytearray: making one of 32 MiB zeroes it while every other thread of Python stands still, 13
                # to 50 ms on a busy machine. These pages come with the reading. A quarter more than asked, or each
                # segment would set a new record.
                self._lent = mmap.mmap(-1, size + size // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError, AttributeError):  # reading here and there in it, a tenth of the time
                    self._lent.madvise(mmap.MADV_HUGEPAGE)
            view, found = memoryview(self._lent)[:size], 0
            while found < size:
                got = file.readinto(view[found:])
                if not got:
                    break
                found += got
            return view[:found]

    def append(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        handle = self._handle(path)
        left = list(pieces)
        while left:
            written = os.writev(handle, left[:PIECES_AT_ONCE])
            done = 0
            while done < len(left) and written >= len(left[done]):
                written -= len(left[done])
                done += 1
            del left[:done]
            if written:  # a piece was cut short, as on a disk that fills up
                left[0] = memoryview(left[0])[written:]

    def truncate(self, path: Path, length: int) -> None:
        os.ftruncate(self._handle(path), length)

    def sync(self, path: Path) -> None:
        os.fdatasync(self._handle(path))

    def rename(self, source: Path, target: Path) -> None:
        self.close()
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        if self._open is not None and self._open[0] == path:
            self.close()
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        sync_folder(folder)

    def close(self) -> None:
        """Close the file kept open, if any."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _handle(self, path: Path) -> int:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return self._open[1]
