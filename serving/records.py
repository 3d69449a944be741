"""The token record of every answer, as an OTLP span: what a trainer needs and an agent's own span cannot know.

Sent in the background; a collector that is away costs records, never answers, and every lost record is counted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import orjson
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

LOG = logging.getLogger("lightning-serve")
QUEUE_SPANS = 65_536
BATCH_SPANS = 256
DELAY_MS = 200


class Records:
    """Sends one span per call to an OTLP endpoint; without an endpoint it only counts."""

    def __init__(self, endpoint: str | None) -> None:
        self.counting = _Counting(_exporter(endpoint)) if endpoint else None
        self.emitted = 0
        self._propagator = TraceContextTextMapPropagator()
        if self.counting is None:
            self._provider = None
            return
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "lightning-serve"}),
            span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET, max_attributes=SpanLimits.UNSET),
        )
        self._processor = BatchSpanProcessor(
            self.counting,
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=DELAY_MS,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("otel_lightning.serving")

    def emit(
        self, traceparent: str | None, start_unix_nano: int, attributes: dict[str, Any], error: str | None
    ) -> None:
        """Record one call that ends now; `attributes` in the names of the token record."""
        self.emitted += 1
        if self._provider is None:
            return
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            "chat", context=parent, kind=trace.SpanKind.SERVER, start_time=start_unix_nano, attributes=attributes
        )
        if error is not None:
            span.set_status(trace.StatusCode.ERROR, error)
        span.end()

    def flush(self) -> bool:
        """True when every record emitted so far was acknowledged."""
        if self._provider is None or self.counting is None:
            return True
        before = self.counting.failed
        return self._provider.force_flush(30_000) and self.counting.failed == before

    def close(self) -> None:
        """Send what is left and stop."""
        if self._provider is not None:
            self._provider.shutdown()

    @property
    def lost(self) -> int:
        """Records that were not acknowledged and will not be sent again."""
        return self.counting.failed if self.counting else 0


class _Counting(SpanExporter):
    def __init__(self, inner: SpanExporter) -> None:
        self._inner, self._lock, self._said = inner, threading.Lock(), False
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        with self._lock:
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
                if not self._said:
                    LOG.warning("the collector did not take %d token records; answers go on, see /metrics", len(spans))
            self._said = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _exporter(endpoint: str) -> SpanExporter:
    if endpoint.rstrip("/").endswith(":4317"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def genai_messages(messages: list[dict[str, Any]]) -> str:
    """Normal messages in the JSON form of the GenAI conventions (role and parts)."""
    converted = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        if message["role"] == "tool":
            parts.append(
                {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": message["content"]}
            )
        else:
            if message["content"]:
                parts.append({"type": "text", "content": message["content"]})
            for call in message.get("tool_calls", ()):
                function = call["function"]
                parts.append(
                    {
                        "type": "tool_call",
                        "id": call["id"],
                        "name": function["name"],
                        "arguments": function["arguments"],
                    }
                )
        converted.append({"role": message["role"], "parts": parts})
    return orjson.dumps(converted).decode()
