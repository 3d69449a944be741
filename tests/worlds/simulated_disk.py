"""A disk in memory that loses power: the `Disk` seam, with what a real one may do to unsynced data.

After `power_loss` a file has its durable bytes and any prefix of the rest, perhaps with a torn or zeroed
stretch in it; every unsynced creation, rename or removal in a folder has happened or not, each by itself.
A failed `sync` drops the unsynced bytes for good although reading still shows them, as Linux does.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path


class PowerLossError(Exception):
    """The machine is gone. Nothing of ours may catch this."""


class _File:
    __slots__ = ("cached", "durable", "lost")

    def __init__(self, content: bytes = b"") -> None:
        self.cached = self.durable = content
        self.lost: list[tuple[int, int]] = []


class SimulatedDisk:
    """Operations are counted; `power_fails_at` and `errors_at` name the ones that fail."""

    def __init__(
        self, chance: random.Random, power_fails_at: int | None = None, errors_at: dict[int, int] | None = None
    ) -> None:
        self.chance, self.power_fails_at, self.errors_at = chance, power_fails_at, errors_at or {}
        self.operations = 0
        self.folders: set[str] = set()
        self._cached: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}

    # The seam

    def make_folder(self, path: Path) -> None:
        if str(path) not in self.folders:
            self._tick()
            self.folders.add(str(path))

    def names(self, folder: Path) -> list[str]:
        inside = f"{folder}/"
        cut = len(inside)
        files = {name[cut:] for name in self._cached if name.startswith(inside)}
        folders = {name[cut:] for name in self.folders if name.startswith(inside)}
        return sorted(name for name in files | folders if "/" not in name)

    def read(self, path: Path) -> bytes:
        return self._file(path).cached

    def lend(self, path: Path) -> bytes:
        return self.read(path)

    def append(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        name, data = str(path), b"".join(pieces)
        file = self._cached.setdefault(name, _File())
        try:
            self._tick()
        except (PowerLossError, OSError):
            # A write that fails half way has written any prefix.
            file.cached += data[: self.chance.randrange(len(data) + 1)]
            raise
        file.cached += data

    def truncate(self, path: Path, length: int) -> None:
        file = self._file(path)
        self._tick()
        file.cached = file.cached[:length]

    def sync(self, path: Path) -> None:
        file = self._file(path)
        try:
            self._tick()
        except OSError:
            file.lost.append((len(file.durable), len(file.cached)))
            raise
        file.durable = file.cached
        for start, end in file.lost:
            file.durable = file.durable[:start] + bytes(end - start) + file.durable[end:]

    def rename(self, source: Path, target: Path) -> None:
        self._file(source)
        self._tick()
        self._cached[str(target)] = self._cached.pop(str(source))

    def unlink(self, path: Path) -> None:
        if str(path) in self._cached:
            self._tick()
            del self._cached[str(path)]

    def sync_folder(self, folder: Path) -> None:
        self._tick()
        inside = f"{folder}/"
        for name in [name for name in self._durable if name.startswith(inside) and name not in self._cached]:
            del self._durable[name]
        self._durable.update({name: file for name, file in self._cached.items() if name.startswith(inside)})

    # What happens to it

    def power_loss(self) -> SimulatedDisk:
        """The disk as it may look when the machine comes back."""
        chance = self.chance
        after = SimulatedDisk(chance)
        after.folders = set(self.folders)
        names = dict(self._durable)
        for name in sorted(self._cached.keys() | self._durable.keys()):
            if self._cached.get(name) is not self._durable.get(name) and chance.random() < 0.5:
                if name in self._cached:
                    names[name] = self._cached[name]
                else:
                    names.pop(name, None)
        for name, file in names.items():
            kept = _File(self._content_after(file))
            after._cached[name] = after._durable[name] = kept
        return after

    def _content_after(self, file: _File) -> bytes:
        durable, cached = file.durable, file.cached
        if durable == cached or not cached.startswith(durable):
            return durable
        content = cached[: self.chance.randrange(len(durable), len(cached) + 1)]
        if len(content) > len(durable) and self.chance.random() < 0.3:
            start = self.chance.randrange(len(durable), len(content))
            end = self.chance.randrange(start, len(content)) + 1
            filler = bytes(end - start) if self.chance.random() < 0.5 else self.chance.randbytes(end - start)
            content = content[:start] + filler + content[end:]
        return content

    def _file(self, path: Path) -> _File:
        try:
            return self._cached[str(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None

    def _tick(self) -> None:
        self.operations += 1
        if self.operations == self.power_fails_at:
            raise PowerLossError
        if self.operations in self.errors_at:
            raise OSError(self.errors_at[self.operations], "simulated")
