"""lightning-collect retain: what arrived more than some days ago leaves the lake, a whole ingest day at a time.

Spans, events, metrics and what lies in quarantine. What was derived from them stays until its own retention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.rewrite import drawers, maintenance, remove_replaced, remove_unfinished, replace_files
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import SIGNALS, Lake


@dataclass
class Retained:
    """What left."""

    before: str
    files: int = 0
    rows: int = 0
    quarantined: int = 0


def retain(
    lake: Lake, days: int, *, grace_s: float, today: date | None = None, wait: Callable[[float], None] = time.sleep
) -> Retained:
    """Keep the last `days` whole ingest days beside today's. Safe to interrupt anywhere and to repeat."""
    today = today or datetime.now(UTC).date()
    done = Retained((today - timedelta(days=days)).isoformat())
    disk = RealDisk()
    try:
        with maintenance(lake):
            remove_unfinished(disk, lake, ParquetConverter())
            for drawer, files in drawers(disk, lake).items():
                if drawer.day < done.before:
                    replace_files(
                        disk, lake, drawer, files, lambda contents, origin: None, time.time_ns(), verify=False
                    )
                    done.files += len(files)
                    done.rows += sum(file.rows for _, file in files)
        if done.files:
            wait(grace_s)
        with maintenance(lake):
            remove_replaced(disk, lake, time.time_ns() - int(grace_s * 1e9))
        for signal in SIGNALS:
            for folder in sorted(lake.signal(signal).glob("day=*")):
                if folder.name.removeprefix("day=") < done.before and not any(folder.iterdir()):
                    folder.rmdir()
        limit = datetime.fromisoformat(done.before).replace(tzinfo=UTC).timestamp()
        for path in sorted(lake.quarantine.glob("*")):
            if path.stat().st_mtime < limit:
                path.unlink()
                done.quarantined += not path.name.endswith(".reason.json")
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    return done
