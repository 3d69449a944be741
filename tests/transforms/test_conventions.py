"""What holds for every convention alike: its columns, and that no name of a framework is ever looked at."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest
from captures import Request, frames, rows, transformed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_lightning.transforms import steps

README = Path(steps.__file__).parent / "README.md"
KINDS = {"llm", "agent", "tool", "judge", "chain", "other", "capture"}
# Said by their sender's names themselves, so they follow them: an agent or tool that says no other name has its span's.
NAMES = {"agent", "name", "service_name"}


@pytest.fixture(scope="module")
def recorded() -> duckdb.DuckDBPyConnection:
    """What every capture becomes as it was recorded."""
    return transformed(frames())


def nonsense(name: str) -> str:
    """Another name, the same for the same one."""
    return "z" + hashlib.sha256(name.encode()).hexdigest()[:8]


def rename(request: Request) -> None:
    """Nothing that a framework calls itself or its spans is left."""
    if not isinstance(request, ExportTraceServiceRequest):
        return
    for resource in request.resource_spans:
        for attribute in resource.resource.attributes:
            if attribute.key.startswith(("service.name", "telemetry.")):
                attribute.value.string_value = nonsense(attribute.value.string_value)
        for scope in resource.scope_spans:
            scope.scope.name, scope.scope.version = nonsense(scope.scope.name), "0"
            for span in scope.spans:
                span.name = nonsense(span.name)


def cut(request: Request) -> None:
    """Every string cut as OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT=64 would: what was JSON is none any more."""
    if isinstance(request, ExportTraceServiceRequest):
        things = [span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans]
    else:
        things = [record for r in request.resource_logs for scope in r.scope_logs for record in scope.log_records]
    for thing in things:
        for attribute in thing.attributes:
            if attribute.value.WhichOneof("value") == "string_value":
                attribute.value.string_value = attribute.value.string_value[:64]


def with_tokens(request: Request) -> None:
    """Token records as a wrapper around the model's client writes them: on each second call itself, else below it."""
    if not isinstance(request, ExportTraceServiceRequest):
        return
    number = 0
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for call in list(scope.spans):
                said = {attribute.key: attribute.value for attribute in call.attributes}
                if "gen_ai.response.id" not in said or "gen_ai.usage.output_tokens" not in said:
                    continue
                number += 1
                record = call
                if number % 2:
                    record = scope.spans.add(
                        trace_id=call.trace_id, span_id=call.span_id[::-1], parent_span_id=call.span_id
                    )
                    record.start_time_unix_nano, record.end_time_unix_nano = (
                        call.end_time_unix_nano,
                        call.end_time_unix_nano,
                    )
                    record.attributes.add(key="gen_ai.response.id", value=said["gen_ai.response.id"])
                sampled = range(said["gen_ai.usage.output_tokens"].int_value)
                for key, values in (("rl.prompt_token_ids", [7, number]), ("rl.choice.0.token_ids", sampled)):
                    array = record.attributes.add(key=key).value.array_value
                    for value in values:
                        array.values.add(int_value=value)


STRUCTURED = {
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.definitions",
    "gen_ai.tool.call.arguments", "gen_ai.tool.call.result",
}  # fmt: skip


def structured(request: Request) -> None:
    """JSON text as the structured value that the conventions want on spans too, once SDKs allow it."""
    if not isinstance(request, ExportTraceServiceRequest):
        return
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for attribute in span.attributes:
                    if attribute.key in STRUCTURED:
                        with contextlib.suppress(json.JSONDecodeError):
                            fill(attribute.value, json.loads(attribute.value.string_value))


def fill(value: AnyValue, plain: Any) -> None:
    """Make an OTLP value of a plain one."""
    if plain is None:
        value.Clear()
    elif isinstance(plain, dict):
        value.kvlist_value.SetInParent()
        for key, inner in plain.items():
            fill(value.kvlist_value.values.add(key=key).value, inner)
    elif isinstance(plain, list):
        value.array_value.SetInParent()
        for inner in plain:
            fill(value.array_value.values.add(), inner)
    else:
        kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(plain)]
        setattr(value, kind, plain)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Columns in which two rows differ beyond a change of names."""
    return [
        column
        for column, value in one.items()
        if value != other[column] and not (column in NAMES and value is not None and other[column] == nonsense(value))
    ]


def test_names_of_frameworks_spans_and_services_mean_nothing(recorded: duckdb.DuckDBPyConnection) -> None:
    """Every capture, renamed, gives the same calls and tools."""
    renamed = transformed(frames(change=rename))
    for table in ("calls", "tools"):
        query = f"select * from {table} order by trace_id, span_id"
        before, after = rows(recorded, query), rows(renamed, query)
        assert [(row["trace_id"], row["span_id"]) for row in before] == [(r["trace_id"], r["span_id"]) for r in after]
        assert before
        for one, other in zip(before, after, strict=True):
            assert differing(one, other) == [], (table, one["span_id"])


def test_structured_values_are_read_as_the_json_that_stands_for_them_today(recorded: duckdb.DuckDBPyConnection) -> None:
    """On spans as in log records."""
    values = transformed(frames(change=structured))
    query = "select * from calls order by trace_id, span_id"
    for one, other in zip(rows(recorded, query), rows(values, query), strict=True):
        assert {k: (v, other[k]) for k, v in one.items() if other[k] != v} == {}, one["span_id"]
    query = "select trace_id, span_id, call_span_id, arguments, result from tools order by all"
    for one, other in zip(rows(recorded, query), rows(values, query), strict=True):
        assert list(map(loosely, one.values())) == list(map(loosely, other.values()))


def loosely(value: Any) -> Any:
    """What JSON says rather than how it is spaced."""
    with contextlib.suppress(json.JSONDecodeError, TypeError):
        return json.loads(value)
    return value


def test_messages_cut_by_a_length_limit_keep_the_call_and_are_not_trained(recorded: duckdb.DuckDBPyConnection) -> None:
    """No string breaks a batch, whatever it was meant to be; a call whose messages are no JSON any more says why."""
    short = transformed(frames(change=cut))
    query = "select trace_id, span_id from calls order by all"
    assert rows(recorded, query) == rows(short, query)
    lost = rows(
        short,
        """
        select calls.span_id, untrainable_reason
        from calls
        join spans_unique using (trace_id, span_id)
        where convention = 'genai' and len(attributes_str['gen_ai.input.messages']) = 64
        """,
    )
    assert len(lost) > 50
    assert {row["untrainable_reason"] for row in lost} <= {"no_prompt", "error"}


def test_a_convention_is_one_file_with_the_columns_of_all_others(recorded: duckdb.DuckDBPyConnection) -> None:
    """The same columns in the same order, of the same types, as the README lists them."""
    shapes = {
        step.path: [row[:2] for row in recorded.execute(f"describe {step.text}").fetchall()]
        for step in steps.conventions()
    }
    first = next(iter(shapes.values()))
    assert all(shape == first for shape in shapes.values()), {
        p: set(s) ^ set(first) for p, s in shapes.items() if s != first
    }
    listed = README.read_text(encoding="utf-8").split("## Conventions")[1].split("\n## ")[0]
    for column, _ in first:
        assert f"`{column}`" in listed, f"transforms/README.md does not say what {column} is"


def test_tokens_beside_a_call_or_below_it_are_the_calls() -> None:
    """rl.*: on the call's span or on one of its own, which is no call."""
    capture = ["openai-sdk/otel-genai-span-and-event"]
    plain, captured = transformed(frames(capture)), transformed(frames(capture, with_tokens))
    count = "select count(*) as n from calls"
    assert rows(plain, count) == rows(captured, count)
    found = rows(
        captured,
        """
        select prompt_ids[1] as first, response_ids = [range(completion_tokens)] as whole, len(merged_span_ids) as merged, count(*) as n
        from calls where token_source = 'captured' group by all order by merged
        """,
    )
    assert [(row["first"], row["whole"], row["merged"]) for row in found] == [(7, True, 0), (7, True, 1)]
    assert sum(row["n"] for row in found) > 20


@pytest.mark.parametrize("step", steps.conventions(), ids=lambda step: step.path)
def test_a_convention_claims_a_span_once(step: steps.Step, recorded: duckdb.DuckDBPyConnection) -> None:
    """One row per span, of a known kind; and some capture speaks it, unless no library does."""
    connection = transformed(
        frames(change=with_tokens if step.table == "token_capture" else lambda _: None), "spans_unique"
    )
    steps.create(connection, step, {})
    found = rows(connection, f"select count(*) as n, count(distinct (trace_id, span_id)) as spans from {step.table}")[0]
    assert found["n"] == found["spans"] > 0
    kinds = rows(connection, f"select distinct span_kind, convention, precedence is null as unsaid from {step.table}")
    assert {row["span_kind"] for row in kinds} <= KINDS
    assert {(row["convention"], row["unsaid"]) for row in kinds} == {(step.table, False)}


# JSON of shapes that no convention means, and what is no JSON.
WRONG = (
    *("", "null", "1", '"x"', "[]", "{}", "[null]", "[1]", "[[1]]", "[NaN]", '{"a":1e999}', '"\\ud800"', "a" * 100, '[{"role":'),
    *('{"messages":1}', '{"messages":[1]}', '{"messages":[[1,null]]}', '{"messages":[{"kwargs":3}]}'),
    '{"messages":[{"role":{},"content":{},"tool_calls":{}}]}',
    '{"messages":[{"role":"user","content":[1,null,{"text":[]}],"tool_calls":[1,{"function":3}]}]}',
    *('{"generations":[1]}', '{"generations":[[1,{"message":4}]]}', '{"choices":{}}', '{"choices":[{"index":"a","message":[]}]}'),
    *('{"output":[1,{"type":3}]}', '{"input":[1,{"content":4}]}', '{"input":{"a":1},"instructions":[1]}'),
    *('[{"role":3,"parts":4,"content":[{"type":"text","text":{}}]}]', '[{"toolCallId":3,"input":[]}]', '{"args":3,"kwargs":4}'),
    *('{"temperature":"a","max_tokens":"1e400","n":[]}', '{"prompt_tokens":"x","completion_tokens":1e30}'),
    *('[{"event.name":"gen_ai.choice","index":"a","message":{"tool_calls":[1]}}]', '{"function_tools":[1,{"name":[]}]}'),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_no_attribute_of_any_shape_fails_a_batch(seed: int, recorded: duckdb.DuckDBPyConnection) -> None:
    """Whatever stands where a convention expects JSON, numbers or arrays: all spans are still there."""
    chance = random.Random(seed)

    def spoil(request: Request) -> None:
        if not isinstance(request, ExportTraceServiceRequest):
            return
        for span in (s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans):
            for attribute in span.attributes:
                kind, value = attribute.value.WhichOneof("value"), attribute.value
                odds = {"string_value": 0.9 if value.string_value[:1] in ("[", "{", '"') else 0.05, "array_value": 0.5}
                if chance.random() < odds.get(kind or "", 0.3):
                    value.string_value = chance.choice(WRONG)

    spoilt = transformed(frames(change=spoil))
    counts = "select count(*) as spans, count(distinct (trace_id, span_id)) as ids from span_kinds"
    assert rows(spoilt, counts) == rows(recorded, counts)
