"""Progress for people: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

PLAIN_INTERVAL_S = 10.0  # a log file wants to see that work goes on, not each step


class Progress:
    """A counter of `total` units named `label`; `advance` it, and `note` what is worth saying beside it."""

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None) -> None:
        self.label, self.total, self.done, self.text = label, total, 0, ""
        self._stream = stream or sys.stderr
        self._began = self._said = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(label, total=total, text="")
            self._bar.start()

    def advance(self, units: int = 1) -> None:
        """Count `units` more as done."""
        self.done += units
        self._show()

    def note(self, text: str) -> None:
        """Show `text` beside the count from now on."""
        self.text = text
        self._show()

    def close(self) -> None:
        """Stop; on a plain stream, say how it ended."""
        if self._bar is not None:
            self._bar.stop()
        else:
            self._say()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=self.text)
        elif time.monotonic() - self._said >= PLAIN_INTERVAL_S:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        of = f"/{self.total}" if self.total is not None else ""
        text = f"  {self.text}" if self.text else ""
        print(
            f"{self.label}: {self.done}{of} in {self._said - self._began:.0f} s{text}",
            file=self._stream,
            flush=True,
        )


@contextmanager
def progress(label: str, total: int | None = None, stream: TextIO | None = None) -> Iterator[Progress]:
    """`with progress("rollouts", 256) as bar: bar.advance()`."""
    bar = Progress(label, total, stream)
    try:
        yield bar
    finally:
        bar.close()
