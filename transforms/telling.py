"""How far a long run is: a bar on a terminal, a plain line now and then elsewhere, nothing at all for a short one."""

from __future__ import annotations

import time
from types import TracebackType

from otel_lightning.app.progress import Progress

QUIET_S = 3.0  # a run that ends sooner needs no words


class Telling:
    """`begin` a stage, say each `step`; shows nothing before QUIET_S have passed, or when it is not wanted."""

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._began = wanted, time.monotonic()
        self._bar: Progress | None = None
        self._spans = self._steps = 0
        self._stage = ""

    def __enter__(self) -> Telling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, stage: str, total: int, spans: int = 0) -> None:
        """Enter a stage of `total` steps over so many spans."""
        self._stage = stage
        self._total, self._done = total, 0
        self._spans += spans

    def step(self, name: str) -> None:
        """A step of the stage begins."""
        self._done += 1
        self._steps += 1
        if not self._wanted or time.monotonic() - self._began < QUIET_S:
            return
        if self._bar is None:
            self._bar = Progress("transform", None)
        self._bar.note(f"{self._stage}, {name} ({self._done}/{self._total}), {self._spans:,} spans so far")
        self._bar.advance()
