"""Spans on their way to the collector: never in the agent's way, never without a count.

`on_end` puts a span into a bounded queue (by number and by bytes) and returns; one daemon thread sends. Whatever does not
arrive is counted with a reason: queue_full, refused (the collector said no or was away for long), unprepared (a fault of ours), undelivered_at_exit.
`finish` waits no longer than its budget. A forked child starts with an empty queue: what the parent had is the parent's.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_lightning.instrumentation.settings import Settings

TRIES = 3  # each try of the OTLP exporters retries for up to 10 s by itself
PAUSE_S = 1.0
BASE_BYTES = 512  # what a span costs beside its texts


class Delivery(SpanProcessor):
    """A span processor. `make_exporter` runs in the sending thread; `prepare` turns spans into what may be sent."""

    def __init__(
        self,
        make_exporter: Callable[[], SpanExporter],
        settings: Settings,
        prepare: Callable[[ReadableSpan], ReadableSpan] = lambda span: span,
    ) -> None:
        self._make_exporter, self.settings, self._prepare = make_exporter, settings, prepare
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """An empty queue, no thread, no connection: at the start, and again in a forked child."""
        inherited = getattr(self, "_open", set())
        self._condition = threading.Condition()
        self._queue: deque[tuple[ReadableSpan, int]] = deque()
        self._open: set[int] = set()
        self._inherited: set[int] = set(inherited) | getattr(self, "_inherited", set())
        self._bytes = 0
        self._sending = 0
        self._hurry = 0
        self._stopped = False
        self._closing: float | None = None
        self._thread: threading.Thread | None = None
        self._exporter: SpanExporter | None = None
        self.ended = self.delivered = 0
        self.dropped: Counter[str] = Counter()

    def use(self, settings: Settings) -> None:
        """Other settings from now on, another endpoint included."""
        self.settings = settings
        self._exporter = None

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        """Remember which spans are open, so that a forked child does not end its parent's a second time."""
        context = span.get_span_context()
        if context is not None:
            self._open.add(context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span, or count it as dropped. Returns at once."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        self._open.discard(context.span_id)
        if context.span_id in self._inherited:
            return  # begun by the process that forked this one, which will end and send it
        size = weigh(span)
        with self._condition:
            self.ended += 1
            if self._stopped:
                self.dropped["undelivered_at_exit"] += 1
                return
            if len(self._queue) >= self.settings.queue_spans or self._bytes + size > self.settings.queue_bytes:
                self.dropped["queue_full"] += 1
                return
            self._queue.append((span, size))
            self._bytes += size
            if self._thread is None:
                thread = threading.Thread(target=self._send_all, name="lightning-spans", daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError:
                    pass  # the interpreter is going down; `finish` sends what is queued by itself
            self._condition.notify_all()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether everything ended so far has been sent (or given up) within the time."""
        return self.flush(timeout_millis / 1000)

    def flush(self, timeout_s: float) -> bool:
        """The same in seconds."""
        with self._condition:
            self._hurry += 1
            self._condition.notify_all()
            try:
                return self._condition.wait_for(lambda: not self._queue and not self._sending, timeout_s)
            finally:
                self._hurry -= 1

    def shutdown(self) -> None:
        """Send what can be sent within the exit budget, count the rest."""
        self.finish(self.settings.exit_budget_s)

    def finish(self, budget_s: float) -> None:
        """The last flush; afterwards nothing is sent any more."""
        with self._condition:
            if self._stopped:
                return
            self._closing = time.monotonic() + budget_s
        if budget_s > 0:
            if self._thread is None and self._queue:
                self._send_batch()
            self.flush(budget_s)
        with self._condition:
            self._stopped = True
            left = len(self._queue) + self._sending
            if left:
                self.dropped["undelivered_at_exit"] += left
            self._queue.clear()
            self._condition.notify_all()

    @property
    def lost(self) -> int:
        """Spans that ended and will never arrive."""
        return sum(self.dropped.values())

    def _send_all(self) -> None:
        condition = self._condition  # a fork replaces it
        while True:
            with condition:
                condition.wait_for(lambda: self._queue or self._stopped)
                if self._stopped:
                    return
                condition.wait_for(
                    lambda: self._hurry or self._stopped or len(self._queue) >= self.settings.batch_spans,
                    self.settings.delay_s,
                )
            self._send_batch()

    def _send_batch(self) -> None:
        condition = self._condition
        with condition:
            batch, size = [], 0
            while self._queue and len(batch) < self.settings.batch_spans:
                if batch and size + self._queue[0][1] > self.settings.batch_bytes:
                    break
                span, weight = self._queue.popleft()
                batch.append(span)
                size += weight
            self._sending = len(batch)
        taken = bool(batch) and self._send(batch)
        with condition:
            self._bytes -= size
            if not self._stopped:
                if taken:
                    self.delivered += len(batch)
                else:
                    self.dropped["refused"] += len(batch)
            self._sending = 0
            condition.notify_all()

    def _send(self, batch: list[ReadableSpan]) -> bool:
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            prepared = self._prepared(batch)
            for attempt in range(TRIES):
                try:
                    if self._exporter is None:
                        self._exporter = self._make_exporter()
                    if self._exporter.export(prepared) is SpanExportResult.SUCCESS:
                        return True
                    self._exporter = None  # another protocol may be spoken there by now
                except Exception:
                    self._exporter = None
                with self._condition:
                    if attempt + 1 == TRIES or self._stopped:
                        return False
                    wait_s = PAUSE_S * (attempt + 1)
                    if self._closing is not None:
                        wait_s = min(wait_s, 0.2)
                    self._condition.wait_for(lambda: self._stopped, wait_s)
            return False
        finally:
            detach(token)

    def _prepared(self, batch: list[ReadableSpan]) -> list[ReadableSpan]:
        """What may be sent of a batch; a span that cannot be prepared stays here, whatever is in it."""
        prepared = []
        for span in batch:
            try:
                prepared.append(self._prepare(span))
            except Exception:
                with self._condition:
                    self.dropped["unprepared"] += 1
                    self.delivered -= 1  # it is counted with its batch below
        return prepared


def weigh(span: ReadableSpan) -> int:
    """About how many bytes a span holds in memory."""
    size = BASE_BYTES
    for attributes in (span.attributes, *(event.attributes for event in span.events)):
        for key, value in (attributes or {}).items():
            size += len(key) + (len(value) * (1 if isinstance(value, str) else 8) if hasattr(value, "__len__") else 8)  # type: ignore[arg-type]
    return size
