"""Recorded OTLP under fixtures/otlp, in memory: decoded as the collector does, transformed by the SQL steps alone.

For questions about what the SQL makes of real spans, many times over. The way through a real collector and real files is
test_expected's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from sql_files import ENGINE_TABLES

from otel_lightning.collector.decode import decode
from otel_lightning.collector.wal import Frame
from otel_lightning.transforms import run, steps
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.shapes import empty_relation

OTLP = Path(__file__).parents[1] / "fixtures" / "otlp"
CAPTURES = sorted(str(path.parent.relative_to(OTLP)) for path in OTLP.glob("*/*/server_requests.jsonl"))
SIGNALS = {"traces": ("spans", ExportTraceServiceRequest), "logs": ("events", ExportLogsServiceRequest)}
ROWS_A_FRAME = 100_000  # more than any capture holds
BEGIN, NOW = 10**18, 2 * 10**18

Request = ExportTraceServiceRequest | ExportLogsServiceRequest


def frames(
    captures: Iterable[str] = tuple(CAPTURES), change: Callable[[Request], None] = lambda _: None
) -> list[Frame]:
    """The requests of some captures as the collector accepted them, `change`d first."""
    found: list[Frame] = []
    for capture in captures:
        for path in sorted((OTLP / capture).glob("*.pb")):
            kind = path.stem.split("-")[1]
            if kind in SIGNALS:
                signal, message = SIGNALS[kind]
                request = message.FromString(path.read_bytes())
                change(request)
                number = len(found)
                found.append(Frame(signal, 10**18, number * ROWS_A_FRAME, ROWS_A_FRAME, request.SerializeToString()))
    return found


def owners(captures: Iterable[str]) -> dict[str, str]:
    """Which of some captures each trace is from."""
    return {
        sent.trace_id.hex(): capture
        for capture in captures
        for frame in frames([capture])
        if frame.signal == "spans"
        for resource in ExportTraceServiceRequest.FromString(bytes(frame.body)).resource_spans
        for scope in resource.scope_spans
        for sent in scope.spans
    }


def span(
    trace: str,
    span_id: str,
    parent: str | None = None,
    *,
    start: int,
    end: int,
    attributes: dict[str, Any],
    scope: str = "scope",
    instance: str = "process",
    links: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """A span written by hand; ids of spans may be short, times are small unix nanoseconds."""
    return {
        "trace": trace, "span_id": span_id, "parent": parent, "start": start, "end": end, "attributes": attributes,
        "scope": scope, "instance": instance, "links": list(links),
    }  # fmt: skip


def requests(*spans: dict[str, Any]) -> list[Frame]:
    """Spans written by hand as one request each."""
    found: list[Frame] = []
    for number, said in enumerate(spans):
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        _attribute(resource.resource.attributes.add(), "service.instance.id", said["instance"])
        scope = resource.scope_spans.add()
        scope.scope.name = said["scope"]
        made = scope.spans.add(trace_id=bytes.fromhex(said["trace"]), span_id=_id(said["span_id"]), name="span")
        made.start_time_unix_nano, made.end_time_unix_nano = BEGIN + said["start"], BEGIN + said["end"]
        if said["parent"]:
            made.parent_span_id = _id(said["parent"])
        for key, value in said["attributes"].items():
            _attribute(made.attributes.add(), key, value)
        for trace, target in said["links"]:
            made.links.add(trace_id=bytes.fromhex(trace), span_id=_id(target))
        found.append(Frame("spans", BEGIN, number * ROWS_A_FRAME, ROWS_A_FRAME, request.SerializeToString()))
    return found


def _id(short: str) -> bytes:
    return (
        bytes.fromhex(short.ljust(16, "0")) if set(short) <= set("0123456789abcdef") else short.encode().ljust(8, b"\0")
    )


def _attribute(attribute: KeyValue, key: str, value: Any) -> None:
    attribute.key = key
    kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(value)]
    setattr(attribute.value, kind, value)


def transformed(
    of: list[Frame], upto: str = "tools", config: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the tables of every step up to and with `upto`; the rewards that count are those of `config`."""
    connection = duckdb.connect()
    connection.execute("set threads = 1")
    tables = decode(of, "collector")
    for signal in ("spans", "events"):
        rows = tables.get(signal)
        if rows is None:
            connection.execute(f"create temp table {signal} as {empty_relation(signal)}")
            continue
        connection.register("rows", rows)
        connection.execute(f"create temp table {signal} as select * from rows")
        connection.unregister("rows")
    settings = TransformConfig.model_validate(config or {})
    for table, columns in ENGINE_TABLES.items():
        connection.execute(f"create temp table {table} ({columns})")
    for name, weight in settings.rewards.train.items():
        combine, outcome = settings.rewards.combine.get(name, "last"), name == settings.rewards.outcome
        connection.execute("insert into reward_names values (?, ?, ?, ?)", [name, weight, combine, outcome])
    parameters = run._parameters(settings, NOW, "recipe")
    for step in steps.steps("broadcast"):
        steps.create(connection, step, parameters)
        if step.table == "whole_calls":  # calls as they are stored
            connection.execute(
                "create temp table said as select * from whole_calls; drop view whole_calls; drop table calls; "
                "alter table said rename to calls; create temp view whole_calls as select * from calls"
            )
        if step.table == upto:
            return connection
    raise LookupError(upto)


def rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """What a query returns, a dictionary a row."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
