"""What every span gets on its way: its number, the episode it belongs to, why its text is missing; and roots their count.

`lightning.span.seq` counts the spans of a process. `lightning.span.count` on a local root says how many spans this process
has ended in that trace, the root included: a lake that holds fewer knows that the trace is incomplete.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from typing import Any

from opentelemetry import context as context_api
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_lightning.instrumentation.settings import Settings

EPISODE_KEY = "lightning.episode"  # in the OpenTelemetry context: attributes of the episode, copied to every span
TRACES = 10_000  # counts kept; a trace that has not ended a span for so long counts anew


class Enrich(SpanProcessor):
    """Put before every exporting processor."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._numbers = itertools.count(1)
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # SIGTERM may interrupt this very code
        self._ended: OrderedDict[int, int] = OrderedDict()

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        """Number it and say which episode it is part of."""
        span.set_attribute("lightning.span.seq", next(self._numbers))
        episode = context_api.get_value(EPISODE_KEY, parent_context)
        if isinstance(episode, dict):
            span.set_attributes(episode)
        elif self.settings.process_root and self.settings.rollout_id:
            span.set_attribute("lightning.rollout.id", self.settings.rollout_id)
        if not self.settings.content:
            span.set_attribute("lightning.content", "off")

    def on_end(self, span: ReadableSpan) -> None:
        """Count it; on a local root say how many there were, to every processor that comes after this one."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            count = self._ended.pop(context.trace_id, 0) + 1
            self._ended[context.trace_id] = count
            if len(self._ended) > TRACES:
                self._ended.popitem(last=False)
        if span.parent is None or span.parent.is_remote:
            written = BoundedAttributes(attributes={**(span.attributes or {}), "lightning.span.count": count})
            written.dropped = span.dropped_attributes
            span._attributes = written  # the SDK lets nobody write to a span that ends

    def shutdown(self) -> None:
        """Nothing to stop."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True
