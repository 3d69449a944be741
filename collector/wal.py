"""The write-ahead log: what is acknowledged is here, fsynced, until it is in Parquet.

    wal/collector.json        {"collector_id": "3f2a9c…"}: made once for a lake
    wal/00000042.wal          frames; the highest number is being written

    frame = length u32 | crc32c u32 | payload           crc over the payload
    payload = signal u8 | received_unix_nano u64 | first_seq u64 | rows u32 | body (OTLP protobuf)

A segment's number is never used again, and everything made from it bears that number, so doing the
conversion twice is the same as doing it once. A frame torn by a crash was never acknowledged: it and what
follows it is set aside with a reason, the frames before it count.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake

FRAME = struct.Struct("<II")
HEADER = struct.Struct("<BQQI")
SIGNAL_CODES = {"spans": 1, "events": 2, "metrics": 3}
SIGNAL_NAMES = {code: name for name, code in SIGNAL_CODES.items()}


@dataclass(frozen=True)
class Frame:
    """One acknowledged request: `body` is its OTLP protobuf, its rows are numbered from `first_seq`."""

    signal: str
    received_unix_nano: int
    first_seq: int
    rows: int
    body: bytes


def encode_frame(frame: Frame) -> bytes:
    """The bytes of `frame` as they stand in a segment."""
    header = HEADER.pack(SIGNAL_CODES[frame.signal], frame.received_unix_nano, frame.first_seq, frame.rows)
    crc = google_crc32c.extend(google_crc32c.value(header), frame.body)
    return FRAME.pack(len(header) + len(frame.body), crc) + header + frame.body


def decode_frames(data: bytes) -> tuple[list[Frame], int]:
    """The whole frames at the start of `data`, and how many bytes they take.

    Fewer bytes than `data` has means that the rest is torn or damaged.
    """
    frames: list[Frame] = []
    offset = 0
    while offset + FRAME.size <= len(data):
        length, crc = FRAME.unpack_from(data, offset)
        start = offset + FRAME.size
        payload = data[start : start + length]
        if len(payload) < length or length < HEADER.size or google_crc32c.value(payload) != crc:
            break
        code, received, first_seq, rows = HEADER.unpack_from(payload)
        if code not in SIGNAL_NAMES:
            break
        frames.append(Frame(SIGNAL_NAMES[code], received, first_seq, rows, payload[HEADER.size :]))
        offset = start + length
    return frames, offset


class Wal:
    """The log of one collector in one lake. Used by one writer thread; segments are read by another.

    Opening it makes the folders and the collector's id and finds the segments a crash left behind
    (`leftover`). A new segment is begun by the first append after `seal`.
    """

    def __init__(self, disk: Disk, lake: Lake, next_segment: int, next_seq: int) -> None:
        self.disk, self.lake = disk, lake
        self.collector_id = _collector_id(disk, lake)
        self.leftover = [number for number in self._numbers()]
        self.next_seq = next_seq
        self._segment = max([next_segment - 1, *self.leftover]) + 1
        self._length = 0
        self.began_unix_nano: int | None = None
        self.must_seal = False

    @property
    def bytes_in_segment(self) -> int:
        """Bytes of the segment being written; 0 when there is none."""
        return self._length

    def append(self, frames: list[Frame]) -> None:
        """Write `frames` and make them durable together; on return they may be acknowledged.

        OSError leaves the log as it was before: what was written of them is cut off again, and
        `must_seal` asks for a new segment, so that nothing ever follows a tail that failed.
        """
        data = b"".join(map(encode_frame, frames))
        path = self.path(self._segment)
        try:
            self.disk.append(path, data)
            self.disk.sync(path)
            if self._length == 0:
                self.disk.sync_folder(self.lake.wal)
        except OSError:
            self._drop_tail(path)
            raise
        if self._length == 0:
            self.began_unix_nano = frames[0].received_unix_nano
        self._length += len(data)

    def seal(self) -> int | None:
        """End the segment being written and return its number; None when it is empty."""
        if self._length == 0:
            return None
        number = self._segment
        self._segment += 1
        self._length, self.began_unix_nano, self.must_seal = 0, None, False
        return number

    def path(self, segment: int) -> Path:
        """Where a segment lies."""
        return self.lake.wal / f"{segment:08d}.wal"

    def _drop_tail(self, path: Path) -> None:
        # After a failed fsync the kernel may have dropped dirty pages and called them clean, so the
        # file is not trusted further: cut it to what is known to be durable and go on in a new one.
        try:
            if self._length:
                self.disk.truncate(path, self._length)
            else:
                self.disk.unlink(path)
        except OSError:
            pass  # the next reader stops at the damaged tail, which was never acknowledged
        if self._length == 0:
            self._segment += 1
        else:
            self.must_seal = True

    def _numbers(self) -> Iterator[int]:
        for name in self.disk.names(self.lake.wal):
            stem, _, ending = name.rpartition(".")
            if ending == "wal" and stem.isdecimal():
                yield int(stem)


def _collector_id(disk: Disk, lake: Lake) -> str:
    path = lake.wal / "collector.json"
    if "collector.json" in disk.names(lake.wal):
        return json.loads(disk.read(path))["collector_id"]
    disk.make_folder(lake.wal)
    collector_id = secrets.token_hex(8)
    temporary = lake.wal / ".collector.json.tmp"
    disk.unlink(temporary)
    disk.append(temporary, json.dumps({"collector_id": collector_id}).encode() + b"\n")
    disk.sync(temporary)
    disk.rename(temporary, path)
    disk.sync_folder(lake.wal)
    return collector_id
