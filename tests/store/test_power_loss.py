"""The real log, manifest and recovery on a disk that loses power anywhere, three times in a row, and errs.

Each seed is one life of a collector: requests are appended in groups and acknowledged, segments roll, the
power goes at some operation, recovery is interrupted too, and at the end the lake is read as readers do.
Twenty thousand lives pass with a byte-copying converter in place of Parquet, everything else as in production;
three hundred with Parquet itself. The planted mistakes below show that the test can fail. `make soak` lives a
million and twenty thousand lives; a seed that fails is added to REMEMBERED.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from simulated_disk import PowerLossError, SimulatedDisk

from otel_lightning.collector import recovery
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import Content, Origin, convert_segment, recover
from otel_lightning.collector.wal import Frame, Wal
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import read_entries

LAKE = Lake(Path("/lake"))
SEEDS = 20_000
PARQUET_SEEDS = 300
SOAK_SEEDS = int(os.environ.get("SOAK_SEEDS", "1000000"))
SOAK_PARQUET_SEEDS = int(os.environ.get("SOAK_PARQUET_SEEDS", "20000"))
REMEMBERED: tuple[int, ...] = ()
SEEDS_PER_PLANTED_MISTAKE = 3_000
BEGAN_UNIX_NANO = 1_795_000_000_000_000_000


class CopyingConverter:
    """Rows as JSON lines behind a line that names their origin."""

    def convert(self, frames: Sequence[Frame], origin: Origin) -> dict[str, Content]:
        found: dict[str, list[str]] = {}
        for frame in frames:
            found.setdefault(frame.signal, []).extend(
                f"{frame.first_seq + row} {bytes(frame.body).decode()}/{row}" for row in range(frame.rows)
            )
        head = json.dumps(vars(origin))
        return {signal: Content("\n".join([head, *rows, "end"]).encode(), len(rows)) for signal, rows in found.items()}

    def inspect(self, data: bytes) -> tuple[Origin, int] | None:
        lines = data.decode(errors="replace").split("\n")
        if lines[-1] != "end":
            return None
        return Origin(**json.loads(lines[0])), len(lines) - 2

    def body(self, signal: str, name: str, rows: int) -> bytes:
        """A request whose rows are called `name`/0, `name`/1, …"""
        return name.encode()

    def rows(self, signal: str, data: bytes) -> list[tuple[int, str]]:
        """(seq, name) of each row of a file; AssertionError when it is not whole."""
        assert data.endswith(b"\nend"), "a live file is torn"
        found = [line.split(" ") for line in data.decode().split("\n")[1:-1]]
        return [(int(seq), name) for seq, name in found]


class RealConverter(ParquetConverter):
    """Parquet as in production, with requests to feed it and a reader."""

    def body(self, signal: str, name: str, rows: int) -> bytes:
        if signal == "events":
            logs = ExportLogsServiceRequest()
            records = logs.resource_logs.add().scope_logs.add().log_records
            for row in range(rows):
                records.add(event_name=f"{name}/{row}")
            return logs.SerializeToString()
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        for row in range(rows):
            spans.add(trace_id=b"\1" * 16, span_id=(row + 1).to_bytes(8, "big"), name=f"{name}/{row}")
        return request.SerializeToString()

    def rows(self, signal: str, data: bytes) -> list[tuple[int, str]]:
        name = "name" if signal == "spans" else "event_name"
        table = pq.read_table(
            pa.BufferReader(data), columns=["seq", name], page_checksum_verification=True, use_threads=False
        )
        return list(zip(table["seq"].to_pylist(), table[name].to_pylist(), strict=True))


CONVERTER = CopyingConverter()
AnyConverter = CopyingConverter | RealConverter


@dataclass
class Life:
    """What the senders know: what they sent, and what they were told is safe."""

    converter: AnyConverter

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    number: int = 0


def _live(disk: SimulatedDisk, wal: Wal, life: Life, chance: random.Random, groups: int) -> None:
    """Take `groups` groups of requests, rolling now and then; errors of the disk are survived as in production."""
    waiting: list[int] = []
    for _ in range(groups):
        frames: list[Frame] = []
        rows: set[str] = set()
        seq = wal.next_seq
        for _ in range(chance.choice((1, 1, 2, 3))):
            life.number += 1
            name, count = f"request{life.number}", chance.choice((1, 1, 3))
            signal = "events" if life.number % 4 == 0 else "spans"
            body = life.converter.body(signal, name, count)
            frames.append(Frame(signal, BEGAN_UNIX_NANO + life.number, seq, count, body))
            rows |= {f"{name}/{row}" for row in range(count)}
            seq += count
        life.sent |= rows
        try:
            wal.append(frames)
            life.acknowledged |= rows
        except OSError:
            waiting += wal.seal()
        if chance.random() < 0.3:
            waiting += wal.seal()
        while waiting:
            try:
                convert_segment(disk, LAKE, wal, waiting[0], life.converter)
            except OSError:
                break
            waiting.pop(0)


def _rows_by_manifest(disk: SimulatedDisk, converter: AnyConverter) -> dict[int, str]:
    """What readers see, by seq: every file named is there, whole and as long as promised."""
    rows: dict[int, str] = {}
    for entry in read_entries(disk, LAKE):
        for file in entry.files:
            data = disk.read(LAKE.root / file.path)
            found = converter.rows(file.signal, data)
            assert len(found) == file.rows
            for seq, row in found:
                assert seq not in rows, f"seq {seq} was given out twice"
                assert entry.first_seq <= seq <= entry.last_seq
                rows[seq] = row
    return rows


def _files(disk: SimulatedDisk) -> set[str]:
    found: set[str] = set()
    for signal in SIGNALS:
        for day in disk.names(LAKE.signal(signal)):
            found.update(f"{signal}/{day}/{name}" for name in disk.names(LAKE.signal(signal) / day))
    return found


def run_seed(seed: int, disk_class: type[SimulatedDisk] = SimulatedDisk, converter: AnyConverter = CONVERTER) -> None:
    """One life; AssertionError when a promise is broken."""
    chance = random.Random(seed)
    errors = {}
    if chance.random() < 0.3:
        start, length = chance.randrange(18, 60), chance.choice((1, 1, 2, 6))
        errors = {start + i: chance.choice((errno.EIO, errno.ENOSPC)) for i in range(length)}
    disk = disk_class(chance, power_fails_at=chance.randrange(1, 75), errors_at=errors)
    life = Life(converter)
    try:
        wal = recover(disk, LAKE, converter).wal
        _live(disk, wal, life, chance, groups=6)
    except (PowerLossError, OSError):
        pass  # an error while starting ends the process in one line; the next start tries again
    for more in (True, True, False):
        lost = disk.power_loss()
        disk = disk_class(chance, power_fails_at=chance.randrange(1, 14) if more else None)
        disk.__dict__.update(
            {k: v for k, v in vars(lost).items() if k not in ("operations", "power_fails_at", "errors_at")}
        )
        try:
            wal = recover(disk, LAKE, converter).wal
            break
        except PowerLossError:
            continue

    disk.power_fails_at = None
    first = _rows_by_manifest(disk, converter)
    _live(disk, wal, life, chance, groups=2)
    for segment in wal.seal():
        convert_segment(disk, LAKE, wal, segment, converter)
    rows = _rows_by_manifest(disk, converter)
    stored = list(rows.values())
    assert life.acknowledged <= set(stored), f"lost {sorted(life.acknowledged - set(stored))[:3]}"
    assert len(stored) == len(set(stored)), "stored twice"
    assert set(stored) <= life.sent, "rows that nobody sent"
    later = rows.keys() - first.keys()
    assert not first or not later or max(first) < min(later), "seq does not rise"
    named = {file.path for entry in read_entries(disk, LAKE) for file in entry.files}
    assert _files(disk) == named, "a plain glob sees other files than the manifest names"
    assert not [name for name in disk.names(LAKE.wal) if name.endswith(".wal")]


@pytest.mark.row(3, 5, 6, 7, 11)
def test_nothing_acknowledged_is_lost_or_doubled_whenever_the_power_goes() -> None:
    live_through((*REMEMBERED, *range(SEEDS)), CONVERTER)


@pytest.mark.row(3, 5, 6)
def test_nor_with_parquet_itself() -> None:
    live_through(range(PARQUET_SEEDS), RealConverter())


@pytest.mark.soak
@pytest.mark.row(6)
def test_a_million_lives() -> None:
    live_through(range(SEEDS, SOAK_SEEDS), CONVERTER)


@pytest.mark.soak
@pytest.mark.row(6)
def test_twenty_thousand_lives_with_parquet_itself() -> None:
    live_through(range(PARQUET_SEEDS, SOAK_PARQUET_SEEDS), RealConverter())


def live_through(seeds: Iterable[int], converter: AnyConverter) -> None:
    for seed in seeds:
        try:
            run_seed(seed, converter=converter)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def _forgets(operation: str, part: str, *, ending: str = "") -> type[SimulatedDisk]:
    """A disk class on which one kind of call does nothing: as if our code had left it out."""

    class Forgetful(SimulatedDisk):
        pass

    real = getattr(SimulatedDisk, operation)

    def call(self: SimulatedDisk, path: Path, *rest: object) -> None:
        if f"/{part}" in f"{path}/" and str(path).endswith(ending):
            return
        real(self, path, *rest)

    setattr(Forgetful, operation, call)
    return Forgetful


CAUGHT = {
    "log not fsynced": _forgets("sync", "wal/", ending=".wal"),
    "folder of the log not fsynced": _forgets("sync_folder", "wal/"),
    "data files not fsynced": _forgets("sync", "spans/", ending=".tmp"),
    "folder of data files not fsynced": _forgets("sync_folder", "spans/"),
}
# A lost or damaged entry is rebuilt from its data files, and a tail left in the log is recognised by its
# checksums: a second line of defence, of which this is the proof.
SURVIVED = {
    "manifest entry not fsynced": _forgets("sync", "manifest/", ending=".tmp"),
    "folder of the manifest not fsynced": _forgets("sync_folder", "manifest/"),
    "failed tail not cut off the log": _forgets("truncate", "wal/"),
}


@pytest.mark.row(6, 7)
@pytest.mark.parametrize("mistake", CAUGHT)
def test_a_forgotten_fsync_is_caught(mistake: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed, CAUGHT[mistake])


@pytest.mark.parametrize("mistake", SURVIVED)
def test_what_the_second_line_of_defence_covers_is_survived(mistake: str) -> None:
    for seed in range(500):
        run_seed(seed, SURVIVED[mistake])


class _TriesAgain(SimulatedDisk):
    def sync(self, path: Path) -> None:
        try:
            super().sync(path)
        except OSError:
            super().sync(path)


@pytest.mark.row(15)
def test_a_second_fsync_after_one_that_failed_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"lost|torn"):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed, _TriesAgain)


def test_a_file_name_that_is_not_the_segments_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = itertools.count()
    real = recovery.put_whole

    def write(disk: SimulatedDisk, folder: Path, name: str, content: bytes) -> None:
        real(disk, folder, f"{next(fresh)}-{name}", content)

    monkeypatch.setattr(recovery, "put_whole", write)
    with pytest.raises((AssertionError, FileNotFoundError)):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed)


def test_a_log_removed_before_its_entry_is_durable_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_file(disk: SimulatedDisk, folder: Path, name: str, content: bytes) -> None:
        for segment in [n for n in disk.names(LAKE.wal) if n.endswith(".wal")][:1]:
            disk.unlink(LAKE.wal / segment)
        real(disk, folder, name, content)

    real = recovery.put_whole
    monkeypatch.setattr(recovery, "put_whole", write_file)
    with pytest.raises(AssertionError):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed)
