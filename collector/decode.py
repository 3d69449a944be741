"""Acknowledged requests to Arrow tables, with protobuf's own parser and one Python loop a span.

Nothing is interpreted: conventions live in SQL. Every row of a frame is numbered (`seq`) in the order of
the request, so decoding again gives the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector.schema import CHOICE_PREFIX, MOVED, PROMPT_TOKEN_IDS, SCHEMAS, STR
from otel_lightning.collector.values import TypedMaps, attributes_json, json_text, plain, unique_keys
from otel_lightning.collector.wal import Frame

INT32_MAX = 2**31 - 1
_MOVED_KIND = {key: (column, "string_value" if kind == STR else "int_value") for key, (column, kind) in MOVED.items()}
_MOVED_COLUMNS = [column for column, _ in MOVED.values()]


def decode(frames: Iterable[Frame], collector_id: str) -> dict[str, pa.Table]:
    """Tables by signal (`spans`, `events`, `metrics`), each with the columns of its schema.

    Spans are sorted by (trace, start). Signals without rows are left out. DecodeError never happens for
    frames that passed the structural check before they were acknowledged.
    """
    by_signal: dict[str, list[Frame]] = {}
    for frame in frames:
        by_signal.setdefault(frame.signal, []).append(frame)
    decoders = {"spans": _spans, "events": _events, "metrics": _metrics}
    tables = {signal: decoders[signal](found, collector_id) for signal, found in by_signal.items()}
    return {signal: table for signal, table in tables.items() if table.num_rows}


class _Context:
    """What all rows of one resource and scope share."""

    def __init__(self, resource: Any, scope: Any, resource_url: str, scope_url: str) -> None:
        named = {item.key: item.value for item in resource.attributes}
        self.service_name = _string(named.get("service.name"))
        self.service_instance_id = _string(named.get("service.instance.id"))
        self.scope_name, self.scope_version = scope.name or None, scope.version or None
        self.resource_attributes = attributes_json(resource.attributes)
        self.scope_attributes = attributes_json(scope.attributes)
        self.resource_schema_url, self.scope_schema_url = resource_url or None, scope_url or None

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

    def put(self, columns: dict[str, list[Any]]) -> None:
        for name in self.NAMES:
            columns[name].append(getattr(self, name))


def _spans(frames: list[Frame], collector_id: str) -> pa.Table:
    rows: list[tuple[bytes, int, int, int, Any, _Context]] = []
    for frame in frames:
        request = ExportTraceServiceRequest.FromString(frame.body)
        seq = frame.first_seq
        for of_resource in request.resource_spans:
            for of_scope in of_resource.scope_spans:
                context = _Context(of_resource.resource, of_scope.scope, of_resource.schema_url, of_scope.schema_url)
                for span in of_scope.spans:
                    rows.append(
                        (
                            span.trace_id,
                            span.start_time_unix_nano,
                            seq,
                            frame.received_unix_nano,
                            span,
                            context,
                        )
                    )
                    seq += 1
    rows.sort(key=lambda row: row[:3])

    columns = _empty("spans")
    maps = TypedMaps()
    for trace_id, start, seq, received, span, context in rows:
        columns["collector_id"].append(collector_id)
        columns["seq"].append(seq)
        columns["received_unix_nano"].append(received)
        columns["trace_id"].append(trace_id.hex())
        columns["span_id"].append(span.span_id.hex())
        parent = span.parent_span_id
        columns["parent_span_id"].append(parent.hex() if parent.strip(b"\0") else None)
        columns["trace_state"].append(span.trace_state or None)
        columns["flags"].append(span.flags)
        columns["name"].append(span.name)
        columns["kind"].append(_tiny(span.kind))
        columns["start_unix_nano"].append(start)
        columns["end_unix_nano"].append(span.end_time_unix_nano)
        columns["status_code"].append(_tiny(span.status.code))
        columns["status_message"].append(span.status.message or None)
        context.put(columns)
        columns["events"].append([_event(event) for event in span.events])
        columns["links"].append([_link(link) for link in span.links])
        columns["dropped_attributes_count"].append(span.dropped_attributes_count)
        columns["dropped_events_count"].append(span.dropped_events_count)
        columns["dropped_links_count"].append(span.dropped_links_count)
        _attributes(span.attributes, columns, maps)
    return _table("spans", columns, maps)


def _attributes(attributes: Any, columns: dict[str, list[Any]], maps: TypedMaps) -> None:
    moved: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    prompt_ids: list[int] | None = None
    add, kinds = maps.add, _MOVED_KIND
    for item in unique_keys(attributes):
        key, value = item.key, item.value
        kind = value.WhichOneof("value")
        target = kinds.get(key)
        if target is not None:
            if kind == target[1]:
                moved[target[0]] = getattr(value, kind)
                continue
        elif key.startswith("lightning."):
            if key == PROMPT_TOKEN_IDS:
                prompt_ids = _token_ids(value)
                if prompt_ids is not None:
                    continue
            elif key.startswith(CHOICE_PREFIX):
                choices[key] = value
                continue
        add(key, kind, value)
    moved_choices, rest = _choices(choices)
    for key in rest:
        add(key, choices[key].WhichOneof("value"), choices[key])
    maps.end_row()
    for column in _MOVED_COLUMNS:
        columns[column].append(moved.get(column))
    columns["prompt_token_ids"].append(prompt_ids)
    columns["choices"].append(moved_choices)


def _choices(found: dict[str, Any]) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Attributes `lightning.choice.N.*` as a list by N, and the keys that fit no list and stay in the map."""
    if not found:
        return None, []
    choices: list[dict[str, Any]] = []
    taken: set[str] = set()
    while True:
        stem = f"{CHOICE_PREFIX}{len(choices)}."
        ids_key, logprobs_key = stem + "token_ids", stem + "logprobs"
        ids = _token_ids(found[ids_key]) if ids_key in found else None
        logprobs = _doubles(found[logprobs_key]) if logprobs_key in found else None
        if ids is None and logprobs is None:
            break
        taken.update(key for key, value in ((ids_key, ids), (logprobs_key, logprobs)) if value is not None)
        choices.append({"token_ids": ids, "logprobs": logprobs})
    return choices or None, [key for key in found if key not in taken]


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
    columns = _empty("events")
    maps = TypedMaps()
    for frame in frames:
        request = ExportLogsServiceRequest.FromString(frame.body)
        seq = frame.first_seq
        for of_resource in request.resource_logs:
            for of_scope in of_resource.scope_logs:
                context = _Context(of_resource.resource, of_scope.scope, of_resource.schema_url, of_scope.schema_url)
                origin = _origin(of_resource.resource, of_scope.scope)
                for record in of_scope.log_records:
                    columns["collector_id"].append(collector_id)
                    columns["seq"].append(seq)
                    columns["received_unix_nano"].append(frame.received_unix_nano)
                    context.put(columns)
                    for item in unique_keys(record.attributes):
                        maps.add(item.key, item.value.WhichOneof("value"), item.value)
                    maps.end_row()
                    columns["trace_id"].append(_context_id(record.trace_id, 16))
                    columns["span_id"].append(_context_id(record.span_id, 8))
                    columns["flags"].append(record.flags)
                    columns["time_unix_nano"].append(record.time_unix_nano)
                    columns["observed_unix_nano"].append(record.observed_time_unix_nano)
                    columns["event_name"].append(record.event_name or None)
                    columns["severity_number"].append(int(record.severity_number))
                    columns["severity_text"].append(record.severity_text or None)
                    columns["body"].append(json_text(plain(record.body)) if record.HasField("body") else None)
                    columns["dropped_attributes_count"].append(record.dropped_attributes_count)
                    columns["content_sha256"].append(_content_hash(origin, record))
                    seq += 1
    return _table("events", columns, maps)


def _metrics(frames: list[Frame], collector_id: str) -> pa.Table:
    columns = _empty("metrics")
    maps = TypedMaps()
    for frame in frames:
        request = ExportMetricsServiceRequest.FromString(frame.body)
        seq = frame.first_seq
        for of_resource in request.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                context = _Context(of_resource.resource, of_scope.scope, of_resource.schema_url, of_scope.schema_url)
                origin = _origin(of_resource.resource, of_scope.scope)
                for metric in of_scope.metrics:
                    kind = metric.WhichOneof("data")
                    if kind is None:
                        continue
                    data = getattr(metric, kind)
                    named = origin + b"\0".join((metric.name.encode(), metric.unit.encode(), kind.encode()))
                    for point in data.data_points:
                        columns["collector_id"].append(collector_id)
                        columns["seq"].append(seq)
                        columns["received_unix_nano"].append(frame.received_unix_nano)
                        context.put(columns)
                        for item in unique_keys(point.attributes):
                            maps.add(item.key, item.value.WhichOneof("value"), item.value)
                        maps.end_row()
                        columns["name"].append(metric.name)
                        columns["description"].append(metric.description or None)
                        columns["unit"].append(metric.unit or None)
                        columns["type"].append(kind)
                        temporality = getattr(data, "aggregation_temporality", 0)
                        columns["temporality"].append({1: "delta", 2: "cumulative"}.get(temporality))
                        columns["monotonic"].append(data.is_monotonic if kind == "sum" else None)
                        columns["start_unix_nano"].append(point.start_time_unix_nano)
                        columns["time_unix_nano"].append(point.time_unix_nano)
                        value = point.WhichOneof("value") if kind in ("gauge", "sum") else None
                        columns["value"].append(float(getattr(point, value)) if value else None)
                        columns["point"].append(_point(point, kind))
                        columns["content_sha256"].append(_content_hash(named, point))
                        seq += 1
    return _table("metrics", columns, maps)


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


def _empty(signal: str) -> dict[str, list[Any]]:
    return {name: [] for name in SCHEMAS[signal].names if not name.startswith("attributes_")}


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
    return None if kind is None else value.string_value if kind == "string_value" else json_text(plain(value))


def _tiny(number: int) -> int:
    """An enum as TINYINT; a number no enum has is kept as 0 (unspecified)."""
    return number if 0 <= number <= 127 else 0
