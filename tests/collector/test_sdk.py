"""The OpenTelemetry SDK for Python in another process, with its default settings, over both protocols."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SENDER = """
import json, logging, sys
from opentelemetry import trace, metrics, _logs
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
if sys.argv[1] == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

spans = TracerProvider(); spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
logs = LoggerProvider(); logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
tracer, sent = spans.get_tracer("sender"), []
for number in range(300):
    with tracer.start_as_current_span(f"root {number}", attributes={"session.id": "s", "number": number}) as root:
        with tracer.start_as_current_span("child", attributes={"ratio": 0.5, "list": ["a", "b"]}) as child:
            pass
    sent += [[format(s.get_span_context().trace_id, "032x"), format(s.get_span_context().span_id, "016x")]
             for s in (root, child)]
meters.get_meter("sender").create_counter("turns").add(3, {"kind": "test"})
logs.get_logger("sender").emit(_logs.LogRecord(event_name="gen_ai.evaluation.result", body="fine",
                                              attributes={"gen_ai.evaluation.score.value": 1.0}))
for provider in (spans, meters, logs):
    provider.shutdown()
print(json.dumps(sent))
"""


@pytest.mark.parametrize(
    ("protocol", "compression"), [("grpc", "default"), ("grpc", "gzip"), ("http", "default"), ("http", "gzip")]
)
def test_the_sdk_exports_with_its_defaults(
    collector: Any, post: Any, read: Any, protocol: str, compression: str
) -> None:
    grpc = collector.line("listening grpc").split()[-1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")} | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": grpc if protocol == "grpc" else collector.url,
        "OTEL_SERVICE_NAME": "sender",
    }
    if compression == "gzip":
        environment["OTEL_EXPORTER_OTLP_COMPRESSION"] = "gzip"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SENDER, protocol],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert post(collector.url, "/flush").status == 200
    sent = {tuple(ids) for ids in json.loads(done.stdout)}
    rows = read.rows("spans")
    assert len(rows) == len(sent) == 600
    assert {(row["trace_id"], row["span_id"]) for row in rows} == sent
    assert {row["service_name"] for row in rows} == {"sender"}
    assert sum(row["parent_span_id"] is None for row in rows) == 300
    roots = [row for row in rows if row["name"].startswith("root")]
    assert sorted(row["attributes_int"]["number"] for row in roots) == list(range(300))
    events = read.rows("events")
    assert [(e["event_name"], e["body"], e["attributes_dbl"]) for e in events] == [
        ("gen_ai.evaluation.result", '"fine"', {"gen_ai.evaluation.score.value": 1.0})
    ]
    assert [
        (m["name"], m["value"], m["attributes_str"], m["temporality"], m["monotonic"]) for m in read.rows("metrics")
    ] == [("turns", 3.0, {"kind": "test"}, "cumulative", True)]
