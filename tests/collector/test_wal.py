"""Damage to the log costs the damaged frame and no other, wherever it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector import wal as wal_module
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import convert_segment, recover
from otel_lightning.collector.wal import FRAME, Frame, decode_frames
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake


def encode_frames(frames: list[Frame], marker: bytes) -> bytes:
    return b"".join(wal_module.encode_frames(frames, marker))


MARKER = bytes(range(200, 208))
FRAMES = [Frame("spans", 7, 1 + 3 * i, 3, f"request {i} ".encode() * (i + 1)) for i in range(6)]
DATA = encode_frames(FRAMES, MARKER)
STARTS = [len(encode_frames(FRAMES[:i], MARKER)) for i in range(len(FRAMES) + 1)]


def test_what_was_written_is_read() -> None:
    assert decode_frames(DATA, MARKER) == (FRAMES, [])
    assert decode_frames(b"", MARKER) == ([], [])


@pytest.mark.row(20)
def test_a_log_cut_anywhere_keeps_its_whole_frames() -> None:
    for cut in range(len(DATA)):
        frames, damages = decode_frames(DATA[:cut], MARKER)
        whole = sum(start <= cut for start in STARTS) - 1
        assert frames == FRAMES[:whole]
        assert bool(damages) == (cut not in STARTS)


@pytest.mark.row(21)
def test_a_byte_flipped_anywhere_costs_its_own_frame_only() -> None:
    for at in range(len(DATA)):
        damaged = DATA[:at] + bytes([DATA[at] ^ 0x55]) + DATA[at + 1 :]
        hit = sum(start <= at for start in STARTS) - 1
        frames, damages = decode_frames(damaged, MARKER)
        assert frames == FRAMES[:hit] + FRAMES[hit + 1 :]
        assert [(d.start, d.end) for d in damages] == [(STARTS[hit], STARTS[hit + 1])]


@pytest.mark.row(22)
@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 - 1])
def test_a_wrong_length_is_never_believed(length: int) -> None:
    at = STARTS[2] + len(MARKER)
    damaged = DATA[:at] + struct.pack("<I", length) + DATA[at + 4 :]
    frames, damages = decode_frames(damaged, MARKER)
    assert frames == FRAMES[:2] + FRAMES[3:]
    assert len(damages) == 1


def test_a_frame_inside_a_body_is_not_taken_for_one() -> None:
    """A sender may put anything into a text; without the log's own marker it is never read as a frame."""
    forged = encode_frames([Frame("spans", 1, 1, 1, b"forged")], bytes(8))
    frames = [Frame("spans", 7, 1, 1, b"before " + forged + b" after"), FRAMES[0]]
    data = bytearray(encode_frames(frames, MARKER))
    data[FRAME.size + 30] ^= 1
    assert decode_frames(bytes(data), MARKER)[0] == [FRAMES[0]]


def test_damage_is_set_aside_with_its_reason_and_the_rest_becomes_rows(tmp_path: Path) -> None:
    disk, lake = RealDisk(), Lake(tmp_path / "lake")
    wal = recover(disk, lake, ParquetConverter()).wal
    frames = [Frame("spans", 10**18, i + 1, 1, _span(i)) for i in range(3)]
    wal.append(frames)
    (segment,) = wal.seal()
    path = wal.path(segment)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    entry = convert_segment(disk, lake, wal, segment, ParquetConverter())
    assert [file.rows for file in entry.files] == [2]
    assert (entry.first_seq, entry.last_seq) == (1, 3)
    names = sorted(path.name for path in lake.quarantine.iterdir())
    assert len(names) == 2 and names[1] == names[0] + ".reason.json"
    assert '"reason"' in (lake.quarantine / names[1]).read_text()


def test_a_request_that_cannot_become_rows_is_set_aside_alone(tmp_path: Path) -> None:
    disk, lake = RealDisk(), Lake(tmp_path / "lake")
    wal = recover(disk, lake, ParquetConverter()).wal
    wal.append(
        [
            Frame("spans", 10**18, 1, 1, _span(0)),
            Frame("spans", 10**18, 2, 1, b"\xff"),
            Frame("spans", 10**18, 3, 1, _span(1)),
        ]
    )
    (segment,) = wal.seal()
    entry = convert_segment(disk, lake, wal, segment, ParquetConverter())
    assert [file.rows for file in entry.files] == [2]
    aside = sorted(path.name for path in lake.quarantine.iterdir())
    assert [name.endswith(".spans.pb") for name in aside] == [True, False]
    assert (lake.quarantine / aside[0]).read_bytes() == b"\xff"


@pytest.mark.row(11)
def test_a_lost_collector_id_is_read_from_the_log(tmp_path: Path) -> None:
    disk, lake = RealDisk(), Lake(tmp_path / "lake")
    wal = recover(disk, lake, ParquetConverter()).wal
    wal.append([Frame("spans", 10**18, 1, 1, _span(0))])
    (lake.wal / "collector.json").write_bytes(b"\0\0\0")
    again = recover(RealDisk(), lake, ParquetConverter())
    assert again.wal.collector_id == wal.collector_id
    assert (again.segments, again.rows, again.wal.next_seq) == (1, 1, 2)


@pytest.mark.row(23)
def test_an_empty_segment_and_a_foreign_file_do_not_stop_the_start(tmp_path: Path) -> None:
    disk, lake = RealDisk(), Lake(tmp_path / "lake")
    recover(disk, lake, ParquetConverter())
    (lake.wal / "00000007.wal").write_bytes(b"")
    (lake.wal / "notes.txt").write_text("hello")
    wal = recover(RealDisk(), lake, ParquetConverter()).wal
    wal.append([Frame("spans", 10**18, wal.next_seq, 1, _span(0))])
    assert wal.seal() == [8]


def _span(number: int) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=(number + 1).to_bytes(8, "big"), name="n" * 40)
    return request.SerializeToString()
