"""The write-ahead log: what is acknowledged is here, fsynced, until it is in Parquet.

    wal/collector.json        {"collector_id": "3f2a9c…"}: made once for a lake
    wal/00000042.wal          frames; the highest number is being written

    frame = marker 8 bytes | length u32 | crc32c u32 | payload        crc over the payload
    payload = signal u8 | received_unix_nano u64 | first_seq u64 | rows u32 | body (OTLP protobuf)

The marker is the collector's id, random and never sent to anyone, so that reading can go on behind damage
at the next marker whose checksum holds: a bad byte costs its own frame and no other. A segment's number is
never used again, and everything made from it bears that number, so converting it twice is the same as once.

Non-goal: serving readers. Nothing but recovery and conversion reads these files.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from otel_lightning.collector.native import Bytes, crc32c, crc32c_behind
from otel_lightning.collector.quarantine import set_aside
from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake

MARKER_BYTES = 8
FRAME = struct.Struct("<8sII")
HEADER = struct.Struct("<BQQI")
SIGNAL_CODES = {"spans": 1, "events": 2, "metrics": 3}
SIGNAL_NAMES = {code: name for name, code in SIGNAL_CODES.items()}


@dataclass(frozen=True, slots=True)
class Frame:
    """One acknowledged request: `body` is its OTLP protobuf, its rows are numbered from `first_seq`.

    Read from a segment, the body is a view of the segment's bytes: nothing is copied on the way to columns.
    """

    signal: str
    received_unix_nano: int
    first_seq: int
    rows: int
    body: Bytes
    crc: int | None = field(default=None, compare=False)  # of the body, if it is known

    @property
    def last_seq(self) -> int:
        """The number of its last row."""
        return self.first_seq + self.rows - 1


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no whole frame: from `start` up to `end`."""

    start: int
    end: int


def encode_frames(frames: list[Frame], marker: bytes) -> list[Bytes]:
    """The bytes of `frames` as they stand in a segment, in pieces."""
    pieces: list[Bytes] = []
    for frame in frames:
        header = HEADER.pack(SIGNAL_CODES[frame.signal], frame.received_unix_nano, frame.first_seq, frame.rows)
        crc, known = crc32c(header), frame.crc
        joined = None if known is None else crc32c_behind(crc, known, len(frame.body))
        crc = crc32c(frame.body, crc) if joined is None else joined
        pieces += (FRAME.pack(marker, len(header) + len(frame.body), crc), header, frame.body)
    return pieces


def decode_frames(data: Bytes, marker: bytes) -> tuple[list[Frame], list[Damage]]:
    """The whole frames of a segment in order, and the stretches between them that are none."""
    frames: list[Frame] = []
    damages: list[Damage] = []
    offset = good = 0
    markers = re.compile(re.escape(marker))  # unlike find, it searches any kind of buffer
    while offset < len(data):
        found = _frame_at(data, offset, marker)
        if found is None:
            following = markers.search(data, offset + 1)
            offset = len(data) if following is None else following.start()
            continue
        if good < offset:
            damages.append(Damage(good, offset))
        frame, offset = found
        good = offset
        frames.append(frame)
    if good < len(data):
        damages.append(Damage(good, len(data)))
    return frames, damages


def _frame_at(data: Bytes, offset: int, marker: bytes) -> tuple[Frame, int] | None:
    start = offset + FRAME.size
    if start > len(data):
        return None
    found, length, crc = FRAME.unpack_from(data, offset)
    end = start + length
    if found != marker or length < HEADER.size or end > len(data):
        return None
    payload = memoryview(data)[start:end]
    if crc32c(payload) != crc:
        return None
    code, received, first_seq, rows = HEADER.unpack_from(payload)
    if code not in SIGNAL_NAMES:
        return None
    return Frame(SIGNAL_NAMES[code], received, first_seq, rows, payload[HEADER.size :]), end


class Wal:
    """The log of one collector in one lake. Used by one thread; sealed segments are read by another.

    Opening it finds or makes the collector's id and lists the segments that an earlier process left
    (`leftover`). Numbers of segments and rows start above those given and those found.
    """

    def __init__(self, disk: Disk, lake: Lake) -> None:
        self.disk, self.lake = disk, lake
        self.leftover = list(_numbers(disk, lake))
        self.collector_id = _collector_id(disk, lake)
        self.marker = bytes.fromhex(self.collector_id)
        self.next_seq = 1
        self.began_unix_nano: int | None = None
        self._segment = max(self.leftover, default=0) + 1
        self._path = self.path(self._segment)
        self._length = self._rows = 0
        self._sealed: list[int] = []

    @property
    def bytes_in_segment(self) -> int:
        """Bytes of the segment being written; 0 when there is none."""
        return self._length

    @property
    def rows_in_segment(self) -> int:
        """Rows of the segment being written."""
        return self._rows

    def skip_to(self, *, segment: int, seq: int) -> None:
        """Never hand out a segment number below `segment` or a row number below `seq` again."""
        self._segment, self.next_seq = max(self._segment, segment), max(self.next_seq, seq)

    def append(self, frames: list[Frame]) -> None:
        """Write `frames` and make them durable together; on return they may be acknowledged.

        OSError means that none of them may be. The segment they were meant for is closed: it is cut to what
        was durable before, and the next append begins a new file. After a failed fsync the kernel may call
        lost pages clean, so a second try on the same file proves nothing.
        """
        pieces = encode_frames(frames, self.marker)
        path = self._path if self._length else self.path(self._segment)
        # Numbers of frames that fail are used up too: a tail that could not be cut may reappear after a crash.
        self.next_seq = max(self.next_seq, frames[-1].last_seq + 1)
        try:
            self.disk.append(path, *pieces)
            self.disk.sync(path)
            if self._length == 0:
                self.disk.sync_folder(self.lake.wal)
        except OSError:
            self._abandon(path)
            raise
        if self._length == 0:
            self._path = path
            self.began_unix_nano = frames[0].received_unix_nano
        self._length += sum(map(len, pieces))
        self._rows += sum(frame.rows for frame in frames)

    def seal(self) -> list[int]:
        """End the segment being written; the numbers of all segments ended since the last call."""
        if self._length:
            self._close_segment()
        sealed, self._sealed = self._sealed, []
        return sealed

    def path(self, segment: int) -> Path:
        """Where a segment lies."""
        return self.lake.wal / f"{segment:08d}.wal"

    def _close_segment(self) -> None:
        self._sealed.append(self._segment)
        self._segment += 1
        self._length, self._rows, self.began_unix_nano = 0, 0, None

    def _abandon(self, path: Path) -> None:
        try:
            if self._length:
                self.disk.truncate(path, self._length)
            else:
                self.disk.unlink(path)
        except OSError:
            pass  # what stays behind was never acknowledged, and readers recognise torn frames
        if self._length:
            self._close_segment()
        else:
            self._segment += 1


def _numbers(disk: Disk, lake: Lake) -> Iterator[int]:
    for name in disk.names(lake.wal):
        stem, _, ending = name.rpartition(".")
        if ending == "wal" and stem.isdecimal():
            yield int(stem)


def _collector_id(disk: Disk, lake: Lake) -> str:
    path = lake.wal / "collector.json"
    if path.name in disk.names(lake.wal):
        data = disk.read(path)
        try:
            collector_id = json.loads(data)["collector_id"]
            if len(bytes.fromhex(collector_id)) == MARKER_BYTES:
                return collector_id
        except (ValueError, KeyError, TypeError):
            pass
        set_aside(
            disk, lake, path.name, data, "the collector's id cannot be read; it was taken from its log or made anew"
        )
    collector_id = _id_in_log(disk, lake) or secrets.token_hex(MARKER_BYTES)
    temporary = lake.wal / ".collector.json.tmp"
    disk.unlink(temporary)
    disk.append(temporary, json.dumps({"collector_id": collector_id}).encode() + b"\n")
    disk.sync(temporary)
    disk.rename(temporary, path)
    disk.sync_folder(lake.wal)
    return collector_id


def _id_in_log(disk: Disk, lake: Lake) -> str | None:
    for name in disk.names(lake.wal):
        if name.endswith(".wal"):
            data = disk.read(lake.wal / name)
            if _frame_at(data, 0, data[:MARKER_BYTES]) is not None:
                return data[:MARKER_BYTES].hex()
    return None
