"""Log segments that are in Parquet already and wait to be forwarded.

A segment stays in `wal/` until every target has it, or until a target's backlog is larger than its limit: then the
oldest is given up for that target, counted and said. A segment's manifest entry tells recovery that it is converted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otel_lightning.collector.erase import Refusal
from otel_lightning.collector.wal import Frame, decode_frames, encode_frames
from otel_lightning.store.fs import Disk, put_whole
from otel_lightning.store.lake import Lake

LOG = logging.getLogger("lightning-collect")


@dataclass
class _Segment:
    size: int
    waiting: set[str]


class Backlog:
    """Which segments wait for whom. Any thread; `limits` are bytes by target's name."""

    def __init__(self, disk: Disk, lake: Lake, marker: bytes, limits: Mapping[str, int]) -> None:
        self._disk, self._lake, self._marker, self._limits = disk, lake, marker, limits
        self._changed = threading.Condition()
        self._segments: dict[int, _Segment] = {}
        self.given_up: dict[str, int] = dict.fromkeys(limits, 0)  # segments
        self._complaining: set[str] = set()

    def add(self, segment: int) -> None:
        """A segment that was converted. One that is not there any more was set aside: nothing can be forwarded."""
        try:
            size = len(self._disk.read(self._path(segment)))
        except FileNotFoundError:
            return
        with self._changed:
            self._segments[segment] = _Segment(size, set(self._limits))
            for target, limit in self._limits.items():
                self._give_up(target, limit)
            self._changed.notify_all()

    def next(self, target: str, timeout_s: float) -> int | None:
        """The oldest segment that `target` does not have yet; None when there is none for `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._first(target) is not None, timeout_s)
            return self._first(target)

    def frames(self, segment: int) -> list[Frame]:
        """What is in a segment; nothing when it was given up meanwhile."""
        with self._changed:
            if segment not in self._segments:
                return []
            return decode_frames(self._disk.read(self._path(segment)), self._marker)[0]

    def finish(self, target: str, segment: int) -> None:
        """`target` has this segment, or will not take it."""
        with self._changed:
            self._finish(target, segment)

    def skip_to(self, target: str, segment: int) -> None:
        """`target` had everything before `segment` when the collector last ran."""
        with self._changed:
            for earlier in [number for number in self._segments if number < segment]:
                self._finish(target, earlier)

    def waiting_bytes(self, target: str) -> int:
        """How much `target` does not have yet."""
        with self._changed:
            return sum(segment.size for segment in self._segments.values() if target in segment.waiting)

    def erase(self, refusal: Refusal) -> None:
        """Take deleted traces out of every segment that waits."""
        with self._changed:
            for segment, known in self._segments.items():
                data = self._disk.read(self._path(segment))
                frames = decode_frames(data, self._marker)[0]
                left = b"".join(encode_frames(list(refusal.frames(frames)), self._marker))
                if left != data:
                    put_whole(self._disk, self._lake.wal, self._path(segment).name, left)
                    known.size = len(left)

    def _first(self, target: str) -> int | None:
        return min((number for number, segment in self._segments.items() if target in segment.waiting), default=None)

    def _finish(self, target: str, number: int) -> None:
        segment = self._segments.get(number)
        if segment is None:
            return
        segment.waiting.discard(target)
        if not segment.waiting:
            del self._segments[number]
            self._disk.unlink(self._path(number))
            self._disk.sync_folder(self._lake.wal)

    def _give_up(self, target: str, limit: int) -> None:
        while sum(s.size for s in self._segments.values() if target in s.waiting) > limit:
            oldest = self._first(target)
            assert oldest is not None
            self.given_up[target] += 1
            if target not in self._complaining:
                self._complaining.add(target)
                LOG.warning(
                    "more than %d bytes wait for %s; the oldest are not forwarded, they stay in the lake", limit, target
                )
            self._finish(target, oldest)
        if sum(s.size for s in self._segments.values() if target in s.waiting) * 2 < limit:
            self._complaining.discard(target)

    def _path(self, segment: int) -> Path:
        return self._lake.wal / f"{segment:08d}.wal"
