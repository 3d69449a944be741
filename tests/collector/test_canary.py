"""A secret that a rule covers is nowhere afterwards: not in the log, Parquet, quarantine, the tee, nor in anything printed.

The search decodes every file and first finds a control string, sent in the same places, that no rule covers.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from lake_search import forms, found_in
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

CANARY, CANARY_IDS = 'canäry "7f3a\\9c" 🐤', [77001, 77002, 77003]
CONTROL, CONTROL_IDS = 'cöntrol "51aa\\07" 🐢', [88001, 88002, 88003]
FREE = "http: 127.0.0.1:0\ngrpc: 127.0.0.1:0\n"
RULES = (
    "redact:\n  rules: [email, phone, card, secret]\n"
    # The pattern is the secret itself, quoted for YAML and for RE2.
    f"  patterns: {{canary: {json.dumps(CANARY.replace(chr(92), chr(92) * 2), ensure_ascii=False)}}}\n"
)


def spans(secret: str, ids: list[int], number: int) -> bytes:
    """A request with the secret in every field that can hold text, in every form that text takes."""
    request = ExportTraceServiceRequest()
    of = request.resource_spans.add(schema_url=f"https://x/{secret}")
    scope = of.scope_spans.add(schema_url=f"https://y/{secret}")
    of.resource.attributes.add(key="who").value.string_value = f"it is {secret}"
    scope.scope.name, scope.scope.version = f"scope {secret}", f"1 {secret}"
    scope.scope.attributes.add(key=f"key {secret}").value.bool_value = True
    span = scope.spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name=f"call {secret}")
    span.trace_state, span.status.message = f"a={secret}", f"failed at {secret}"
    messages = [{"role": "user", "parts": [{"type": "text", "content": f"my word is {secret}, keep it"}]}]
    texts = {
        "plain": f"before {secret} after",
        f"key.{secret}": "x",
        "gen_ai.input.messages": json.dumps(messages),
        "json.unicode": json.dumps(messages, ensure_ascii=False),
        "json.in.json": json.dumps({"arguments": json.dumps({"q": secret}), "n": 1}),
        "json.cut.off": json.dumps(messages)[:-5],
        "json.in.prose": f"the tool said {json.dumps({'a': secret})} and ended",
        "raw.response": json.dumps({"text": "ok", "logprobs": {"token_ids": ids}, "prompt_token_ids": ids}),
    }
    for key, text in texts.items():
        span.attributes.add(key=key).value.string_value = text
    span.attributes.add(key="bytes").value.bytes_value = b"\xff" * 0 + f"bytes {secret}".encode()
    nested = span.attributes.add(key="nested").value.kvlist_value.values.add(key=f"k {secret}").value.array_value
    nested.values.add().string_value = f"deep {secret}"
    for key in ("lightning.prompt.token_ids", "lightning.choice.0.token_ids"):
        span.attributes.add(key=key).value.array_value.values.extend([_int(one) for one in ids])
    event = span.events.add(name=f"event {secret}", time_unix_nano=5)
    event.attributes.add(key="message").value.string_value = secret
    link = span.links.add(trace_id=b"\2" * 16, span_id=b"\2" * 8, trace_state=f"b={secret}")
    link.attributes.add(key="why").value.string_value = secret
    return request.SerializeToString()


def _int(number: int) -> Any:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

    return AnyValue(int_value=number)


def logs(secret: str) -> bytes:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(event_name=f"e {secret}")
    record.severity_text = f"INFO {secret}"
    body = record.body.kvlist_value.values.add(key="content").value
    body.string_value = json.dumps({"said": secret})
    return request.SerializeToString()


def metrics(secret: str) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=f"m {secret}", description=secret)
    point = metric.sum.data_points.add(as_int=1)
    point.attributes.add(key="label").value.string_value = secret
    point.exemplars.add(as_int=1).filtered_attributes.add(key="x").value.string_value = secret
    return request.SerializeToString()


def send_everything(post: Any, collector: Any, secret: str, ids: list[int], first: int) -> list[bytes]:
    """Through every door, well-formed and not; the bodies of all answers."""
    url, body = collector.url, spans(secret, ids, first)
    as_json = json.dumps(
        {"resourceSpans": [{"scopeSpans": [{"spans": [
            {"traceId": "01" * 16, "spanId": f"{first + 1:016x}", "name": secret,
             "attributes": [{"key": "a", "value": {"stringValue": json.dumps([secret])}}]}]}]}]}
    )  # fmt: skip
    answers = [
        post(url, "/v1/traces", body),
        post(url, "/v1/traces", as_json, "application/json"),
        post(url, "/v1/traces", gzip.compress(spans(secret, ids, first + 2)), Content_Encoding="gzip"),
        post(url, "/v1/logs", logs(secret)),
        post(url, "/v1/metrics", metrics(secret)),
    ]
    assert [answer.status for answer in answers] == [200] * 5
    refused = [
        post(url, "/v1/traces", body[:-1]),
        post(url, "/v1/traces", as_json[:-2], "application/json"),
        post(url, "/v1/traces", as_json.replace("01" * 16, secret.split()[0]), "application/json"),
        post(url, "/v1/traces", gzip.compress(body)[:-9], Content_Encoding="gzip"),
        post(url, "/v1/traces", body, "text/plain"),
        post(url, f"/v1/{secret.split()[1].strip(chr(34))[:4]}", b""),
    ]
    assert all(answer.status >= 400 or b"ids" in answer.body for answer in refused)
    with grpc.insecure_channel(collector.line("listening grpc").split("//")[-1]) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        assert export(spans(secret, ids, first + 3)) == b""
        with pytest.raises(grpc.RpcError) as error:
            export(body[:-1])
        refused_text = str(error.value.details()).encode()  # type: ignore[attr-defined]
    return [answer.body for answer in [*answers, *refused]] + [refused_text]


@pytest.mark.row(66)
@pytest.mark.row(67)
def test_a_secret_under_a_rule_is_nowhere_whatever_way_it_came_and_whatever_happened_then(
    start: Any, post: Any, tmp_path: Path
) -> None:
    behind, front = tmp_path / "behind", tmp_path / "front"
    config = tmp_path / "collect.yaml"
    (tmp_path / "plain.yaml").write_text(f"lake: {behind}\n{FREE}")
    second = start("lightning-collect", "--config", str(tmp_path / "plain.yaml"))
    config.write_text(f"lake: {front}\n{FREE}roll_s: 600\nlog: json\n{RULES}forward: [{{endpoint: '{second.url}'}}]\n")
    collector = start("lightning-collect", "--config", str(config))
    printed: list[bytes] = []
    for secret, ids, first in ((CANARY, CANARY_IDS, 100), (CONTROL, CONTROL_IDS, 200)):
        printed += send_everything(post, collector, secret, ids, first)
    printed.append(post(collector.url, "/metrics", None, None, method="GET").body)

    # A request cut in the middle, and the power button while it hangs there.
    parts = urlsplit(collector.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as half:
        half.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 999999\r\n\r\n"
            + spans(CANARY, CANARY_IDS, 300)
        )
        time.sleep(0.3)
        collector.kill()
    printed += [line.encode() for line in collector.lines]
    (log,) = (front / "wal").glob("*.wal")
    control, canary = forms(CONTROL, CONTROL_IDS), forms(CANARY, CANARY_IDS)
    assert f"wal/{log.name}" in found_in(front, control)
    assert found_in(front, canary) == set()

    # One frame of the log is damaged, so that quarantine gets its bytes.
    data = bytearray(log.read_bytes())
    at = data.find("cöntrol".encode())
    data[at] ^= 1
    log.write_bytes(data)
    collector = start("lightning-collect", "--config", str(config))
    _wait_until(lambda: found_in(behind, control) and not list((front / "wal").glob("*.wal")), post, second)
    assert collector.stop() == second.stop() == 0
    printed += [line.encode() for process in (collector, second) for line in process.lines]

    held = found_in(front, control)
    assert any(name.startswith("spans/") for name in held) and any(name.startswith("events/") for name in held)
    assert any(name.startswith("metrics/") for name in held) and any(name.startswith("quarantine/") for name in held)
    assert any(name.startswith("spans/") for name in found_in(behind, control))
    assert found_in(front, canary) == found_in(behind, canary) == set()
    assert not [text for text in printed for one in (*canary, *control) if one in text]
    for line in collector.lines:
        if line.startswith("{"):
            assert json.loads(line).keys() >= {"time", "level", "logger", "message"}


@pytest.mark.row(67)
def test_without_rules_content_is_in_the_lake_and_in_nothing_that_is_printed(
    start: Any, post: Any, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    config = tmp_path / "collect.yaml"
    config.write_text(f"lake: {lake}\n{FREE}roll_s: 0.05\n")
    collector = start("lightning-collect", "--config", str(config))
    printed = send_everything(post, collector, CANARY, CANARY_IDS, 1)
    printed.append(post(collector.url, "/metrics", None, None, method="GET").body)
    post(collector.url, "/flush")
    # Rows that a converter cannot digest, and a damaged log: both are said, neither is quoted.
    (lake / "wal" / "00000099.wal").write_bytes(random.Random(1).randbytes(50) + CANARY.encode())
    assert collector.stop() == 0
    again = start("lightning-collect", "--config", str(config))
    assert again.stop() == 0
    printed += [line.encode() for process in (collector, again) for line in process.lines]
    canary = forms(CANARY, CANARY_IDS)
    held = found_in(lake, canary)
    assert {name.split("/")[0] for name in held} == {"spans", "events", "metrics", "quarantine"}
    assert not [name for name in held if name.endswith(".reason.json")]
    assert not [text for text in printed for one in canary if one in text]


def _wait_until(holds: Any, post: Any, receiver: Any) -> None:
    for _ in range(200):
        post(receiver.url, "/flush")
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about in 20 seconds")
