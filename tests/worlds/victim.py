"""A lake whose collector is killed and whose disk errs, tools that may be missing, and the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import convert_segment, recover
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import read_entries

WORLDS = Path(__file__).parent
DRIVER = WORLDS / "ingest_driver.py"


def needed(program: str, package: str) -> str:
    """Where `program` is; the test is skipped with the package to install when it is nowhere."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: install the package '{package}'")
    return found


@dataclass
class Victim:
    """A lake, and what its senders were told."""

    lake: Path
    told: Path
    sent: int = 0

    def command(self, count: int, *more: str) -> list[str]:
        """The driver, sending numbers that were never sent before."""
        first, self.sent = self.sent + 1, self.sent + count
        return [sys.executable, str(DRIVER), str(self.lake), str(self.told), str(first), str(count), *more]

    def run(
        self, *before: str, count: int = 6, more: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*before, *self.command(count, *more)]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)

    def acknowledged(self) -> set[int]:
        return {int(line) for line in self.told.read_text().split()} if self.told.exists() else set()

    def recount(self) -> list[int]:
        """Recover once more, without faults, and read the lake as readers do: acked ⊆ stored ⊆ sent, no one twice."""
        lake, disk = Lake(self.lake), RealDisk()
        wal = recover(disk, lake, ParquetConverter()).wal
        for segment in wal.seal():
            convert_segment(disk, lake, wal, segment, ParquetConverter())
        stored: list[int] = []
        named = set()
        for entry in read_entries(disk, lake):
            for file in entry.files:
                table = pq.read_table(lake.root / file.path, page_checksum_verification=True)
                assert table.num_rows == file.rows
                stored += [int(span_id, 16) for span_id in table["span_id"].to_pylist()]
                named.add(file.path)
        on_disk = {path.relative_to(lake.root).as_posix() for path in lake.root.glob("spans/*/*")}
        assert on_disk == named, "a plain glob sees other files than the manifest names"
        assert not [path for path in lake.wal.iterdir() if path.suffix in (".wal", ".tmp")]
        assert len(stored) == len(set(stored)), "stored twice"
        assert set(stored) <= set(range(1, self.sent + 1)), "rows that nobody sent"
        assert self.acknowledged() <= set(stored), f"lost {sorted(self.acknowledged() - set(stored))}"
        return sorted(stored)
