"""OTLP requests from plain records: what the readers of foreign exports share.

Everything is a function of the record alone, so that reading a file again gives the same spans and records, which
every reader of a lake takes for what they are: the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

ROWS_PER_REQUEST = 200
BYTES_PER_REQUEST = 8 << 20
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Piece:
    """One OTLP request: protobuf, or OTLP/JSON text as it lay in a file."""

    signal: str
    body: bytes
    is_json: bool = False


class Requests:
    """Collects spans and log records of one scope into requests of moderate size."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._full: list[Piece] = []
        self._begin()

    def span(
        self,
        trace_id: bytes,
        span_id: bytes,
        parent_id: bytes | None,
        name: str,
        start_unix_nano: int,
        end_unix_nano: int,
        attributes: Mapping[str, Any],
        *,
        error: str | None = None,
        ok: bool = False,
    ) -> Span:
        """Add a span; the message, for events."""
        span = self._spans.add(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=parent_id or b"",
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=start_unix_nano,
            end_time_unix_nano=end_unix_nano,
        )
        if error is not None:
            span.status.code, span.status.message = Status.STATUS_CODE_ERROR, error
        elif ok:
            span.status.code = Status.STATUS_CODE_OK
        put_attributes(span.attributes, attributes)
        return span

    def evaluation(
        self,
        name: str,
        time_unix_nano: int,
        *,
        value: float | None,
        label: str | None,
        explanation: str | None,
        source: str | None,
        identifier: str | None,
        trace_id: bytes = b"",
        span_id: bytes = b"",
        session_id: str | None = None,
    ) -> None:
        """Add a score as `gen_ai.evaluation.result`, on a span, a trace or a session."""
        record = self._records.add(
            event_name="gen_ai.evaluation.result",
            time_unix_nano=time_unix_nano,
            observed_time_unix_nano=time_unix_nano,
            trace_id=trace_id,
            span_id=span_id,
        )
        named = {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.score.value": None if value is None else float(value),
            "gen_ai.evaluation.score.label": label,
            "gen_ai.evaluation.explanation": explanation,
            "lightning.reward.source": source,
            "lightning.reward.identifier": identifier or None,
            "session.id": session_id,
        }
        if trace_id and not span_id:
            named["lightning.target.trace_id"] = trace_id.hex()
        put_attributes(record.attributes, named)

    def take(self, *, last: bool = False) -> Iterator[Piece]:
        """Requests that are full; with `last` the rest as well."""
        if len(self._spans) >= ROWS_PER_REQUEST or len(self._records) >= ROWS_PER_REQUEST or last or self._is_large():
            if len(self._spans):
                yield Piece("spans", self._traces.SerializeToString())
            if len(self._records):
                yield Piece("events", self._logs.SerializeToString())
            self._begin()

    def _is_large(self) -> bool:
        return self._traces.ByteSize() > BYTES_PER_REQUEST

    def _begin(self) -> None:
        self._traces, self._logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
        traces, logs = (
            self._traces.resource_spans.add().scope_spans.add(),
            self._logs.resource_logs.add().scope_logs.add(),
        )
        traces.scope.name = logs.scope.name = self._scope
        self._spans, self._records = traces.spans, logs.log_records


def put_attributes(target: Any, attributes: Mapping[str, Any]) -> None:
    """Plain Python values as OTLP attributes; None is absence."""
    for key, value in attributes.items():
        if value is not None:
            _put(target.add(key=key).value, value)


def _put(target: Any, value: Any) -> None:
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int) and value in INT64:
        target.int_value = value
    elif isinstance(value, int | float):
        target.double_value = float(value)
    elif isinstance(value, list | tuple):
        target.array_value.SetInParent()
        for item in value:
            _put(target.array_value.values.add(), item)
    elif isinstance(value, Mapping):
        target.kvlist_value.SetInParent()
        for key, item in value.items():
            _put(target.kvlist_value.values.add(key=str(key)).value, item)
    elif value is not None:
        # Half a surrogate pair, as JSON allows and protobuf does not.
        target.string_value = str(value).encode("utf-8", "replace").decode()


def trace_id(text: str) -> bytes:
    """An id of another system as one of OTLP: hex and UUIDs as they are, anything else by its hash."""
    return _id(text, 16)


def span_id(text: str) -> bytes:
    """The same for a span."""
    return _id(text, 8)


def _id(text: str, length: int) -> bytes:
    plain = text.replace("-", "")
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * length}}}", plain):
        return bytes.fromhex(plain)
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:length]


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?\s*(Z|[+-]\d\d:?\d\d)?$")


def unix_nano(value: Any) -> int:
    """A moment as unix nanoseconds: ISO 8601 text (UTC where it does not say), or a number of s, ms, us or ns. 0 if none."""
    if isinstance(value, bool) or value is None:
        return 0
    if isinstance(value, int | float):
        if not math.isfinite(value) or value <= 0:
            return 0
        # Seconds of this century have ten digits, milliseconds thirteen, and so on.
        scale = 10 ** (9 - 3 * max(0, min(3, (len(str(int(value))) - 10) // 3)))
        return int(value * scale) if isinstance(value, float) else value * scale
    found = _TIME.match(str(value).strip())
    if found is None:
        return 0
    day, clock, fraction, zone = found.groups()
    offset = "+00:00" if zone in (None, "Z") else zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    moment = datetime.fromisoformat(f"{day}T{clock}{offset}").astimezone(UTC)
    return max(0, int(moment.timestamp())) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
