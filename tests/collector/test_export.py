"""What real senders post is what the lake holds, field by field, whatever the encoding on the way."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FIXTURES = Path(__file__).parents[1] / "fixtures"
REQUESTS = {
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
# column -> attribute key, written out so that a change of the collector's own table is noticed
MOVED_TEXT = {
    "operation": "gen_ai.operation.name",
    "oi_kind": "openinference.span.kind",
    "provider": "gen_ai.provider.name",
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "llm_model_name": "llm.model_name",
    "response_id": "gen_ai.response.id",
    "session_id": "session.id",
    "conversation_id": "gen_ai.conversation.id",
    "user_id": "user.id",
    "agent_name": "gen_ai.agent.name",
    "tool_name": "gen_ai.tool.name",
    "tool_call_id": "gen_ai.tool.call.id",
    "rollout_id": "lightning.rollout.id",
    "task_id": "lightning.task.id",
    "group_id": "lightning.group.id",
    "split": "lightning.split",
    "capture": "lightning.capture",
    "policy_version": "lightning.policy.version",
    "logprobs_mode": "lightning.logprobs.mode",
    "tokenizer": "lightning.tokenizer",
    "content": "lightning.content",
    "target_trace_id": "lightning.target.trace_id",
    "target_span_id": "lightning.target.span_id",
    "target_response_id": "lightning.target.response_id",
    "target_tool_call_id": "lightning.target.tool_call_id",
    "reward_source": "lightning.reward.source",
    "reward_version": "lightning.reward.version",
    "reward_identifier": "lightning.reward.identifier",
}
MOVED_INT = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "attempt": "lightning.attempt",
    "span_seq": "lightning.span.seq",
    "span_count": "lightning.span.count",
    "target_choice": "lightning.target.choice",
}


def plain(value: Any) -> Any:
    """An AnyValue as the lake's JSON text says it; the test's own reading of the rule."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return {"bytesValue": base64.b64encode(value.bytes_value).decode()}
    number = getattr(value, kind)
    if kind == "double_value" and not math.isfinite(number):
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}[str(number)]
    return number


def attributes_of(row: dict[str, Any], moved: bool = True) -> dict[str, Any]:
    """The attributes of a stored row put together again from maps and moved columns."""
    found: dict[str, Any] = {}
    for name in ("str", "int", "dbl", "bool"):
        found |= row[f"attributes_{name}"]
    found |= {key: json.loads(text) for key, text in row["attributes_json"].items()}
    if moved:
        columns = MOVED_TEXT | MOVED_INT
        found |= {key: row[column] for column, key in columns.items() if row[column] is not None}
        if row["prompt_token_ids"] is not None:
            found["lightning.prompt.token_ids"] = row["prompt_token_ids"]
        for index, choice in enumerate(row["choices"] or ()):
            for name in ("token_ids", "logprobs"):
                if choice[name] is not None:
                    found[f"lightning.choice.{index}.{name}"] = choice[name]
    return found


def sent_attributes(message: Any) -> dict[str, Any]:
    return {item.key: plain(item.value) for item in message.attributes}


def assert_same_span(row: dict[str, Any], span: Any, scope: Any, of: Any) -> None:
    """Every field that OTLP carries about `span` is in `row`."""
    assert (row["trace_id"], row["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
    assert row["parent_span_id"] == (span.parent_span_id.hex() or None)
    assert (row["name"], row["kind"], row["flags"]) == (span.name, span.kind, span.flags)
    assert row["trace_state"] == (span.trace_state or None)
    assert (row["start_unix_nano"], row["end_unix_nano"]) == (span.start_time_unix_nano, span.end_time_unix_nano)
    assert (row["status_code"], row["status_message"]) == (span.status.code, span.status.message or None)
    assert attributes_of(row) == sent_attributes(span)
    assert_same_place(row, scope, of)
    for name in ("attributes", "events", "links"):
        assert row[f"dropped_{name}_count"] == getattr(span, f"dropped_{name}_count")
    assert [
        (e["time_unix_nano"], e["name"], json.loads(e["attributes"]), e["dropped_attributes_count"])
        for e in row["events"]
    ] == [(e.time_unix_nano, e.name, sent_attributes(e), e.dropped_attributes_count) for e in span.events]
    assert [
        (k["trace_id"], k["span_id"], k["trace_state"], k["flags"], json.loads(k["attributes"])) for k in row["links"]
    ] == [(k.trace_id.hex(), k.span_id.hex(), k.trace_state or None, k.flags, sent_attributes(k)) for k in span.links]


def assert_same_place(row: dict[str, Any], scope: Any, of: Any) -> None:
    resource = sent_attributes(of.resource)
    assert json.loads(row["resource_attributes"]) == resource
    assert row["service_name"] == resource.get("service.name")
    assert row["service_instance_id"] == resource.get("service.instance.id")
    assert (row["scope_name"], row["scope_version"]) == (scope.scope.name or None, scope.scope.version or None)
    assert json.loads(row["scope_attributes"]) == sent_attributes(scope.scope)
    assert row["resource_schema_url"] == (of.schema_url or None)
    assert row["scope_schema_url"] == (scope.schema_url or None)


SERVICES = {"traces": "trace.v1.TraceService", "logs": "logs.v1.LogsService", "metrics": "metrics.v1.MetricsService"}


def sender(collector: Any, post: Any, transport: str) -> Callable[[str, bytes], None]:
    """Sends a protobuf body of a signal over one transport, and looks at the answer."""
    if transport == "grpc":
        channel = grpc.insecure_channel(collector.line("listening grpc").split("//")[-1])

        def send(signal: str, body: bytes) -> None:
            path = f"/opentelemetry.proto.collector.{SERVICES[signal]}/Export"
            assert channel.unary_unary(path)(body, timeout=30) == b""

    elif transport == "json":

        def send(signal: str, body: bytes) -> None:
            text = json.dumps(otlp_json(REQUESTS[signal].FromString(body)))
            answer = post(collector.url, f"/v1/{signal}", text, "application/json")
            assert (answer.status, answer.json, answer.headers["content-type"]) == (200, {}, "application/json")

    else:

        def send(signal: str, body: bytes) -> None:
            answer = post(collector.url, f"/v1/{signal}", body)
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-type"] == "application/x-protobuf"

    return send


@pytest.mark.parametrize("decoder", ["native", "python"])
@pytest.mark.parametrize("transport", ["grpc", "protobuf", "json"])
def test_every_captured_payload_comes_back_field_by_field(
    start: Any, tmp_path: Path, post: Any, read: Any, transport: str, decoder: str
) -> None:
    arguments = ("--lake", str(tmp_path / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    collector = start("lightning-collect", *arguments, LIGHTNING_COLLECT_DECODER=decoder)
    send = sender(collector, post, transport)
    spans, records, points = [], [], []
    for path in sorted((FIXTURES / "otlp").rglob("*.pb")):
        signal = re.sub(r".*-(\w+)\.pb", r"\1", path.name)
        body = path.read_bytes()
        send(signal, body)
        request = REQUESTS[signal].FromString(body)
        if signal == "traces":
            spans += [(s, ss, rs) for rs in request.resource_spans for ss in rs.scope_spans for s in ss.spans]
        elif signal == "logs":
            records += [(r, sl, rl) for rl in request.resource_logs for sl in rl.scope_logs for r in sl.log_records]
        else:
            points += [
                (p, m, sm, rm)
                for rm in request.resource_metrics
                for sm in rm.scope_metrics
                for m in sm.metrics
                for p in getattr(m, m.WhichOneof("data")).data_points
            ]
    assert post(collector.url, "/flush").json == {"flushed": True}

    rows = read.rows("spans")
    assert len(rows) == len(spans) > 1000
    for row, (span, scope, of) in zip(rows, spans, strict=True):
        assert_same_span(row, span, scope, of)

    rows = read.rows("events")
    assert len(rows) == len(records) > 100
    for row, (record, scope, of) in zip(rows, records, strict=True):
        assert (row["trace_id"], row["span_id"]) == (record.trace_id.hex() or None, record.span_id.hex() or None)
        assert (row["time_unix_nano"], row["observed_unix_nano"]) == (
            record.time_unix_nano,
            record.observed_time_unix_nano,
        )
        assert (row["event_name"], row["severity_text"]) == (record.event_name or None, record.severity_text or None)
        assert row["severity_number"] == record.severity_number
        assert row["flags"] == record.flags
        assert (json.loads(row["body"]) if row["body"] else None) == plain(record.body)
        assert attributes_of(row, moved=False) == sent_attributes(record)
        assert_same_place(row, scope, of)
        assert re.fullmatch("[0-9a-f]{64}", row["content_sha256"])

    rows = read.rows("metrics")
    assert len(rows) == len(points) > 10
    for row, (point, metric, scope, of) in zip(rows, points, strict=True):
        assert (row["name"], row["unit"], row["type"]) == (metric.name, metric.unit or None, metric.WhichOneof("data"))
        assert (row["start_unix_nano"], row["time_unix_nano"]) == (point.start_time_unix_nano, point.time_unix_nano)
        assert attributes_of(row, moved=False) == sent_attributes(point)
        if row["type"] == "histogram":
            stored = json.loads(row["point"])
            assert stored["bucketCounts"] == [str(n) for n in point.bucket_counts]
            assert (int(stored["count"]), stored["sum"]) == (point.count, point.sum)
        else:
            assert row["value"] == getattr(point, point.WhichOneof("value"))
        assert_same_place(row, scope, of)

    # Rows are numbered without a gap or a repetition, over all signals, in the order of arrival.
    numbers = sorted(row["seq"] for signal in ("spans", "events", "metrics") for row in read.rows(signal, "seq"))
    assert numbers == list(range(1, len(numbers) + 1))


def otlp_json(message: Any) -> dict[str, Any]:
    """OTLP/JSON of a request: protobuf's JSON with hex ids and integer enums."""

    def hexed(value: Any) -> Any:
        if isinstance(value, list):
            return [hexed(item) for item in value]
        if isinstance(value, dict):
            return {
                key: base64.b64decode(item).hex().upper()
                if key in ("traceId", "spanId", "parentSpanId")
                else hexed(item)
                for key, item in value.items()
            }
        return value

    return hexed(MessageToDict(message, use_integers_for_enums=True))


@pytest.mark.parametrize("name", ["traces", "logs", "metrics"])
def test_json_and_gzip_store_the_same_rows_as_protobuf(collector: Any, post: Any, read: Any, name: str) -> None:
    paths = sorted((FIXTURES / "otlp").rglob(f"*-{name}.pb"))[:12]
    for path in paths:
        body = path.read_bytes()
        text = json.dumps(otlp_json(REQUESTS[name].FromString(body)))
        assert post(collector.url, f"/v1/{name}", body).status == 200
        answer = post(collector.url, f"/v1/{name}", text, "application/json; charset=utf-8")
        assert (answer.status, answer.json, answer.headers["content-type"]) == (200, {}, "application/json")
        assert (
            post(collector.url, f"/some/prefix/v1/{name}", gzip.compress(body), Content_Encoding="gzip").status == 200
        )
        packed = gzip.compress(text.encode())
        assert post(collector.url, f"/v1/{name}", packed, "application/json", Content_Encoding="gzip").status == 200
    post(collector.url, "/flush")
    signal = {"traces": "spans", "logs": "events", "metrics": "metrics"}[name]
    rows = read.rows(signal, "* exclude (seq, received_unix_nano)")
    for path in paths:
        count = len(rows) // 4 if len(paths) == 1 else _rows_in(name, path)
        copies = [rows[i * count : (i + 1) * count] for i in range(4)]
        rows = rows[4 * count :]
        assert copies[1] == copies[0], f"JSON of {path}"
        assert copies[2] == copies[0], f"gzip of {path}"
        assert copies[3] == copies[0], f"JSON, gzip of {path}"
    assert not rows


def _rows_in(name: str, path: Path) -> int:
    request = REQUESTS[name].FromString(path.read_bytes())
    if name == "traces":
        return sum(len(s.spans) for of in request.resource_spans for s in of.scope_spans)
    if name == "logs":
        return sum(len(s.log_records) for of in request.resource_logs for s in of.scope_logs)
    return sum(
        len(getattr(m, m.WhichOneof("data")).data_points)
        for of in request.resource_metrics
        for s in of.scope_metrics
        for m in s.metrics
    )


def assert_javascript_spans(rows: list[dict[str, Any]], ids: dict[str, dict[str, str]]) -> None:
    """What export.cjs says it sent."""
    assert len(rows) == 3
    found = {row["name"]: row for row in rows}
    root, call, failed = found["invoke_agent helper"], found["chat tiny"], found["execute_tool lookup"]
    for name, row in (("root", root), ("call", call), ("failed", failed)):
        assert {"trace_id": row["trace_id"], "span_id": row["span_id"]} == ids[name]
    assert root["parent_span_id"] is None
    assert call["parent_span_id"] == failed["parent_span_id"] == root["span_id"]
    assert (root["session_id"], root["oi_kind"]) == ("session-ü-1", "AGENT")
    assert (call["operation"], call["request_model"], call["input_tokens"]) == ("chat", "tiny", 12)
    assert call["kind"] == 3
    assert call["attributes_dbl"] == {"gen_ai.request.temperature": 0.5}
    assert call["attributes_int"] == {"gen_ai.request.top_p": 1}
    assert call["attributes_bool"] == {"streaming": True}
    assert call["attributes_str"] == {"cut": "smile \ufffd"}
    assert {key: json.loads(text) for key, text in call["attributes_json"].items()} == {"stop": ["\n", "é😀"]}
    assert call["prompt_token_ids"] == [1, 2, 70000]
    assert call["choices"] == [{"token_ids": [3, 4], "logprobs": [-0.25, -1.0]}]
    assert [(e["name"], json.loads(e["attributes"])) for e in call["events"]] == [("first token", {"latency ms": 3.25})]
    assert [(link["trace_id"], link["span_id"]) for link in call["links"]] == [(root["trace_id"], root["span_id"])]
    assert (failed["status_code"], failed["status_message"]) == (2, "no such order")
    assert failed["events"][0]["name"] == "exception"
    assert root["service_name"] == "js-agent"
    assert (root["scope_name"], root["scope_version"]) == ("js-agent-scope", "1.2.3")


@pytest.mark.parametrize(
    ("name", "content_type"), [("traces.json", "application/json"), ("traces.pb", "application/x-protobuf")]
)
def test_bodies_recorded_from_the_javascript_sdk(
    collector: Any, post: Any, read: Any, name: str, content_type: str
) -> None:
    body = (FIXTURES / "js" / name).read_bytes()
    # An iterable body goes out in chunks, without a length, as Node sends it.
    pieces = (body[i : i + 700] for i in range(0, len(body), 700))
    assert post(collector.url, "/v1/traces", pieces, content_type).status == 200
    post(collector.url, "/flush")
    assert_javascript_spans(read.rows("spans"), json.loads((FIXTURES / "js" / f"{name}.ids.json").read_text()))


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_the_javascript_sdk_itself(collector: Any, read: Any, encoding: str, post: Any) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js: install the package 'nodejs'")
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    check = subprocess.run(
        [node, "-e", "require('@opentelemetry/sdk-trace-node')"],
        cwd=FIXTURES / "js",
        env=environment,
        capture_output=True,
    )
    if check.returncode:
        pytest.skip("needs the JavaScript SDK: npm install --prefix tests/fixtures/js")
    said = subprocess.run(
        [node, "export.cjs", encoding], cwd=FIXTURES / "js", env=environment, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    post(collector.url, "/flush")
    assert_javascript_spans(read.rows("spans"), json.loads(said.stdout))
