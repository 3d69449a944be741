"""One call seen by several instrumentors is one call; one episode spread over traces, files and days is one rollout.

Recorded spans where a capture shows it, spans written by hand where none does; both decoded as the collector does. The
stories written by hand are told together, each in traces, sessions and processes of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from captures import NOW, frames, owners, requests, rows, span, transformed
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
T, U, V, W = ("1" * 32, "2" * 32, "3" * 32, "4" * 32)
# Doubles, linked traces, content in log records.
SPLIT = (
    "langchain/openinference-langchain+openai-rootspan",
    "autogen/native+openinference-openai",
    "openai-sdk/openllmetry-openai-events",
)
# How the two spans of each call lie to one another, and how many calls there are.
RECORDED_DOUBLES = {
    # Both in one trace, the outer above the inner.
    "openai-agents/openinference+openai": (7, "same trace"),
    "autogen/openinference-autogen+openai": (7, "same trace"),
    # One beside the other below a root of the user's.
    "langchain/openinference-langchain+openai-rootspan": (2, "same trace"),
    # The inner one is a trace of its own.
    "langchain/openinference-langchain+openai": (11, "another trace"),
    "langchain/openinference-all+httpx2": (5, "another trace"),
}
# LangGraph's thread, one trace a turn, whatever the instrumentation calls it.
RECORDED_THREADS = ("langchain/openinference-langchain", "langchain/openllmetry-langchain")
RECORDED_TEAM = "autogen/native+openinference-openai"


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


AGENT = {"openinference.span.kind": "AGENT", "agent.name": "planner"}
HELLO = ["hello"]
OUTER = span(T, "a", start=1, end=9, scope="one", attributes=openinference(HELLO, "hi"))
INNER = span(U, "b", start=2, end=8, scope="two", attributes=genai("hello", "hi", gen_ai__response__id="x"))
AGAIN = span(V, "c", start=3, end=7, scope="two", attributes=genai("hello", "hi", gen_ai__response__id="y"))
ONE = span(T, "a", start=0, end=1, attributes=openinference(["a"], "b"))
TWO = span(U, "b", start=2, end=3, attributes=openinference(["c"], "d"))
THREE = span(V, "c", start=4, end=5, attributes=openinference(["e"], "f"))
FIRST = span(T, "a", start=0, end=SECOND, attributes=openinference(HELLO, "hi"))
SECOND_TURN = span(U, "b", start=2 * SECOND, end=3 * SECOND, attributes=openinference([*HELLO, "hi", "and?"], "so"))
LATE = span(V, "c", start=4000 * SECOND, end=4001 * SECOND, attributes=openinference([*HELLO, "hi", "and?", "so", "well"], "bye"))  # fmt: skip


def beside(trace: str, parent: str | None) -> list[dict[str, Any]]:
    """An agent with a call, and the same call seen by another instrumentor."""
    return [
        span(T, "r", start=0, end=20, attributes=AGENT),
        span(T, "a", "r", start=1, end=9, scope="one", attributes=openinference(HELLO, "hi", gen_ai__response__id="x")),
        span(
            trace, "b", parent, start=2, end=8, scope="two", attributes=genai("hello", "hi", gen_ai__response__id="x")
        ),
    ]


def turn(trace: str, n: int, prompt: list[str], answer: str) -> list[dict[str, Any]]:
    """A turn of a session: an agent with one call."""
    at = n * 10 * SECOND
    return [
        span(trace, "r", start=at, end=at + 5, attributes={**AGENT, "session.id": "s"}),
        span(trace, "c", "r", start=at + 1, end=at + 4, attributes=openinference(prompt, answer)),
    ]


STORIES: dict[str, list[dict[str, Any]]] = {
    "three instrumentors": [
        span(T, "a", start=0, end=9, scope="one", attributes=genai("hello", "hi", session__id="s")),
        span(T, "b", "a", start=1, end=8, scope="two", attributes=legacy("hello", "hi")),
        span(T, "c", "b", start=2, end=7, scope="three", attributes=openinference(HELLO, "hi", llm__model_name="m")),
    ],
    "an agent between": [
        span(T, "a", start=0, end=9, attributes=openinference(["plan"], "done")),
        span(T, "b", "a", start=1, end=8, attributes={**AGENT, "agent.name": "inner"}),
        span(T, "c", "b", start=2, end=7, attributes=openinference(["work"], "worked")),
    ],
    "beside": beside(T, "r"),
    "in another trace": beside(U, None),
    "equal words": [OUTER, INNER],
    "equal words in another process": [OUTER, {**INNER, "instance": "elsewhere"}],
    "equal words twice": [OUTER, INNER, AGAIN],
    "an id that returns": [
        span(T, "a", start=0, end=1, attributes=openinference(HELLO, "hi", gen_ai__response__id="x")),
        span(U, "b", start=5, end=6, attributes=openinference(["bye"], "ciao", gen_ai__response__id="x")),
    ],
    "a link": [ONE, {**THREE, "links": [(T, "a")]}],
    "a batch": [ONE, TWO, {**THREE, "links": [(T, "a"), (U, "b")]}],
    "a circle": [{**ONE, "links": [(U, "b")]}, {**TWO, "links": [(T, "a")]}],
    "no root": [FIRST, SECOND_TURN],
    "no root, two processes": [FIRST, {**SECOND_TURN, "instance": "elsewhere"}],
    "no root, long silence": [FIRST, SECOND_TURN, LATE],
    "a session": [
        *turn(T, 0, HELLO, "hi"),
        *turn(U, 1, [*HELLO, "hi", "and?"], "so"),
        *turn(V, 2, ["other matter"], "yes"),
        *turn(W, 3, [*HELLO, "hi", "and?", "so", "bye"], "ciao"),
    ],
    "a predecessor by name": [
        span(T, "a", start=0, end=1, attributes=openinference(HELLO, "hi", gen_ai__response__id="resp_1")),
        span(T, "b", start=2, end=3, attributes=openinference(["and?"], "so", llm__invocation_parameters='{"previous_response_id": "resp_1"}')),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What became of a story: its calls by start; id, rule and traces of its rollouts."""

    calls: list[dict[str, Any]]
    rollouts: list[tuple[str, str, list[str]]]


def elsewhere(story: str, trace: str) -> str:
    """The id that a trace of a story has among all stories."""
    return hashlib.md5(f"{story}{trace}".encode()).hexdigest()


def set_apart(story: str, one: dict[str, Any]) -> dict[str, Any]:
    """A span whose trace, process, session and ids no other story has."""
    own = {"session.id": "s", "gen_ai.response.id": one["attributes"].get("gen_ai.response.id")}
    attributes = {key: f"{story}/{value}" if key in own else value for key, value in one["attributes"].items()}
    if "llm.invocation_parameters" in attributes:
        attributes["llm.invocation_parameters"] = attributes["llm.invocation_parameters"].replace(
            "resp_", f"{story}/resp_"
        )
    return {
        **one,
        "trace": elsewhere(story, one["trace"]),
        "instance": f"{story}/{one['instance']}",
        "links": [(elsewhere(story, trace), target) for trace, target in one["links"]],
        "attributes": attributes,
    }


@pytest.fixture(scope="module")
def told() -> dict[str, Told]:
    """Every story, told once."""
    connection = transformed(
        requests(*(set_apart(name, one) for name, of in STORIES.items() for one in of)), "rollouts"
    )
    found: dict[str, Told] = {}
    for story in STORIES:
        real = {elsewhere(story, trace): trace for trace in (T, U, V, W)}
        calls = [
            {**row, "trace_id": real[row["trace_id"]]}
            for row in rows(connection, "select * from calls order by start_unix_nano, span_id")
            if row["trace_id"] in real
        ]
        rollouts = [
            (real[row["rollout_id"]], row["keyed_by"], sorted(real[trace] for trace in row["trace_ids"]))
            for row in rows(connection, "select * from rollouts")
            if row["rollout_id"] in real
        ]
        found[story] = Told(calls, sorted(rollouts))
    return found


@pytest.fixture(scope="module")
def recorded() -> duckdb.DuckDBPyConnection:
    """The captures with doubles, threads and a team."""
    return transformed(frames(sorted({*RECORDED_DOUBLES, *RECORDED_THREADS, RECORDED_TEAM})), "rollouts")


def test_three_instrumentors_around_one_call_are_one_call_and_the_innermost_is_believed(told: dict[str, Told]) -> None:
    (call,) = told["three instrumentors"].calls
    assert (call["span_id"][0], call["convention"], call["model"]) == ("c", "openinference", "m")
    assert call["session_id"] == "three instrumentors/s"
    assert [member.split(":")[1][0] for member in call["merged_span_ids"]] == ["a", "b"]


def test_an_agent_between_two_calls_keeps_both(told: dict[str, Told]) -> None:
    found = told["an agent between"].calls
    assert [(row["span_id"][0], row["agent"]) for row in found] == [("a", None), ("c", "inner")]


@pytest.mark.parametrize("story", ["beside", "in another trace"])
def test_a_double_is_found_by_its_response_id_and_the_one_within_an_agent_gives_the_place(
    told: dict[str, Told], story: str
) -> None:
    (call,) = told[story].calls
    assert (call["trace_id"], call["agent"], call["response_id"]) == (T, "planner", f"{story}/x")
    assert len(call["merged_span_ids"]) == 1


@pytest.mark.parametrize(
    ("story", "merged"),
    [("equal words", [1]), ("equal words in another process", [0, 0]), ("equal words twice", [0, 0, 0])],
)
def test_a_double_without_an_id_is_found_by_what_was_said_if_there_is_one_candidate(
    told: dict[str, Told], story: str, merged: list[int]
) -> None:
    assert [len(row["merged_span_ids"]) for row in told[story].calls] == merged


def test_an_id_that_returns_later_joins_nothing(told: dict[str, Told]) -> None:
    assert [row["untrainable_reason"] for row in told["an id that returns"].calls] == ["response_id_reused"] * 2


def test_recorded_doubles_nested_beside_and_across_traces_leave_one_call_for_each_answer(
    recorded: duckdb.DuckDBPyConnection,
) -> None:
    owner = owners(RECORDED_DOUBLES)
    found: Counter[tuple[str, str]] = Counter()
    for row in rows(recorded, "select trace_id, merged_span_ids from calls"):
        if row["trace_id"] in owner:
            assert len(row["merged_span_ids"]) == 1
            apart = row["merged_span_ids"][0].split(":")[0] != row["trace_id"]
            found[owner[row["trace_id"]], "another trace" if apart else "same trace"] += 1
    assert found == {(capture, shape): n for capture, (n, shape) in RECORDED_DOUBLES.items()}


def test_a_tool_seen_twice_is_one_execution_with_what_both_know(recorded: duckdb.DuckDBPyConnection) -> None:
    """AutoGen and OpenInference nested: arguments and result from without, the id of the tool call from within."""
    owner = owners(["autogen/openinference-autogen+openai"])
    found = [row for row in rows(recorded, "select * from tools") if row["trace_id"] in owner]
    assert len(found) == 3
    assert all(row["tool_call_id"].startswith("call_") and row["result"] and row["call_span_id"] for row in found)


def test_a_team_whose_messages_fall_apart_into_linked_traces_is_one_episode(
    recorded: duckdb.DuckDBPyConnection,
) -> None:
    """AutoGen without a span around it: 26 links, and the traces between those with calls hold none themselves."""
    owner = owners([RECORDED_TEAM])
    linked = rows(recorded, "select trace_ids, calls from rollouts where keyed_by = 'link'")
    of_the_team = [row for row in linked if set(row["trace_ids"]) <= owner.keys()]
    assert [(len(row["trace_ids"]), row["calls"]) for row in of_the_team] == [(2, 3)]


def test_a_link_joins_and_links_to_several_traces_are_a_batch_and_prove_nothing(told: dict[str, Told]) -> None:
    assert told["a link"].rollouts == [(T, "link", [T, V])]
    assert told["a batch"].rollouts == [(T, "single", [T]), (U, "single", [U]), (V, "single", [V])]


def test_links_that_run_in_a_circle_lose_nothing(told: dict[str, Told]) -> None:
    assert told["a circle"].rollouts == [(T, "single", [T]), (U, "single", [U])]


def test_bare_calls_of_one_process_go_on_from_one_another_without_any_root(told: dict[str, Told]) -> None:
    assert told["no root"].rollouts == [(T, "continuation", [T, U])]
    assert told["no root, two processes"].rollouts == [(T, "single", [T]), (U, "single", [U])]
    # After half an hour of silence it is another conversation.
    assert told["no root, long silence"].rollouts == [(T, "continuation", [T, U]), (V, "single", [V])]


def test_a_session_of_many_traces_is_as_many_episodes_as_there_are_conversations_in_it(told: dict[str, Told]) -> None:
    assert told["a session"].rollouts == [(T, "session", [T, U, W]), (V, "single", [V])]


def test_recorded_threads_over_several_traces_are_one_episode(recorded: duckdb.DuckDBPyConnection) -> None:
    sessions = rows(recorded, "select trace_ids, calls from rollouts where keyed_by = 'session'")
    for capture in RECORDED_THREADS:
        owner = owners([capture])
        assert [(len(row["trace_ids"]), row["calls"]) for row in sessions if row["trace_ids"][0] in owner] == [(2, 4)]


def test_a_call_that_names_its_predecessor_needs_no_common_text(told: dict[str, Told]) -> None:
    """The Responses API with previous_response_id: the new items alone are the prompt."""
    first, second = told["a predecessor by name"].calls
    assert second["lineage_span_id"] == first["span_id"]
    assert (first["untrainable_reason"], second["untrainable_reason"]) == (None, "partial_prompt")


def test_traces_split_over_files_and_days_are_what_they_are_in_one(tmp_path: Path) -> None:
    """Every span of some captures on one of two days, in any file, and a run after each day."""
    whole = frames(SPLIT)
    rewards = {"rewards": {"train": {"reward": 1.0}}, "threads": 1}
    lake = Lake(tmp_path / "lake")
    pieces = [piece for frame in whole for piece in _pieces(frame)]
    random.Random(0).shuffle(pieces)
    for day in range(2):
        for number in range(2):
            _lay(lake, f"2026-11-2{day}", 2 * day + number, pieces[2 * day + number :: 4])
        run_transform(lake.root, TransformConfig.model_validate(rewards), now_unix_nano=NOW)
    at_once = transformed(whole, "rollouts", rewards)
    with open_tables(lake.root, threads=1) as stored:
        for table, key in {
            "calls": "trace_id, span_id",
            "tools": "trace_id, span_id",
            "rollouts": "rollout_id",
        }.items():
            query = f"select * from {table} order by {key}"
            before, after = rows(at_once, query), rows(stored, query)
            assert len(before) == len(after) > 0
            for row, same in zip(before, after, strict=True):
                assert {k: (v, same[k]) for k, v in row.items() if k in same and same[k] != v} == {}, table


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
