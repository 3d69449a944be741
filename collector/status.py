"""The live line on a terminal: what came, what is safe, how far behind, how much disk is left. Numbers only."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from otel_lightning.collector.ingest import Ingest


class StatusLine:
    """Rewrites one line of `stream` while that is a terminal; writes nothing elsewhere."""

    def __init__(self, ingest: Ingest, stream: TextIO | None = None) -> None:
        self._ingest, self._stream = ingest, stream or sys.stderr
        self._last = (time.monotonic(), 0)

    def show(self) -> None:
        """Draw it anew."""
        if not self._stream.isatty():
            return
        self._stream.write(f"\r\x1b[K{self.text()}")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty."""
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def text(self) -> str:
        """The line."""
        counters, now = self._ingest.counters, time.monotonic()
        rows = sum(counters.received.values())
        before, rows_before = self._last
        rate = (rows - rows_before) / max(now - before, 1e-9)
        self._last = (now, rows)
        received = counters.received
        parts = [
            f"{received['spans']:,} spans  {received['events']:,} events  {received['metrics']:,} points",
            f"{rate:,.0f}/s",
            f"log {counters.pending_bytes / 1e6:,.1f} MB, {self._ingest.lag_s:.0f} s behind",
            f"disk {self._ingest.free_bytes / 1e9:,.1f} GB free",
        ]
        refused = sum(counters.refused.values())
        if refused:
            parts.append(f"{refused:,} refused")
        if self._ingest.problem:
            parts.append(self._ingest.problem)
        return "  ·  ".join(parts)
