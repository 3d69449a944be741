"""Compaction, deletion and the end of a retention on a disk that loses power anywhere, between lives of a collector.

The real code over the byte-copying converter: some segments are stored, files are merged or emptied, the power goes at
some operation, the collector starts again, the next compaction finishes. Planted mistakes show that the test can fail.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from simulated_disk import PowerLossError, SimulatedDisk

from otel_lightning.collector import rewrite
from otel_lightning.collector.compact import Tools, compact
from otel_lightning.collector.recovery import Content, Origin, convert_segment, recover
from otel_lightning.collector.rewrite import drawers, remove_replaced, remove_unfinished, replace_files
from otel_lightning.collector.wal import Frame
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live, read_entries

LAKE = Lake(Path("/lake"))
BEGAN_UNIX_NANO = 1_795_000_000_000_000_000
SEEDS, MORE_SEEDS = 600, 30_000
SEEDS_PER_PLANTED_MISTAKE = 2_000


class CopyingConverter:
    """Rows as JSON lines behind a line that names their origin."""

    def convert(self, frames: Sequence[Frame], origin: Origin) -> dict[str, Content]:
        found: dict[str, list[str]] = {}
        for frame in frames:
            found.setdefault(frame.signal, []).append(f"{frame.first_seq} {bytes(frame.body).decode()}")
        return {signal: _content(rows, origin) for signal, rows in found.items()}

    def inspect(self, data: bytes) -> tuple[Origin, int] | None:
        lines = data.decode(errors="replace").split("\n")
        if lines[-1] != "end":
            return None
        named = json.loads(lines[0])
        return Origin(**{**named, "replaces": tuple(named["replaces"])}), len(lines) - 2


def _content(rows: list[str], origin: Origin) -> Content:
    return Content("\n".join([json.dumps(vars(origin)), *rows, "end"]).encode(), len(rows))


def _merge(signal: str, done: object) -> Callable[[Sequence[bytes], Origin], Content]:
    def make(contents: Sequence[bytes], origin: Origin) -> Content:
        return _content([row for data in contents for row in data.decode().split("\n")[1:-1]], origin)

    return make


CONVERTER = CopyingConverter()
TOOLS = Tools(CONVERTER, _merge, lambda item: 1, lambda lake: nullcontext())


def _compact(disk: SimulatedDisk, chance: random.Random) -> None:
    compact(disk, LAKE, TOOLS, memory_bytes=chance.choice((4, 10)), grace_s=0, wait=lambda seconds: None)


def _empty_a_drawer(disk: SimulatedDisk, chance: random.Random) -> None:
    """The end of a retention: the oldest day goes."""
    remove_unfinished(disk, LAKE, CONVERTER)
    for drawer, files in drawers(disk, LAKE).items():
        if drawer.day == "2026-11-18":
            replace_files(disk, LAKE, drawer, files, lambda contents, origin: None, 1)
    remove_replaced(disk, LAKE, 1 << 62)


def _store(disk: SimulatedDisk, numbers: Iterator[int], segments: int, sent: dict[str, str]) -> None:
    wal = recover(disk, LAKE, CONVERTER).wal
    for _ in range(segments):
        number = next(numbers)
        day = BEGAN_UNIX_NANO + (number % 2) * 86_400 * 10**9
        frames = [Frame("events" if number % 3 == 0 else "spans", day, wal.next_seq, 1, f"row{number}".encode())]
        wal.append(frames)
        sent[f"row{number}"] = "2026-11-18" if number % 2 == 0 else "2026-11-19"
        for segment in wal.seal():
            convert_segment(disk, LAKE, wal, segment, CONVERTER)


def _rows(disk: SimulatedDisk) -> list[str]:
    """What readers see."""
    rows: list[str] = []
    for _, file in live(read_entries(disk, LAKE)):
        data = disk.read(LAKE.root / file.path)
        inspected = CONVERTER.inspect(data)
        assert inspected is not None and inspected[1] == file.rows, "a live file is torn"
        rows += [row.partition(" ")[2] for row in data.decode().split("\n")[1:-1]]
    return rows


def _again(disk: SimulatedDisk, chance: random.Random, fails_at: int | None) -> SimulatedDisk:
    lost = disk.power_loss()
    after = type(disk)(chance, power_fails_at=fails_at)
    after.__dict__.update(
        {k: v for k, v in vars(lost).items() if k not in ("operations", "power_fails_at", "errors_at")}
    )
    return after


def run_seed(seed: int, disk_class: type[SimulatedDisk] = SimulatedDisk) -> None:
    """One lake; AssertionError when a promise is broken."""
    chance = random.Random(seed)
    disk = disk_class(chance)
    sent: dict[str, str] = {}
    numbers = itertools.count(1)
    _store(disk, numbers, chance.randrange(2, 8), sent)
    retired = False
    for _ in range(3):
        retire = chance.random() < 0.15
        retired |= retire
        disk = _again(disk, chance, None)
        disk.operations, disk.power_fails_at = 0, chance.randrange(1, 60)
        before = set(sent)
        try:
            (_empty_a_drawer if retire else _compact)(disk, chance)
            if chance.random() < 0.5:
                _store(disk, numbers, 1, sent)
        except PowerLossError:
            pass
        for name in set(sent) - before:  # stored while the power could go: judged by the log's own test
            del sent[name]
        disk = _again(disk, chance, None)
        if chance.random() < 0.7:
            recover(disk, LAKE, CONVERTER)
        rows = _rows(disk)
        kept = {name for name, day in sent.items() if not retired or day != "2026-11-18"}
        assert len(rows) == len(set(rows)), "a row is there twice"
        assert kept <= set(rows), f"lost {sorted(kept - set(rows))[:3]}"
    recover(disk, LAKE, CONVERTER)
    _compact(disk, random.Random(0))
    rows = _rows(disk)
    assert len(rows) == len(set(rows)) and kept <= set(rows)
    named = {file.path for entry in read_entries(disk, LAKE) for file in entry.files}
    files = {
        f"{signal}/{day}/{name}"
        for signal in ("spans", "events")
        for day in disk.names(LAKE.signal(signal))
        for name in disk.names(LAKE.signal(signal) / day)
    }
    assert files == named, "a plain glob sees other files than the manifest names"
    highest = max(entry.segment for entry in read_entries(disk, LAKE))
    wal = recover(disk, LAKE, CONVERTER).wal
    wal.append([Frame("spans", BEGAN_UNIX_NANO, wal.next_seq, 1, b"last")])
    assert wal.seal()[0] > highest, "a segment's number is given out again"


@pytest.mark.row(4)
@pytest.mark.parametrize(
    "seeds", [range(SEEDS), pytest.param(range(SEEDS, MORE_SEEDS), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_whenever_the_power_goes_the_old_files_are_live_or_the_new_one_never_both(seeds: range) -> None:
    for seed in seeds:
        try:
            run_seed(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def _forgets(operation: str, part: str) -> type[SimulatedDisk]:
    class Forgetful(SimulatedDisk):
        pass

    real = getattr(SimulatedDisk, operation)

    def call(self: SimulatedDisk, path: Path, *rest: object) -> None:
        if part not in f"{path}/" or "-r" not in str(path) + "-r" * (operation == "sync_folder"):
            real(self, path, *rest)

    setattr(Forgetful, operation, call)
    return Forgetful


@pytest.mark.parametrize(
    "mistake",
    {"merged files not fsynced": ("sync", "/spans/"), "their folder not fsynced": ("sync_folder", "/spans/")}.items(),
    ids=lambda item: item[0],
)
def test_a_forgotten_fsync_is_caught(mistake: tuple[str, tuple[str, str]]) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed, _forgets(*mistake[1]))


def test_old_files_that_go_before_the_new_entry_is_durable_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rewrite.put_whole

    def put(disk: SimulatedDisk, folder: Path, name: str, content: bytes) -> None:
        inspected = CONVERTER.inspect(content)
        real(disk, folder, name, content)
        for path in inspected[0].replaces if inspected else ():
            disk.unlink(LAKE.root / path)

    monkeypatch.setattr(rewrite, "put_whole", put)
    with pytest.raises((AssertionError, FileNotFoundError)):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed)


def test_entries_that_go_before_their_files_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rewrite.remove_replaced

    def remove(disk: SimulatedDisk, lake: Lake, before_unix_nano: int) -> int:
        entries = list(read_entries(disk, lake))
        replaced = {path for entry in entries for path in entry.replaces}
        for entry in entries:
            if entry.files and replaced.issuperset(file.path for file in entry.files):
                disk.unlink(lake.manifest / f"{entry.name}.json")
        disk.sync_folder(lake.manifest)
        return real(disk, lake, before_unix_nano)

    monkeypatch.setattr("otel_lightning.collector.compact.remove_replaced", remove)
    with pytest.raises((AssertionError, FileNotFoundError)):
        for seed in range(SEEDS_PER_PLANTED_MISTAKE):
            run_seed(seed)
