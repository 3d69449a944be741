"""The structural check before anything is acknowledged: does it parse, and are the ids ids?

What passes is stored as protobuf, whatever encoding it came in. A span or record with ids that are none
is rejected by itself (partial success); the rest of its request is kept.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError

from otel_lightning.app.errors import SenderError
from otel_lightning.collector.decode import REQUESTS

ID_KEYS = {"traceId": 16, "spanId": 8, "parentSpanId": 8}
MAX_JSON_DEPTH = 100  # protobuf's own limit for nested messages


@dataclass(frozen=True)
class Accepted:
    """A request fit to be stored: its protobuf `body`, how many `rows` it holds, what was `rejected` and why."""

    signal: str
    body: bytes
    rows: int
    rejected: int = 0
    reason: str = ""


def check_protobuf(signal: str, body: bytes) -> Accepted:
    """Check an OTLP protobuf request; SenderError when it does not parse."""
    try:
        request = REQUESTS[signal].FromString(body)
    except DecodeError:
        raise SenderError(f"the body is not an OTLP protobuf {signal} request") from None
    return _check(signal, request, body)


def check_json(signal: str, body: bytes) -> Accepted:
    """Check an OTLP/JSON request; SenderError when it does not parse. Slower than protobuf by design."""
    try:
        value = orjson.loads(body)
    except ValueError:
        raise SenderError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise SenderError("the body is not a JSON object")
    try:
        request = ParseDict(_hex_ids(value, MAX_JSON_DEPTH), REQUESTS[signal](), ignore_unknown_fields=True)
    except (ParseError, ValueError, TypeError, AttributeError) as error:
        raise SenderError(f"the body is not an OTLP JSON {signal} request: {_short(error)}") from None
    return _check(signal, request, None)


def _check(signal: str, request: Any, body: bytes | None) -> Accepted:
    if signal == "metrics":
        rows = sum(_points(metric) for of in request.resource_metrics for s in of.scope_metrics for metric in s.metrics)
        return Accepted(signal, _bytes(request, body), rows)
    rows, bad = 0, 0
    for group in _groups(signal, request):
        count = len(group)
        valid = [item for item in group if _has_ids(signal, item)]
        if len(valid) != count:
            bad += count - len(valid)
            del group[:]
            group.extend(valid)
            body = None
        rows += len(valid)
    reason = f"{bad} {signal} with invalid trace or span ids were rejected" if bad else ""
    return Accepted(signal, _bytes(request, body), rows, bad, reason)


def _groups(signal: str, request: Any) -> Any:
    if signal == "spans":
        return (scope.spans for of in request.resource_spans for scope in of.scope_spans)
    return (scope.log_records for of in request.resource_logs for scope in of.scope_logs)


def _has_ids(signal: str, item: Any) -> bool:
    trace, span = item.trace_id, item.span_id
    if signal == "events":
        # Records without a context are normal; half an id is not.
        return len(trace) in (0, 16) and len(span) in (0, 8)
    return len(trace) == 16 and len(span) == 8 and len(item.parent_span_id) in (0, 8) and any(trace) and any(span)


def _points(metric: Any) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0


def _bytes(request: Any, body: bytes | None) -> bytes:
    return request.SerializeToString() if body is None else body


def _hex_ids(value: Any, depth: int) -> Any:
    """OTLP/JSON writes ids as hex; protobuf's JSON form wants base64."""
    if depth == 0:
        raise SenderError(f"the body is nested deeper than {MAX_JSON_DEPTH} levels")
    if isinstance(value, list):
        return [_hex_ids(item, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _base64_id(item) if key in ID_KEYS and isinstance(item, str) else _hex_ids(item, depth - 1)
        for key, item in value.items()
    }


def _base64_id(text: str) -> str:
    try:
        return base64.b64encode(bytes.fromhex(text)).decode()
    except (ValueError, binascii.Error):
        # Not hex at all: a single zero byte has no id's length, so the span is rejected by itself.
        return "AA=="


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
