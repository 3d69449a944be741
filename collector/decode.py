"""Acknowledged requests to Arrow tables, with protobuf's own parser and one Python loop a span.

Nothing is interpreted: conventions live in SQL. Every row of a frame is numbered (`seq`) in the order of
the request, so decoding again gives the same rows. Spans go through the native decoder where there is one;
what is written here is the definition that it must match to the byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector import native
from otel_lightning.collector.schema import CHOICE_PREFIX, MOVED, PROMPT_TOKEN_IDS, SCHEMAS, STR
from otel_lightning.collector.values import TypedMaps, attributes_json, by_type, json_text, plain
from otel_lightning.collector.wal import Frame

INT32_MAX = 2**31 - 1
_MOVED_TEXTS = frozenset(key for key, (_, kind) in MOVED.items() if kind == STR)
_MOVED_INTS = frozenset(MOVED) - _MOVED_TEXTS


def decode(frames: Iterable[Frame], collector_id: str) -> dict[str, pa.Table]:
    """Tables by signal (`spans`, `events`, `metrics`), each with the columns of its schema.

    Spans are sorted by (trace, start). Signals without rows are left out. DecodeError never happens for
    frames that passed the structural check before they were acknowledged.
    """
    by_signal: dict[str, list[Frame]] = {}
    for frame in frames:
        by_signal.setdefault(frame.signal, []).append(frame)
    decoders = {"spans": _decode_spans, "events": _events, "metrics": _metrics}
    tables = {signal: decoders[signal](found, collector_id) for signal, found in by_signal.items()}
    return {signal: table for signal, table in tables.items() if table.num_rows}


class _Context:
    """What all rows of one resource and scope share."""

    NAMES = (
        "service_name",
        "service_instance_id",
        "scope_name",
        "scope_version",
        "resource_attributes",
        "scope_attributes",
        "resource_schema_url",
        "scope_schema_url",
    )

    def __init__(self, resource: Any, scope: Any, resource_url: str, scope_url: str) -> None:
        named = {item.key: item.value for item in resource.attributes}
        self.service_name = _string(named.get("service.name"))
        self.service_instance_id = _string(named.get("service.instance.id"))
        self.scope_name, self.scope_version = scope.name or None, scope.version or None
        self.resource_attributes = attributes_json(resource.attributes)
        self.scope_attributes = attributes_json(scope.attributes)
        self.resource_schema_url, self.scope_schema_url = resource_url or None, scope_url or None


@dataclass(slots=True)
class _Row:
    """A message with its place: what it was received with and what it shares with its neighbours."""

    seq: int
    received_unix_nano: int
    context: _Context
    message: Any


def _decode_spans(frames: list[Frame], collector_id: str) -> pa.Table:
    table = native.spans_table(frames, collector_id)
    return spans_in_python(frames, collector_id) if table is None else table


def spans_in_python(frames: list[Frame], collector_id: str) -> pa.Table:
    """The spans of `frames` by protobuf's own parser."""
    rows: list[_Row] = []
    for frame in frames:
        request = ExportTraceServiceRequest.FromString(bytes(frame.body))
        seq = frame.first_seq
        for of in request.resource_spans:
            for scope in of.scope_spans:
                context = _Context(of.resource, scope.scope, of.schema_url, scope.schema_url)
                for span in scope.spans:
                    rows.append(_Row(seq, frame.received_unix_nano, context, span))
                    seq += 1
    rows.sort(key=lambda row: (row.message.trace_id, row.message.start_time_unix_nano, row.seq))

    spans = [row.message for row in rows]
    columns = _common(rows, collector_id)
    columns["trace_id"] = [span.trace_id.hex() for span in spans]
    columns["span_id"] = [span.span_id.hex() for span in spans]
    columns["parent_span_id"] = [_context_id(span.parent_span_id, 8) for span in spans]
    columns["trace_state"] = [span.trace_state or None for span in spans]
    columns["flags"] = [span.flags for span in spans]
    columns["name"] = [span.name for span in spans]
    columns["kind"] = [_tiny(span.kind) for span in spans]
    columns["start_unix_nano"] = [span.start_time_unix_nano for span in spans]
    columns["end_unix_nano"] = [span.end_time_unix_nano for span in spans]
    columns["status_code"] = [_tiny(span.status.code) for span in spans]
    columns["status_message"] = [span.status.message or None for span in spans]
    columns["events"] = [[_event(event) for event in span.events] for span in spans]
    columns["links"] = [[_link(link) for link in span.links] for span in spans]
    columns["dropped_attributes_count"] = [span.dropped_attributes_count for span in spans]
    columns["dropped_events_count"] = [span.dropped_events_count for span in spans]
    columns["dropped_links_count"] = [span.dropped_links_count for span in spans]
    return _table("spans", columns, _move(spans, columns))


def _move(spans: list[Any], columns: dict[str, list[Any]]) -> TypedMaps:
    """The attribute maps of `spans`, without what moves into columns of its own."""
    maps = TypedMaps()
    for column, _ in MOVED.values():
        columns[column] = [None] * len(spans)
    prompt_ids = columns["prompt_token_ids"] = [None] * len(spans)
    choices = columns["choices"] = [None] * len(spans)
    for index, span in enumerate(spans):
        row = by_type(span.attributes)
        for key in row.texts.keys() & _MOVED_TEXTS:
            columns[MOVED[key][0]][index] = row.texts.pop(key)
        for key in row.ints.keys() & _MOVED_INTS:
            columns[MOVED[key][0]][index] = row.ints.pop(key)
        if row.others:
            if PROMPT_TOKEN_IDS in row.others:
                ids = prompt_ids[index] = _token_ids(row.others[PROMPT_TOKEN_IDS])
                if ids is not None:
                    del row.others[PROMPT_TOKEN_IDS]
            choices[index] = _take_choices(row.others)
        maps.add_row(row)
    return maps


def _common(rows: list[_Row], collector_id: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "collector_id": [collector_id] * len(rows),
        "seq": [row.seq for row in rows],
        "received_unix_nano": [row.received_unix_nano for row in rows],
    }
    for name in _Context.NAMES:
        columns[name] = [getattr(row.context, name) for row in rows]
    return columns


def _take_choices(others: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Take `lightning.choice.N.*` out of `others`, as a list by N; what fits no list stays there."""
    choices: list[dict[str, Any]] = []
    while True:
        stem = f"{CHOICE_PREFIX}{len(choices)}."
        ids_key, logprobs_key = stem + "token_ids", stem + "logprobs"
        if ids_key not in others and logprobs_key not in others:
            return choices or None
        ids = _token_ids(others[ids_key]) if ids_key in others else None
        logprobs = _doubles(others[logprobs_key]) if logprobs_key in others else None
        if ids is None and logprobs is None:
            return choices or None
        if ids is not None:
            del others[ids_key]
        if logprobs is not None:
            del others[logprobs_key]
        choices.append({"token_ids": ids, "logprobs": logprobs})


def _token_ids(value: Any) -> list[int] | None:
    if value.WhichOneof("value") != "array_value":
        return None
    values = value.array_value.values
    ids = [item.int_value for item in values]
    if any(item.WhichOneof("value") != "int_value" for item in values):
        return None
    return ids if all(0 <= token <= INT32_MAX for token in ids) else None


def _doubles(value: Any) -> list[float] | None:
    if value.WhichOneof("value") != "array_value":
        return None
    numbers = []
    for item in value.array_value.values:
        kind = item.WhichOneof("value")
        if kind not in ("double_value", "int_value"):
            return None
        numbers.append(float(getattr(item, kind)))
    return numbers


def _events(frames: list[Frame], collector_id: str) -> pa.Table:
    rows: list[_Row] = []
    hashes: list[str] = []
    for frame in frames:
        request = ExportLogsServiceRequest.FromString(bytes(frame.body))
        seq = frame.first_seq
        for of in request.resource_logs:
            for scope in of.scope_logs:
                context = _Context(of.resource, scope.scope, of.schema_url, scope.schema_url)
                origin = _origin(of.resource, scope.scope)
                for record in scope.log_records:
                    rows.append(_Row(seq, frame.received_unix_nano, context, record))
                    hashes.append(_content_hash(origin, record))
                    seq += 1

    records = [row.message for row in rows]
    columns = _common(rows, collector_id)
    columns["trace_id"] = [_context_id(record.trace_id, 16) for record in records]
    columns["span_id"] = [_context_id(record.span_id, 8) for record in records]
    columns["flags"] = [record.flags for record in records]
    columns["time_unix_nano"] = [record.time_unix_nano for record in records]
    columns["observed_unix_nano"] = [record.observed_time_unix_nano for record in records]
    columns["event_name"] = [record.event_name or None for record in records]
    columns["severity_number"] = [int(record.severity_number) for record in records]
    columns["severity_text"] = [record.severity_text or None for record in records]
    columns["body"] = [json_text(plain(record.body)) if record.HasField("body") else None for record in records]
    columns["dropped_attributes_count"] = [record.dropped_attributes_count for record in records]
    columns["content_sha256"] = hashes
    return _table("events", columns, _maps(records))


def _metrics(frames: list[Frame], collector_id: str) -> pa.Table:
    rows: list[_Row] = []
    metrics: list[tuple[Any, str]] = []
    hashes: list[str] = []
    for frame in frames:
        request = ExportMetricsServiceRequest.FromString(bytes(frame.body))
        seq = frame.first_seq
        for of in request.resource_metrics:
            for scope in of.scope_metrics:
                context = _Context(of.resource, scope.scope, of.schema_url, scope.schema_url)
                origin = _origin(of.resource, scope.scope)
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    if kind is None:
                        continue
                    named = origin + b"\0".join((metric.name.encode(), metric.unit.encode(), kind.encode(), b""))
                    for point in getattr(metric, kind).data_points:
                        rows.append(_Row(seq, frame.received_unix_nano, context, point))
                        metrics.append((metric, kind))
                        hashes.append(_content_hash(named, point))
                        seq += 1

    points = [row.message for row in rows]
    columns = _common(rows, collector_id)
    columns["name"] = [metric.name for metric, _ in metrics]
    columns["description"] = [metric.description or None for metric, _ in metrics]
    columns["unit"] = [metric.unit or None for metric, _ in metrics]
    columns["type"] = [kind for _, kind in metrics]
    columns["temporality"] = [_temporality(getattr(metric, kind)) for metric, kind in metrics]
    columns["monotonic"] = [metric.sum.is_monotonic if kind == "sum" else None for metric, kind in metrics]
    columns["start_unix_nano"] = [point.start_time_unix_nano for point in points]
    columns["time_unix_nano"] = [point.time_unix_nano for point in points]
    columns["value"] = [_value(point, kind) for point, (_, kind) in zip(points, metrics, strict=True)]
    columns["point"] = [_point(point, kind) for point, (_, kind) in zip(points, metrics, strict=True)]
    columns["content_sha256"] = hashes
    return _table("metrics", columns, _maps(points))


def _temporality(data: Any) -> str | None:
    return {1: "delta", 2: "cumulative"}.get(getattr(data, "aggregation_temporality", 0))


def _value(point: Any, kind: str) -> float | None:
    which = point.WhichOneof("value") if kind in ("gauge", "sum") else None
    return float(getattr(point, which)) if which else None


def _point(point: Any, kind: str) -> str | None:
    """What `value` cannot hold: buckets, quantiles, exemplars, as the JSON form of OTLP."""
    if kind in ("gauge", "sum") and not point.exemplars:
        return None
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(point)
    for name in ("attributes", "startTimeUnixNano", "timeUnixNano", "asDouble", "asInt"):
        fields.pop(name, None)
    return json_text(fields)


def _event(event: Any) -> dict[str, Any]:
    return {
        "time_unix_nano": event.time_unix_nano,
        "name": event.name,
        "attributes": attributes_json(event.attributes),
        "dropped_attributes_count": event.dropped_attributes_count,
    }


def _link(link: Any) -> dict[str, Any]:
    return {
        "trace_id": link.trace_id.hex(),
        "span_id": link.span_id.hex(),
        "trace_state": link.trace_state or None,
        "flags": link.flags,
        "attributes": attributes_json(link.attributes),
        "dropped_attributes_count": link.dropped_attributes_count,
    }


def _maps(messages: list[Any]) -> TypedMaps:
    maps = TypedMaps()
    for message in messages:
        maps.add_row(by_type(message.attributes))
    return maps


def _table(signal: str, columns: dict[str, list[Any]], maps: TypedMaps) -> pa.Table:
    arrays = maps.arrays()
    schema = SCHEMAS[signal]
    return pa.Table.from_arrays(
        [arrays[f.name] if f.name in arrays else pa.array(columns[f.name], f.type) for f in schema],
        schema=schema,
    )


def _origin(resource: Any, scope: Any) -> bytes:
    return resource.SerializeToString(deterministic=True) + b"\0" + scope.SerializeToString(deterministic=True) + b"\0"


def _content_hash(origin: bytes, message: Any) -> str:
    return hashlib.sha256(origin + message.SerializeToString(deterministic=True)).hexdigest()


def _context_id(identifier: bytes, length: int) -> str | None:
    """The id of a log record's context; None where there is none, or none that OTLP calls valid."""
    return identifier.hex() if len(identifier) == length and identifier.strip(b"\0") else None


def _string(value: Any) -> str | None:
    if value is None:
        return None
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    found = plain(value)
    return None if found is None else json_text(found)


def _tiny(number: int) -> int:
    """An enum as TINYINT; a number no enum has is kept as 0 (unspecified)."""
    return number if 0 <= number <= 127 else 0
