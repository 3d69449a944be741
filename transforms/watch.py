"""Keep `derived/` up to date: look now and then, run when there is something to do, stop when told.

There is something to do when a file arrived, when something was deleted, or when an episode that was not over has been quiet
for long enough. Looking is cheap: a list of file names. Nothing is lost by a stop at any moment, a run is repeated whole.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from otel_lightning.app.errors import LightningError
from otel_lightning.store.lake import Lake
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import TransformReport, run_transform
from otel_lightning.transforms.tables import open_tables

BUSY = "another lightning-transform"
POLL_S = 1.0


class StatusLine:
    """What the last run did: one line that is rewritten on a terminal, a line for each run elsewhere."""

    def __init__(self, lake: Path) -> None:
        self._live = sys.stdout.isatty()
        self._put(f"watching {lake}")

    def say(self, report: TransformReport) -> None:
        self._put(f"{time.strftime('%H:%M:%S')} {report.summary}")

    def _put(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print()


class _Stop(BaseException):
    """SIGTERM or Ctrl-C."""


def watch(
    lake: Path, config: TransformConfig, *, say: Callable[[TransformReport], None], poll_s: float = POLL_S
) -> int:
    """Run until SIGTERM or Ctrl-C, calling `say` after each run; returns how many runs there were.

    LightningError as for a run; while another run holds the lake this one waits for it.
    """
    home = Lake.existing(lake)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:  # a second one finds us on the way out
            stopped = True
            raise _Stop

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    runs, seen, due = 0, None, 0
    try:
        while not stopped:
            now_seen = _state(home)
            if now_seen != seen or time.time_ns() >= due:
                try:
                    report = run_transform(lake, config)
                except LightningError as error:
                    if not str(error).startswith(BUSY):
                        raise
                else:
                    runs, seen, due = runs + 1, now_seen, next_due(lake)
                    say(report)
            time.sleep(poll_s)
    except _Stop:
        pass
    except Exception:
        # DuckDB says in its own way that a signal came while it worked.
        if not stopped:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return runs


def _state(lake: Lake) -> tuple[frozenset[Any], ...]:
    """What changes when anything arrives, moves or is deleted: names in the manifest, names and sizes of tombstones."""
    entries = frozenset(path.name for path in lake.manifest.glob("*.json"))
    return entries, frozenset((path.name, path.stat().st_size) for path in lake.tombstones.glob("*"))


def next_due(lake: Path) -> int:
    """When the next episode that is not over will have been quiet for long enough, in unix nanoseconds."""
    with open_tables(lake) as connection:
        row = connection.execute("select min(due_unix_nano) from rollouts").fetchone()
    return int(row[0]) if row and row[0] is not None else sys.maxsize
