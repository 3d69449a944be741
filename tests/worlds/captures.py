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

from otel_lightning.collector.decode import decode
from otel_lightning.collector.wal import Frame
from otel_lightning.transforms import run, steps
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.shapes import empty_relation

OTLP = Path(__file__).parents[1] / "fixtures" / "otlp"
CAPTURES = sorted(str(path.parent.relative_to(OTLP)) for path in OTLP.glob("*/*/server_requests.jsonl"))
SIGNALS = {"traces": ("spans", ExportTraceServiceRequest), "logs": ("events", ExportLogsServiceRequest)}
ROWS_A_FRAME = 100_000  # more than any capture holds
NOW = 2 * 10**18

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


def transformed(
    of: list[Frame], upto: str = "tools", config: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the tables of every step up to and with `upto`."""
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
    run._define_prices(connection, settings)
    parameters = run._parameters(settings, NOW, "recipe")
    for step in steps.steps("broadcast"):
        steps.create(connection, step, parameters)
        if step.table == upto:
            return connection
    raise LookupError(upto)


def rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """What a query returns, a dictionary a row."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
