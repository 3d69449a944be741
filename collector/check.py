"""The structural check before anything is acknowledged: does it parse, and are the ids ids?

What passes is stored as protobuf, whatever encoding it came in. A span with ids that are none is rejected
by itself (partial success); the rest of its request is kept. A log record with such ids is kept without a
context, as OTLP asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.app.errors import SenderError
from otel_lightning.collector import native, otlp_json

REQUESTS = {
    "spans": ExportTraceServiceRequest,
    "events": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
NO_TRACE, NO_SPAN = bytes(16), bytes(8)


@dataclass(frozen=True)
class Accepted:
    """A request fit to be stored: its protobuf `body`, how many `rows` it holds, what was `rejected` and why."""

    signal: str
    body: native.Bytes
    rows: int
    rejected: int = 0
    reason: str = ""
    deletions: int = 0  # which state of the tombstones it was held against
    summed: tuple[native.Bytes, int] | None = (
        None  # bytes with their CRC32C, which is that of `body` if they are `body`
    )

    @property
    def crc(self) -> int | None:
        """CRC32C of `body`, where the check found it on its way."""
        return self.summed[1] if self.summed is not None and self.summed[0] is self.body else None


def check_protobuf(signal: str, body: native.Bytes) -> Accepted:
    """Check an OTLP protobuf request; SenderError when it does not parse."""
    if signal == "spans":
        found = native.check(body)
        if found is not None:
            rows, crc = found
            return Accepted(signal, body, rows, summed=None if crc is None else (body, crc))
    try:
        request = REQUESTS[signal].FromString(body)
    except DecodeError:
        raise SenderError(f"the body is not an OTLP protobuf request of {signal}") from None
    return _check(signal, request, body)


def check_json(signal: str, body: bytes | memoryview) -> Accepted:
    """Check an OTLP/JSON request; SenderError when it does not parse. Slower than protobuf by design."""
    request = REQUESTS[signal]()
    try:
        otlp_json.parse(body, request)
    except otlp_json.JsonError as error:
        raise SenderError(f"the body of {signal} {error}") from None
    return _check(signal, request, None)


def _check(signal: str, request: Any, body: native.Bytes | None) -> Accepted:
    rows = rejected = 0
    if signal == "spans":
        for scope in (scope for of in request.resource_spans for scope in of.scope_spans):
            spans = scope.spans
            bad = [index for index, span in enumerate(spans) if not _has_ids(span)]
            for index in reversed(bad):
                del spans[index]
            if bad:
                rejected += len(bad)
                body = None
            rows += len(spans)
    elif signal == "events":
        rows = sum(len(scope.log_records) for of in request.resource_logs for scope in of.scope_logs)
    else:
        rows = sum(_points(metric) for metric in _metrics(request))
    reason = f"{rejected} spans were rejected: ids must be 16 and 8 bytes, not all zero" if rejected else ""
    return Accepted(signal, request.SerializeToString() if body is None else body, rows, rejected, reason)


def _has_ids(span: Any) -> bool:
    trace_id, span_id = span.trace_id, span.span_id
    return (
        len(trace_id) == 16
        and len(span_id) == 8
        and trace_id != NO_TRACE
        and span_id != NO_SPAN
        and len(span.parent_span_id) in (0, 8)
    )


def _metrics(request: Any) -> Iterator[Any]:
    return (metric for of in request.resource_metrics for scope in of.scope_metrics for metric in scope.metrics)


def _points(metric: Any) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0
