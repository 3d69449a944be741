"""Bad input gets the right answer in the sender's own encoding, and costs nobody else anything."""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from wire_noise import nested

from otel_lightning.app.errors import SenderError
from otel_lightning.collector.check import check_json, check_protobuf
from otel_lightning.collector.decode import decode
from otel_lightning.collector.wal import Frame

PROTOBUF, JSON = "application/x-protobuf", "application/json"
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, start_for_module: Any) -> Any:
    """A collector with small limits, for all tests of this file."""
    folder = tmp_path_factory.mktemp("limited")
    config = folder / "collect.yaml"
    config.write_text(
        f"lake: {folder / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\n"
        f"max_body_bytes: {LIMIT}\nread_timeout_s: 1\nmax_connections: 20\n"
    )
    return start_for_module("lightning-collect", "--config", str(config))


def spans(*ids: tuple[bytes, bytes], name: str = "n") -> bytes:
    request = ExportTraceServiceRequest()
    found = request.resource_spans.add().scope_spans.add().spans
    for trace_id, span_id in ids:
        found.add(trace_id=trace_id, span_id=span_id, name=name)
    return request.SerializeToString()


GOOD = spans((b"\1" * 16, b"\2" * 8))


def json_span(**fields: Any) -> dict[str, Any]:
    span = {"traceId": "AB" * 16, "spanId": "cd" * 8, "name": "n"} | fields
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def deep_json(levels: int) -> str:
    value: Any = {"stringValue": "x"}
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    return json.dumps(json_span(attributes=[{"key": "a", "value": value}]))


@pytest.mark.row(42)
@pytest.mark.row(43)
@pytest.mark.row(47)
@pytest.mark.row(48)
@pytest.mark.row(50)
@pytest.mark.parametrize(
    ("body", "content_type", "headers", "expected"),
    [
        (b"\xff\xff\xff", PROTOBUF, {}, 400),
        (GOOD[:-1], PROTOBUF, {}, 400),
        (spans((b"\1" * 16, b"\2" * 8), name="abc").replace(b"abc", b"\xc3\x28c"), PROTOBUF, {}, 400),
        (nested(20_000), PROTOBUF, {}, 400),
        (b"{", JSON, {}, 400),
        (b"[]", JSON, {}, 400),
        (b'{"resourceSpans": 7}', JSON, {}, 400),
        (b'{"resourceSpans": [7]}', JSON, {}, 400),
        (json.dumps(json_span(startTimeUnixNano="soon")).encode(), JSON, {}, 400),
        (json.dumps(json_span(startTimeUnixNano=-1)).encode(), JSON, {}, 400),
        (json.dumps(json_span(kind=1.5)).encode(), JSON, {}, 400),
        (json.dumps(json_span(name=7)).encode(), JSON, {}, 400),
        (deep_json(60).encode(), JSON, {}, 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, JSON, {}, 400),
        (gzip.compress(GOOD)[:-5], PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(GOOD) + b"garbage", PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"") * 1000, PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (GOOD, PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (GOOD, PROTOBUF, {"Content_Encoding": "br"}, 415),
        (GOOD, "text/plain", {}, 415),
        (GOOD, None, {}, 415),
        (bytes(LIMIT + 1), PROTOBUF, {}, 413),
        (b" " * (LIMIT + 1), JSON, {}, 413),
        (gzip.compress(bytes(LIMIT + 1)), PROTOBUF, {"Content_Encoding": "gzip"}, 413),
        (gzip.compress(b" " * (LIMIT * 200)), JSON, {"Content_Encoding": "gzip"}, 413),
        (GOOD, PROTOBUF, {"Origin": "http://evil.example"}, 403),
    ],
    # Not what is in it: a gzip header holds the time, and every worker must find tests of the same names.
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_a_bad_body_is_answered_with_a_status_in_its_own_encoding(
    limited: Any, post: Any, body: bytes, content_type: str | None, headers: dict[str, str], expected: int
) -> None:
    answer = post(limited.url, "/v1/traces", body, content_type, **headers)
    assert answer.status == expected
    if content_type == JSON:
        assert answer.headers["content-type"] == JSON
        assert answer.json["message"] and answer.json["code"]
        if expected == 400:
            assert answer.json["details"][0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    else:
        assert answer.headers["content-type"] == PROTOBUF
        status = Status.FromString(answer.body)
        assert status.message and status.code
        if expected == 400:
            violations = BadRequest()
            assert status.details[0].Unpack(violations) and violations.field_violations
    assert post(limited.url, "/v1/traces", GOOD).status == 200


def test_paths_and_methods_that_are_not_served(limited: Any, post: Any) -> None:
    assert post(limited.url, "/v1/traces", None, None, method="GET").status == 405
    assert post(limited.url, "/", None, None, method="GET").status == 404
    assert post(limited.url, "/v1/trace", GOOD).status == 404
    answer = post(limited.url, "/v1development/profiles", b"", PROTOBUF)
    assert answer.status == 404
    assert "profiles" in Status.FromString(answer.body).message


def test_an_empty_request_is_a_success(limited: Any, post: Any) -> None:
    assert post(limited.url, "/v1/traces", b"").status == 200
    assert post(limited.url, "/v1/traces", b"{}", JSON).json == {}
    assert post(limited.url, "/v1/logs", b'{"resourceLogs": [{}]}', JSON).status == 200


@pytest.mark.row(53)
def test_spans_with_bad_ids_are_rejected_alone(collector: Any, post: Any, read: Any) -> None:
    good, trace = b"\7" * 8, b"\1" * 16
    bad = [(trace, b""), (trace, b"\1" * 7), (trace, bytes(8)), (b"\1" * 15, good), (bytes(16), good), (b"", good)]
    answer = post(collector.url, "/v1/traces", spans((trace, good), *bad, (trace, b"\6" * 8)))
    assert answer.status == 200
    partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert partial.rejected_spans == len(bad)
    assert "ids" in partial.error_message
    body = json_span()
    body["resourceSpans"][0]["scopeSpans"][0]["spans"] += [
        {"traceId": "xyz", "spanId": "cd" * 8},
        {"traceId": "AB" * 16},
    ]
    answer = post(collector.url, "/v1/traces", json.dumps(body), JSON)
    assert answer.json["partialSuccess"]["rejectedSpans"] in ("2", 2)
    post(collector.url, "/flush")
    assert [row["span_id"] for row in read.rows("spans")] == [good.hex(), "06" * 8, "cd" * 8]


def test_a_record_with_half_an_id_is_kept_without_context(collector: Any, post: Any, read: Any) -> None:
    records = [{"traceId": "ab" * 16, "spanId": "cd" * 8}, {"traceId": "ab"}, {"traceId": "00" * 16}, {}]
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    assert post(collector.url, "/v1/logs", json.dumps(body), JSON).json == {}
    post(collector.url, "/flush")
    assert [row["trace_id"] for row in read.rows("events")] == ["ab" * 16, None, None, None]


@pytest.mark.row(40)
@pytest.mark.row(49)
def test_json_is_read_by_otlps_rules(collector: Any, post: Any, read: Any) -> None:
    values = [
        ("number", {"intValue": 7}), ("text", {"intValue": "-9223372036854775808"}), ("nan", {"doubleValue": "NaN"}),
        ("float", {"doubleValue": 1}), ("bytes", {"bytesValue": "AAH/"}), ("empty", {}), ("nul", {"stringValue": "a\0b"}),
        ("list", {"kvlistValue": {"values": [{"key": "k", "value": {"boolValue": True}}]}}),
    ]  # fmt: skip
    body = json_span(
        startTimeUnixNano=18446744073709551615,
        endTimeUnixNano="12",
        parentSpanId="",
        unknownField={"deep": [1]},
        status=None,
        attributes=[{"key": key, "value": value} for key, value in values],
    )
    assert post(collector.url, "/v1/traces", json.dumps(body), JSON).json == {}
    post(collector.url, "/flush")
    (row,) = read.rows("spans")
    assert (row["trace_id"], row["parent_span_id"]) == ("ab" * 16, None)
    assert (row["start_unix_nano"], row["end_unix_nano"]) == (18446744073709551615, 12)
    assert row["attributes_int"] == {"number": 7, "text": -(2**63)}
    assert row["attributes_str"] == {"nul": "a\0b"}
    doubles = row["attributes_dbl"]
    assert doubles["nan"] != doubles["nan"] and doubles["float"] == 1.0
    assert {key: json.loads(text) for key, text in row["attributes_json"].items()} == {
        "bytes": {"bytesValue": "AAH/"},
        "empty": None,
        "list": {"k": True},
    }


@pytest.mark.row(54)
def test_ten_thousand_mutations_get_only_answers_that_mean_something() -> None:
    chance = random.Random(7)
    fixtures = Path(__file__).parents[1] / "fixtures"
    seeds = [(fixtures / "js" / "traces.pb").read_bytes(), nested(5)]
    frames = []
    for _ in range(10_000):
        body = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            accepted = check_protobuf("spans", bytes(body))
        except SenderError:
            continue
        if accepted.rows:
            frames.append(Frame("spans", 1, len(frames) * 10 + 1, accepted.rows, accepted.body))
    assert len(frames) > 500
    assert decode(frames, "ab" * 8)["spans"].num_rows == sum(frame.rows for frame in frames)
    text = (fixtures / "js" / "traces.json").read_bytes()
    for _ in range(3_000):
        body = bytearray(text)
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.choice(b'{}[]",:0a\\-.e')
        try:
            accepted = check_json("spans", bytes(body))
        except SenderError:
            continue
        if accepted.rows:
            decode([Frame("spans", 1, 1, accepted.rows, accepted.body)], "ab" * 8)


def raw(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def everything(connection: socket.socket) -> bytes:
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.row(45)
@pytest.mark.parametrize(
    "begun",
    [
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 50\r\n\r\nabc",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_a_sender_that_stops_half_way_is_cut_off(limited: Any, begun: bytes) -> None:
    with raw(limited.url) as connection:
        connection.sendall(begun)
        before = time.monotonic()
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - before < 5  # read_timeout_s is 1


@pytest.mark.row(44)
def test_a_body_beyond_the_limit_in_chunks_is_refused_before_it_ends(limited: Any) -> None:
    with raw(limited.url) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(5):
            connection.sendall(b"40000\r\n" + bytes(0x40000) + b"\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_headers_without_end_are_refused(limited: Any) -> None:
    with raw(limited.url) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nX: " + b"a" * (80 << 10))
        assert everything(connection).startswith(b"HTTP/1.1 431 ")


def test_what_is_not_http_is_refused(limited: Any) -> None:
    with raw(limited.url) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.row(46)
def test_connections_are_capped_and_live_ones_go_on(limited: Any, post: Any) -> None:
    kept = [raw(limited.url) for _ in range(20)]
    try:
        time.sleep(0.2)
        with raw(limited.url) as one_more:
            answer = everything(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer
        request = (
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Content-Length: " + str(len(GOOD)).encode() + b"\r\n\r\n" + GOOD
        )
        for _ in range(2):  # kept alive, and two at once in a pipeline
            kept[0].sendall(request * 2)
            data = b""
            while data.count(b"HTTP/1.1 200 OK") < 2:
                data += kept[0].recv(65536)
    finally:
        for connection in kept:
            connection.close()
    time.sleep(0.2)
    assert post(limited.url, "/v1/traces", GOOD).status == 200


def test_an_honest_client_that_asks_first_is_told_to_continue(limited: Any) -> None:
    head = (
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    )
    with raw(limited.url) as connection:
        connection.sendall(head % (b"application/x-protobuf", len(GOOD)))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(GOOD)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    with raw(limited.url) as connection:
        connection.sendall(head % (b"text/plain", 10 << 20))
        assert everything(connection).startswith(b"HTTP/1.1 415 ")


@pytest.mark.row(42)
def test_grpc_refuses_what_is_bad_and_what_is_large(limited: Any) -> None:
    address = limited.line("listening grpc").split("//")[-1]
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        partial = ExportTraceServiceResponse.FromString(
            export(spans((b"\1" * 16, b"\2" * 8), (b"", b"")))
        ).partial_success
        assert partial.rejected_spans == 1
        for body, compression, code in (
            (b"\xff", None, grpc.StatusCode.INVALID_ARGUMENT),
            (bytes(LIMIT + 1), None, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (bytes(LIMIT * 20), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                export(body, compression=compression)
            assert refused.value.code() == code  # type: ignore[attr-defined]
            trailing = dict(refused.value.trailing_metadata() or ())  # type: ignore[attr-defined]
            assert "google.rpc.retryinfo-bin" not in trailing
        profiles = channel.unary_unary("/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            profiles(b"")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


@pytest.mark.row(42)
def test_a_gzip_bomb_costs_neither_time_nor_memory(limited: Any, post: Any) -> None:
    engine = zlib.compressobj(9, wbits=31)
    bomb = b"".join(engine.compress(bytes(1 << 20)) for _ in range(256)) + engine.flush()
    before = _memory_kib(limited.popen.pid)
    assert post(limited.url, "/v1/traces", bomb, Content_Encoding="gzip").status == 413
    assert _memory_kib(limited.popen.pid) - before < 64 << 10


def test_health_and_metrics(limited: Any, post: Any) -> None:
    assert post(limited.url, "/healthz", None, None, method="GET").status == 200
    assert post(limited.url, "/readyz", None, None, method="GET").status == 200
    text = post(limited.url, "/metrics", None, None, method="GET").body.decode()
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
    assert 'lightning_collect_acknowledged_total{signal="spans"}' in text
    assert 'lightning_collect_refused_total{reason="http_400"}' in text


def _memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc: run on Linux")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
