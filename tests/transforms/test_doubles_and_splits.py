"""One call seen by several instrumentors is one call; one episode spread over traces, files and days is one rollout.

Recorded spans where a capture shows it, spans written by hand where none does; both decoded as the collector does.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
from captures import NOW, frames, requests, rows, span, transformed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import Origin
from otel_lightning.collector.wal import Frame
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import DataFile, Entry, write_entry
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

SECOND = 10**9
# Doubles in two traces, linked traces, content in log records.
SPLIT = (
    "langchain/openinference-all+httpx2",
    "autogen/native+openinference-openai",
    "openai-sdk/openllmetry-openai-events",
)
T, U, V, W = ("1" * 32, "2" * 32, "3" * 32, "4" * 32)


def calls_of(*spans: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that a few spans become, in order of their start."""
    return rows(transformed(requests(*spans)), "select * from calls order by start_unix_nano, trace_id, span_id")


def rollouts_of(*spans: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Id, rule and traces of each rollout."""
    found = rows(transformed(requests(*spans), "rollouts"), "select * from rollouts order by rollout_id")
    return [(row["rollout_id"], row["keyed_by"], row["trace_ids"]) for row in found]


def openinference(prompt: list[str], answer: str, **more: Any) -> dict[str, Any]:
    """Attributes of a call in OpenInference; a prompt's messages are the user's and the model's by turns."""
    said = {"openinference.span.kind": "LLM", **{k.replace("__", "."): v for k, v in more.items()}}
    for n, text in enumerate(prompt):
        said[f"llm.input_messages.{n}.message.role"] = ("user", "assistant")[n % 2]
        said[f"llm.input_messages.{n}.message.content"] = text
    return said | {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": answer}


def genai(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    """The same in GenAI."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": f'[{{"role": "user", "parts": [{{"type": "text", "content": "{prompt}"}}]}}]',
        "gen_ai.output.messages": f'[{{"role": "assistant", "parts": [{{"type": "text", "content": "{answer}"}}]}}]',
        **{k.replace("__", "."): v for k, v in more.items()},
    }


def legacy(prompt: str, answer: str) -> dict[str, Any]:
    """The same in OpenLLMetry's legacy form."""
    return {
        "llm.request.type": "chat", "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": prompt,
        "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": answer,
    }  # fmt: skip


def test_three_instrumentors_around_one_call_are_one_call_and_the_innermost_is_believed() -> None:
    found = calls_of(
        span(T, "a", start=0, end=9, scope="one", attributes=genai("hello", "hi", session__id="s")),
        span(T, "b", "a", start=1, end=8, scope="two", attributes=legacy("hello", "hi")),
        span(
            T, "c", "b", start=2, end=7, scope="three", attributes=openinference(["hello"], "hi", llm__model_name="m")
        ),
    )
    assert [(row["span_id"][0], row["convention"], row["model"], row["session_id"]) for row in found] == [
        ("c", "openinference", "m", "s")
    ]
    assert [member.split(":")[1][0] for member in found[0]["merged_span_ids"]] == ["a", "b"]


def test_an_agent_between_two_calls_keeps_both() -> None:
    found = calls_of(
        span(T, "a", start=0, end=9, scope="one", attributes=openinference(["plan"], "done")),
        span(
            T,
            "b",
            "a",
            start=1,
            end=8,
            scope="one",
            attributes={"openinference.span.kind": "AGENT", "agent.name": "inner"},
        ),
        span(T, "c", "b", start=2, end=7, scope="one", attributes=openinference(["work"], "worked")),
    )
    assert [(row["span_id"][0], row["agent"]) for row in found] == [("a", None), ("c", "inner")]


def test_a_double_beside_or_in_another_trace_is_found_by_its_response_id() -> None:
    """The one with an agent around it gives the place."""
    for trace, parent in ((T, "r"), (U, None)):
        found = calls_of(
            span(T, "r", start=0, end=20, attributes={"openinference.span.kind": "AGENT", "agent.name": "planner"}),
            span(
                T,
                "a",
                "r",
                start=1,
                end=9,
                scope="one",
                attributes=openinference(["hello"], "hi", gen_ai__response__id="x"),
            ),
            span(
                trace,
                "b",
                parent,
                start=2,
                end=8,
                scope="two",
                attributes=genai("hello", "hi", gen_ai__response__id="x"),
            ),
        )
        assert [(row["trace_id"], row["agent"], row["response_id"]) for row in found] == [(T, "planner", "x")]
        assert len(found[0]["merged_span_ids"]) == 1


def test_a_double_without_an_id_is_found_by_what_was_said_if_there_is_one_candidate() -> None:
    outer = span(T, "a", start=1, end=9, scope="one", attributes=openinference(["hello"], "hi"))
    inner = span(U, "b", start=2, end=8, scope="two", attributes=genai("hello", "hi", gen_ai__response__id="x"))
    again = span(V, "c", start=3, end=7, scope="two", attributes=genai("hello", "hi", gen_ai__response__id="y"))
    other_process = {**inner, "instance": "elsewhere"}
    assert [len(row["merged_span_ids"]) for row in calls_of(outer, inner)] == [1]
    assert [len(row["merged_span_ids"]) for row in calls_of(outer, other_process)] == [0, 0]
    assert [len(row["merged_span_ids"]) for row in calls_of(outer, inner, again)] == [0, 0, 0]


def test_an_id_that_returns_later_joins_nothing() -> None:
    found = calls_of(
        span(T, "a", start=0, end=1, attributes=openinference(["hello"], "hi", gen_ai__response__id="x")),
        span(U, "b", start=5, end=6, attributes=openinference(["bye"], "ciao", gen_ai__response__id="x")),
    )
    assert [row["untrainable_reason"] for row in found] == ["response_id_reused"] * 2


def test_recorded_doubles_nested_beside_and_across_traces_leave_one_call_for_each_answer() -> None:
    """Who is merged with whom, in every capture with two instrumentors."""
    shapes = {
        # Both in one trace, the outer above the inner.
        "openai-agents/openinference+openai": (7, "same trace"),
        "autogen/openinference-autogen+openai": (7, "same trace"),
        # One beside the other below a root of the user's.
        "langchain/openinference-langchain+openai-rootspan": (2, "same trace"),
        # The inner one is a trace of its own.
        "langchain/openinference-langchain+openai": (11, "another trace"),
        "langchain/openinference-all+httpx2": (5, "another trace"),
    }
    connection = transformed(frames(shapes))
    owner = {
        sent.trace_id.hex(): capture
        for capture in shapes
        for frame in frames([capture])
        for resource in ExportTraceServiceRequest.FromString(bytes(frame.body)).resource_spans
        for scope in resource.scope_spans
        for sent in scope.spans
    }
    found: Counter[tuple[str, str]] = Counter()
    for row in rows(connection, "select trace_id, merged_span_ids from calls"):
        assert len(row["merged_span_ids"]) == 1
        apart = row["merged_span_ids"][0].split(":")[0] != row["trace_id"]
        found[owner[row["trace_id"]], "another trace" if apart else "same trace"] += 1
    assert found == {(capture, shape): n for capture, (n, shape) in shapes.items()}


def test_a_tool_seen_twice_is_one_execution_with_what_both_know() -> None:
    """AutoGen and OpenInference nested: arguments and result from without, the id of the tool call from within."""
    found = rows(transformed(frames(["autogen/openinference-autogen+openai"])), "select * from tools")
    assert len(found) == 3
    assert all(row["tool_call_id"].startswith("call_") and row["result"] and row["call_span_id"] for row in found)


def test_a_team_whose_messages_fall_apart_into_linked_traces_is_one_episode() -> None:
    """AutoGen without a span around it: 26 links, and the traces between those with calls hold none themselves."""
    connection = transformed(frames(["autogen/native+openinference-openai"]), "rollouts")
    linked = rows(connection, "select trace_ids, calls from rollouts where keyed_by = 'link'")
    assert [(len(row["trace_ids"]), row["calls"]) for row in linked] == [(2, 3)]
    under_a_span = rows(
        connection, "select calls, len(trace_ids) as traces from rollouts where calls = 3 and keyed_by = 'single'"
    )
    assert under_a_span == [{"calls": 3, "traces": 1}]


def test_links_to_several_traces_are_a_batch_and_prove_nothing() -> None:
    one = span(T, "a", start=0, end=1, attributes=openinference(["a"], "b"))
    two = span(U, "b", start=2, end=3, attributes=openinference(["c"], "d"))
    three = span(V, "c", start=4, end=5, attributes=openinference(["e"], "f"))
    assert [r[1:] for r in rollouts_of(one, two, {**three, "links": [(T, "a"), (U, "b")]})] == [
        ("single", [T]), ("single", [U]), ("single", [V]),
    ]  # fmt: skip
    assert [r[1:] for r in rollouts_of(one, {**three, "links": [(T, "a")]})] == [("link", [T, V])]


def test_links_that_run_in_a_circle_lose_nothing() -> None:
    one = span(T, "a", start=0, end=1, links=[(U, "b")], attributes=openinference(["a"], "b"))
    two = span(U, "b", start=2, end=3, links=[(T, "a")], attributes=openinference(["c"], "d"))
    assert [(rule, traces) for _, rule, traces in rollouts_of(one, two)] == [("single", [T]), ("single", [U])]


def test_bare_calls_of_one_process_go_on_from_one_another_without_any_root() -> None:
    first = span(T, "a", start=0, end=SECOND, attributes=openinference(["hello"], "hi"))
    second = span(U, "b", start=2 * SECOND, end=3 * SECOND, attributes=openinference(["hello", "hi", "and?"], "so"))
    late = span(
        V,
        "c",
        start=4000 * SECOND,
        end=4001 * SECOND,
        attributes=openinference(["hello", "hi", "and?", "so", "well"], "bye"),
    )
    elsewhere = {**second, "instance": "another process"}
    assert rollouts_of(first, second) == [(T, "continuation", [T, U])]
    assert [rule for _, rule, _ in rollouts_of(first, elsewhere)] == ["single", "single"]
    # After half an hour of silence it is another conversation.
    assert rollouts_of(first, second, late) == [(T, "continuation", [T, U]), (V, "single", [V])]


def test_a_session_of_many_traces_is_as_many_episodes_as_there_are_conversations_in_it() -> None:
    def turn(trace: str, n: int, prompt: list[str], answer: str) -> list[dict[str, Any]]:
        at = n * 10 * SECOND
        return [
            span(trace, "r", start=at, end=at + 5, attributes={"openinference.span.kind": "AGENT", "session.id": "s"}),
            span(trace, "c", "r", start=at + 1, end=at + 4, attributes=openinference(prompt, answer)),
        ]

    found = rollouts_of(
        *turn(T, 0, ["hello"], "hi"),
        *turn(U, 1, ["hello", "hi", "and?"], "so"),
        *turn(V, 2, ["other matter"], "yes"),
        *turn(W, 3, ["hello", "hi", "and?", "so", "bye"], "ciao"),
    )
    assert found == [(T, "session", [T, U, W]), (V, "single", [V])]


def test_recorded_threads_over_several_traces_are_one_episode() -> None:
    """LangGraph's thread, one trace a turn, whatever the instrumentation calls it."""
    for capture in ("langchain/openinference-langchain", "langchain/openllmetry-langchain"):
        found = rows(
            transformed(frames([capture]), "rollouts"),
            "select calls, len(trace_ids) as traces from rollouts where keyed_by = 'session'",
        )
        assert found == [{"calls": 4, "traces": 2}], capture


def test_a_call_that_names_its_predecessor_needs_no_common_text() -> None:
    """The Responses API with previous_response_id: the new items alone are the prompt."""
    first = span(T, "a", start=0, end=1, attributes=openinference(["hello"], "hi", gen_ai__response__id="resp_1"))
    second = span(T, "b", start=2, end=3, attributes=openinference(
        ["and?"], "so", llm__invocation_parameters='{"previous_response_id": "resp_1"}'
    ))  # fmt: skip
    found = calls_of(first, second)
    assert [(row["lineage_span_id"], row["untrainable_reason"]) for row in found] == [
        (None, None),
        (found[0]["span_id"], "partial_prompt"),
    ]


def test_traces_split_over_files_and_days_are_what_they_are_in_one(tmp_path: Path) -> None:
    """Every span of some captures on one of two days, in any file, and a run after each day."""
    whole = frames(SPLIT)
    config = TransformConfig.model_validate({"rewards": {"train": {"reward": 1.0}}, "threads": 1})
    one, other = Lake(tmp_path / "one"), Lake(tmp_path / "other")
    _lay(one, "2026-11-22", 0, whole)
    run_transform(one.root, config, now_unix_nano=NOW)
    pieces = [piece for frame in whole for piece in _pieces(frame)]
    random.Random(0).shuffle(pieces)
    for day in range(2):
        for number in range(2):
            _lay(other, f"2026-11-2{day}", 2 * day + number, pieces[2 * day + number :: 4])
        run_transform(other.root, config, now_unix_nano=NOW)
    for table, before in _contents(one).items():
        after = _contents(other)[table]
        assert len(before) == len(after)
        for row, same in zip(before, after, strict=True):
            assert {k: (v, same[k]) for k, v in row.items() if same[k] != v} == {}, table


def _pieces(frame: Frame) -> list[Frame]:
    """A request as one request a span or record."""
    kind = ExportTraceServiceRequest if frame.signal == "spans" else None
    if kind is None:
        return [frame]
    request = kind.FromString(bytes(frame.body))
    found: list[Frame] = []
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for sent in scope.spans:
                one = ExportTraceServiceRequest()
                holder = one.resource_spans.add()
                holder.resource.CopyFrom(resource.resource)
                held = holder.scope_spans.add()
                held.scope.CopyFrom(scope.scope)
                held.spans.add().CopyFrom(sent)
                found.append(Frame("spans", frame.received_unix_nano, 0, 1, one.SerializeToString()))
    return found


def _lay(lake: Lake, day: str, segment: int, of: list[Frame]) -> None:
    """The requests as a segment of a collector that received them on `day`."""
    lake.manifest.mkdir(parents=True, exist_ok=True)
    numbered: list[Frame] = []
    seq = segment * 10_000_000
    for frame in of:
        numbered.append(Frame(frame.signal, frame.received_unix_nano, seq, frame.rows, frame.body))
        seq += frame.rows
    origin = Origin("collector", segment, segment * 10_000_000, seq)
    files = []
    for signal, content in ParquetConverter().convert(numbered, origin).items():
        path = f"{signal}/day={day}/collector-{segment:08d}.parquet"
        (lake.root / path).parent.mkdir(parents=True, exist_ok=True)
        (lake.root / path).write_bytes(content.data)
        files.append(DataFile(signal, path, content.rows, ""))
    write_entry(RealDisk(), lake, Entry("collector", segment, origin.first_seq, seq, 0, tuple(files)))


def _contents(lake: Lake) -> dict[str, Any]:
    """Every row of the tables, less when and in which run it came."""
    tables = {
        "calls": "trace_id, span_id",
        "tools": "trace_id, span_id",
        "scopes": "trace_id, span_id",
        "rollouts": "rollout_id",
    }
    with open_tables(lake.root, threads=1) as connection:
        return {table: _rows(connection, table, order) for table, order in tables.items()}


def _rows(connection: duckdb.DuckDBPyConnection, table: str, order: str) -> list[dict[str, Any]]:
    found = rows(connection, f"select * from {table} order by {order}")
    assert found, table
    return [{k: v for k, v in row.items() if k not in ("revision", "received_unix_nano")} for row in found]
