"""Hostile or broken input beyond what test_bad_input.py sends: sizes, characters, names that would be paths or SQL."""

from __future__ import annotations

import ast
import contextlib
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector import oversize
from otel_lightning.collector.acceptance import Acceptance
from otel_lightning.collector.decode import decode
from otel_lightning.collector.parquet import parquet_bytes, read_rows
from otel_lightning.collector.recovery import Origin
from otel_lightning.collector.wal import Frame
from otel_lightning.transforms import steps
from otel_lightning.transforms.ask import ask
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.show import show_trace
from otel_lightning.transforms.tables import open_tables

ROOT = Path(__file__).parents[2]


def stored(accepted: Any) -> list[dict[str, Any]]:
    """What Parquet gives back."""
    table = decode([Frame(accepted.signal, 1, 1, accepted.rows, accepted.body)], "ab" * 8)[accepted.signal]
    return read_rows(parquet_bytes(table, Origin("ab" * 8, 1, 1, accepted.rows))).to_pylist()


def span_of(**fields: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, **fields)
    return request


@pytest.mark.row(40)
@pytest.mark.row(38)
@given(start=st.integers(0, 2**64 - 1), end=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_any_time_that_fits_the_wire_fits_the_column(start: int, end: int) -> None:
    request = span_of(start_time_unix_nano=start, end_time_unix_nano=end)
    (row,) = stored(Acceptance().protobuf("spans", request.SerializeToString()))
    assert (row["start_unix_nano"], row["end_unix_nano"]) == (start, end)


@pytest.mark.row(51)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_every_character_comes_back_as_it_was(text: str) -> None:
    special = f"{text}\0\u202e\u200d\U0001f424{text}"
    request = span_of(name=special)
    request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key=f"k{text}").value.string_value = special
    request.resource_spans[0].scope_spans[0].spans[0].events.add(name=special)
    (row,) = stored(Acceptance().protobuf("spans", request.SerializeToString()))
    assert row["name"] == special and dict(row["attributes_str"]) == {f"k{text}": special}
    assert row["events"][0]["name"] == special


@pytest.mark.row(51)
def test_half_a_surrogate_pair_is_replaced_and_the_rest_of_the_request_kept() -> None:
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "cut \ud83d"}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    (row,) = stored(Acceptance().json("spans", body))
    assert row["name"] == "cut \ufffd"


@pytest.mark.row(52)
def test_what_is_too_large_is_cut_and_counted_where_otlp_counts_what_was_dropped() -> None:
    limit = oversize.MAX_VALUE_BYTES
    request = span_of(name="n" * (10 << 20))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.add(key="text").value.string_value = "ä" * (20 << 20)
    span.attributes.add(key="bytes").value.bytes_value = bytes(limit + 1)
    span.attributes.add(key="fits").value.string_value = "x" * limit
    span.attributes.add(key="deep").value.array_value.values.add().kvlist_value.values.add(
        key="k"
    ).value.string_value = "y" * (limit + 5)
    acceptance = Acceptance()
    (row,) = stored(acceptance.protobuf("spans", request.SerializeToString()))
    texts = dict(row["attributes_str"])
    assert len(row["name"]) == limit and texts["text"] == "ä" * (limit // 2) and len(texts["fits"]) == limit
    assert row["dropped_attributes_count"] == 4 and acceptance.counts.values == 4
    small = span_of(name="n").SerializeToString()
    assert acceptance.protobuf("spans", small).body is small


@pytest.mark.row(52)
def test_a_million_events_and_a_hundred_thousand_keys_too_many_are_counted() -> None:
    request = span_of(name="n")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    one = span.events.add(name="e", time_unix_nano=7)
    span.events.extend([one] * 1_000_000)
    for number in range(oversize.MAX_ITEMS + 10):
        span.attributes.add(key=f"key-{number:07d}").value.int_value = number
    acceptance = Acceptance()
    (row,) = stored(acceptance.protobuf("spans", request.SerializeToString()))
    assert len(row["events"]) == len(row["attributes_int"]) == oversize.MAX_ITEMS
    assert row["dropped_events_count"] == 900_001 and row["dropped_attributes_count"] == 11
    assert acceptance.counts.items == 900_011


@pytest.mark.row(52)
def test_a_call_that_was_cut_is_never_trained_on(otlp: Any, tmp_path: Path) -> None:
    from running import attributes

    trace = "ab" * 16
    values = {
        "openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "x" * (oversize.MAX_VALUE_BYTES + 1),
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "y",
    }  # fmt: skip
    otlp.send([{"traceId": trace, "spanId": "cd" * 8, "name": "n", "startTimeUnixNano": str(otlp.tick()), "endTimeUnixNano": str(otlp.tick()), "attributes": attributes(values)}])  # fmt: skip
    otlp.flush()
    run_transform(tmp_path / "lake", TransformConfig())
    with open_tables(tmp_path / "lake") as connection:
        assert connection.execute("select trainable, untrainable_reason from calls").fetchall() == [
            (False, "dropped_attributes")
        ]


NAMES = [
    "../../../etc/x",
    "a/b",
    "",
    "\0",
    "x" * 300,
    "..",
    "day=2020-01-01",
    "%2e%2e%2f",
    "con",
    "$(touch x)",
    "'; drop table spans; --",
    '"',
]
CELLS = [
    "=cmd|'/c calc'!A0",
    "@SUM(1)",
    "+1+1",
    "-1+1",
    "\x1b]0;owned\x07\x1b[31m",
    "<script>alert(1)</script>",
    "[bold]x[/bold]",
]


@pytest.fixture(scope="module")
def lake_of_names(tmp_path_factory: pytest.TempPathFactory, start_for_module: Any) -> Path:
    """A lake whose every name, key and value tries something."""
    from running import Otlp, attributes

    lake = tmp_path_factory.mktemp("names") / "lake"
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    otlp = Otlp(collector.url)
    for number, name in enumerate([*NAMES, *CELLS], 1):
        values = {
            "openinference.span.kind": "LLM", "session.id": name, "llm.model_name": name, f"key {name}": name, "gen_ai.tool.name": name,
            "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": name or "empty",
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": name or "empty",
        }  # fmt: skip
        resource = {
            "service.name": name,
            "service.instance.id": name,
            "lightning.rollout.id": f"r{number}",
            "tenant": name,
        }
        span = {"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": name, "attributes": attributes(values), "_scope": name,
                "startTimeUnixNano": str(otlp.tick()), "endTimeUnixNano": str(otlp.tick())}  # fmt: skip
        record = {"eventName": "gen_ai.evaluation.result", "traceId": f"{number:032x}", "timeUnixNano": str(otlp.tick()),
                  "attributes": attributes({"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 1.0, "gen_ai.evaluation.explanation": name})}  # fmt: skip
        otlp.send([span], [record], resource)
    otlp.flush()
    run_transform(lake, TransformConfig.model_validate({"settle_s": 1}))
    return lake


@pytest.mark.row(55)
def test_no_name_becomes_a_path(lake_of_names: Path) -> None:
    folders = {path.relative_to(lake_of_names).as_posix() for path in lake_of_names.rglob("*") if path.is_dir()}
    signals = {folder for folder in folders if folder.split("/")[0] in ("spans", "events", "metrics")}
    assert all(folder.count("/") == 0 or folder.split("/")[1].startswith("day=20") for folder in signals)
    assert len({folder.split("/")[1] for folder in signals if "/" in folder}) <= 2
    assert sorted(path.name for path in lake_of_names.parent.iterdir()) == ["lake"]


@pytest.mark.row(56)
def test_sql_in_names_and_values_is_only_text(lake_of_names: Path) -> None:
    with open_tables(lake_of_names) as connection:
        names = {row[0] for row in connection.execute("select name from spans").fetchall()}
        assert names == {*NAMES, *CELLS}
        assert connection.execute("select count(*) from calls").fetchone() == (len(names),)
        assert connection.execute("select count(*) from rewards where rollout_id is not null").fetchone() == (
            len(names),
        )
    assert steps.quoted('a"b') == '"a""b"' and steps.literal("a'b") == "'a''b'"


QUOTING = {"quoted", "literal", "path_list"}


@pytest.mark.row(56)
@pytest.mark.parametrize("part", ["collector", "store", "transforms", "training", "serving"])
def test_no_value_is_ever_formatted_into_a_statement(part: str) -> None:
    """What an f-string puts into SQL is quoted by a function of `steps`, or a name that the code itself made."""
    found: list[str] = []
    for path in sorted((ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("execute", "executemany", "sql")
            ):
                continue
            for value in (
                value
                for argument in node.args[:1]
                for value in ast.walk(argument)
                if isinstance(value, ast.FormattedValue)
            ):
                inner = value.value
                if isinstance(inner, ast.Call) and (
                    getattr(inner.func, "attr", None) or getattr(inner.func, "id", None)
                ) in QUOTING | {"empty_relation", "raw_rows", "live_rows", "live_keys"}:
                    continue
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(inner)}")
    # Names and conditions that the code composes from its own constants and quoted parts; a new one must be looked at.
    made = {
        "prefix", "signal", "condition", "source", "where", "paths", "live", "returns", "baselines", "rollouts", "files", "order", "goes", "rows",
        "before", "query", "columns", "key", "run", "table", "step.text", "convention.text", "view.text", "source if paths else empty_relation(signal)", "threads",
        "config.threads", "now['rollouts']", "now['rewards']", "mention", "bucket.number", "which", "chosen", "limit", "NODE[signal]", "INDEX", "ASKED", "name", "wide", "records", "compression_level", "_chosen(self.where)",
        "ASKING", "kind", "form", "manifest.run", "int(config.memory_mb * DUCKDB_SHARE)", "len(str(lake.root)) + 2",
        "CONTROL_ROLLOUTS", "HOMES", "target", "of_tasks", "CONFIGURED[table]", "CONFIGURED['prices']",
    }  # fmt: skip
    # The user's own SQL, run locked down: data.where of a training job, rewards and credit in SQL, parsed before (guard.py).
    assert {item for item in found if item.split(": ", 1)[1] not in made} <= {
        "training/data.py: condition",
        "training/data.py: config.data.where or 'true'",
        "transforms/own_sql.py: _offer(text, tables, control=control)",
        "transforms/steps.py: text",  # a file of ours, its switches written as true and false
        "transforms/own_sql.py: _within(self.within)",
        "transforms/own_sql.py: _chosen(self.where)",
    }


@pytest.mark.row(58)
def test_csv_terminal_and_page_get_text_and_nothing_that_acts(
    lake_of_names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv
    import io

    ask(lake_of_names, "select name from spans order by name", "csv")
    cells = [row[0] for row in csv.reader(io.StringIO(capsys.readouterr().out)) if row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert "'=cmd|'/c calc'!A0" in cells
    ask(lake_of_names, "select -5 as n, -1.5 as d, '-2' as t", "csv")
    assert capsys.readouterr().out == "n,d,t\n-5,-1.5,'-2\n"
    ask(lake_of_names, "select name, session_id from spans", "table")
    for number in range(1, len(NAMES) + len(CELLS) + 1):
        show_trace(lake_of_names, f"{number:032x}")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and "\0" not in printed
    assert "owned" in printed and "[bold]x[/bold]" in printed
    ask(lake_of_names, "select name from spans", "json")
    lines = capsys.readouterr().out.splitlines()
    assert {json.loads(line)["name"] for line in lines} == {*NAMES, *CELLS}  # for programs: exactly what was sent
    assert not [line for line in lines if "\x1b" in line or "\0" in line]


def raw(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory, start_for_module: Any) -> Any:
    """A collector that gives a sender one second."""
    folder = tmp_path_factory.mktemp("brisk")
    config = folder / "collect.yaml"
    config.write_text(
        f"lake: {folder / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nread_timeout_s: 1\nmax_connections: 30\n"
    )
    return start_for_module("lightning-collect", "--config", str(config))


@pytest.mark.row(44)
def test_a_gigabyte_that_is_announced_is_refused_at_once_and_one_that_is_not_at_the_limit(brisk: Any) -> None:
    head = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    with raw(brisk.url) as connection:
        connection.sendall(head + b"Content-Length: 1073741824\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    sent = 0
    with raw(brisk.url) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1024):
            connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            sent += 1
    assert sent < 200  # it stopped reading soon after its 64 MiB


@pytest.mark.row(45)
@pytest.mark.parametrize("begun", [b"", b"P", b"POST /v1/traces HTTP/1.1\r\nHost: x\r\n"])
def test_who_connects_and_stays_silent_is_cut_off(brisk: Any, begun: bytes) -> None:
    with raw(brisk.url) as connection:
        connection.sendall(begun)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1000):
                data += piece
    assert data == b"" or data.startswith(b"HTTP/1.1 408 ")


@pytest.mark.row(46)
def test_connections_that_are_reset_in_the_middle_free_their_places(brisk: Any, post: Any) -> None:
    for _ in range(3):
        gone = [raw(brisk.url) for _ in range(25)]
        for connection in gone:
            connection.sendall(
                b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 50\r\n\r\nabc"
            )
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        time.sleep(0.1)
    assert post(brisk.url, "/v1/traces", span_of().SerializeToString()).status == 200
    text = post(brisk.url, "/metrics", None, None, method="GET").body.decode()
    assert "lightning_collect_http_connections 1\n" in text


@pytest.mark.row(42)
@pytest.mark.parametrize("encoding", ["deflate", "zstd", "br", "gzip, gzip", "x-gzip"])
def test_only_what_is_capped_is_offered(brisk: Any, post: Any, encoding: str) -> None:
    assert post(brisk.url, "/v1/traces", b"x", Content_Encoding=encoding).status == 415


@pytest.mark.row(50)
def test_refused_requests_are_counted_by_reason(brisk: Any, post: Any) -> None:
    before = post(brisk.url, "/metrics", None, None, method="GET").body.decode()
    body = span_of(name="abc").SerializeToString().replace(b"abc", b"\xc3\x28c")
    assert post(brisk.url, "/v1/traces", body).status == 400
    after = post(brisk.url, "/metrics", None, None, method="GET").body.decode()
    assert _refused(after, "http_400") == _refused(before, "http_400") + 1


def _refused(text: str, reason: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if f'reason="{reason}"' in line), 0.0)
