"""Credit lands where it belongs: sixteen attribution cases written by hand, each in twenty random orders and splits.

All stories of all orders go through one real collector, their spans and records shuffled together and cut into requests at
random; a transform runs after each portion, one for each credit method, over the same files.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import Otlp, Starter, attributes

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

ORDERS = 20
PORTIONS = 4
ROOT, A, B, C, D = "b7ad6b7169203331", "a" * 16, "b" * 16, "c" * 16, "d" * 16
AGENT = {"openinference.span.kind": "AGENT"}
SENT_AT_ONCE = 8  # parcels in a request, at most


class Story:
    """A root span with calls A and B below, and whatever a case adds: one trace of its own."""

    def __init__(self, otlp: Otlp, number: int) -> None:
        self.otlp = otlp
        self.number = number
        self.trace = f"{number + 1:032x}"
        self.parcels: list[tuple[str, dict[str, Any]]] = []
        self.checks: list[tuple[str, Any]] = []

    def span(
        self, span_id: str, parent: str | None, start: int, end: int, *, trace: str | None = None, name: str = "work",
        error: bool = False, scope: str = "test.llm", links: list[dict[str, Any]] | None = None,
        events: list[dict[str, Any]] | None = None, values: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        span: dict[str, Any] = {
            "traceId": trace or self.trace, "spanId": span_id, "name": name, "kind": 1, "startTimeUnixNano": str(start),
            "endTimeUnixNano": str(end), "attributes": attributes(values or {}), "links": links or [], "events": events or [],
            "_scope": scope, "_instance": f"i-{self.number}",
        }  # fmt: skip
        if parent:
            span["parentSpanId"] = parent
        if error:
            span["status"] = {"code": 2}
        self.parcels.append(("span", span))
        return span

    def call(
        self, span_id: str, parent: str | None, prompt: str, *answers: str, start: int | None = None, end: int | None = None,
        values: dict[str, Any] | None = None, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """A call in OpenInference's words; without an answer it is one that failed."""
        said: dict[str, Any] = {
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": f"{prompt} of story {self.number}",
        }
        for index, answer in enumerate(answers):
            said[f"llm.output_messages.{index}.message.role"] = "assistant"
            said[f"llm.output_messages.{index}.message.content"] = answer
        begin = self.otlp.tick() if start is None else start
        return self.span(span_id, parent, begin, end or self.otlp.tick(), values=said | (values or {}), **more)

    def reward(
        self, value: float, *, span: str | None = None, context: bool = True, at: int | None = None, **values: Any
    ) -> None:
        """An evaluation in the context of one of the story's spans, of its trace, or (context False) of nothing."""
        record: dict[str, Any] = {
            "eventName": "gen_ai.evaluation.result", "timeUnixNano": str(at or self.otlp.tick()),
            "attributes": attributes({"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": value, **values}),
        }  # fmt: skip
        if context:
            record["traceId"] = self.trace
        if span:
            record["spanId"] = span
        self.parcels.append(("record", record))

    def two_calls(self, parent: str = ROOT, **values: dict[str, Any]) -> None:
        begin = self.otlp.tick()
        self.call(A, parent, "first", "one", values=values.get("a"))
        self.call(B, parent, "second", "two", values=values.get("b"))
        self.span(ROOT, None, begin, self.otlp.tick(), name="agent", values=AGENT)

    def response_ids(self) -> dict[str, dict[str, Any]]:
        return {which: {"gen_ai.response.id": f"chatcmpl-{self.number}-{which}"} for which in "ab"}

    def holds(self, query: str, *rows: Any) -> None:
        """What else must be so in the end; $trace is the story's."""
        self.checks.append((query, list(rows)))


def evaluation_event(story: Story, value: float) -> dict[str, Any]:
    return {
        "name": "gen_ai.evaluation.result", "timeUnixNano": str(story.otlp.tick()),
        "attributes": attributes({"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": value}),
    }  # fmt: skip


def case_1_one_final_reward(story: Story) -> None:
    story.two_calls()
    story.reward(1.0, span=ROOT)


def case_2_a_correction_supersedes(story: Story) -> None:
    story.two_calls()
    story.reward(0.1, span=ROOT)
    story.reward(0.9, span=ROOT)
    story.holds(
        "select value, superseded_by is not null from rewards where target_trace_id = $trace order by 1",
        (0.1, True),
        (0.9, False),
    )


def case_2_rewards_by_response_id(story: Story) -> None:
    ids = story.response_ids()
    story.two_calls(**ids)
    story.reward(0.1, span=ROOT, **ids["a"])
    story.reward(0.9, span=ROOT, **ids["b"])


def case_3_a_reward_that_names_a(story: Story) -> None:
    story.two_calls()
    story.reward(1.0, context=False, **{"lightning.target.trace_id": story.trace, "lightning.target.span_id": A})


def case_3_a_carrier_span_that_links_to_a(story: Story) -> None:
    story.two_calls()
    values = {"annotations.0.annotation.name": "reward", "annotations.0.annotation.score": 1.0, "openinference.span.kind": "CHAIN"}  # fmt: skip
    at = story.otlp.tick()
    link = {"traceId": story.trace, "spanId": A}
    story.span(C, None, at, story.otlp.tick(), trace=f"{story.number + 1:016x}{9:016x}", links=[link], values=values)


def _two_agents(story: Story) -> tuple[int, int]:
    begin = story.otlp.tick()
    x, y = story.otlp.tick(), story.otlp.tick()
    story.call(A, C, "for x", "one")
    story.call(B, D, "for y", "two")
    story.span(ROOT, None, begin, story.otlp.tick() + 10**9, values=AGENT)
    return x, y


def case_4_parallel_agents_with_events(story: Story) -> None:
    x, y = _two_agents(story)
    for agent, start, value in ((C, x, 1.0), (D, y, 0.0)):
        event = evaluation_event(story, value)
        story.span(agent, ROOT, start, story.otlp.tick(), name=agent[:1], values=AGENT, events=[event])


def case_4_parallel_agents_with_child_spans(story: Story) -> None:
    x, y = _two_agents(story)
    for agent, start, value in ((C, x, 1.0), (D, y, 0.0)):
        at = story.otlp.tick()
        story.span(f"{agent[:1]}e" * 8, agent, at, story.otlp.tick(), events=[evaluation_event(story, value)])
        story.span(agent, ROOT, start, story.otlp.tick(), name=agent[:1], values=AGENT)


def case_5_any_span_name(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", name="chat gpt-4o")
    story.call(B, ROOT, "second", "two", name="ChatCompletion")
    story.call(C, ROOT, "third", "three", name="anything; at all")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=ROOT)


def case_6_no_reward(story: Story) -> None:
    story.two_calls()
    story.holds("select count(*) from credits where trace_id = $trace and reward is null", (2,))


def case_7_one_call_three_times(story: Story) -> None:
    begin = story.otlp.tick()
    ids = story.response_ids()
    # Sent twice, once as the exporter's first try left it: without the response id. Then the same call as another
    # instrumentation saw it, beside it.
    start, end = story.otlp.tick(), story.otlp.tick(50)
    story.call(A, ROOT, "first", "one", values=ids["a"], start=start, end=end)
    story.call(A, ROOT, "first", "one", start=start, end=end)
    story.call(C, ROOT, "first", "one", start=start + 1000, end=end - 1000, scope="test.client")
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=ROOT)
    story.holds("select span_id, merged_span_ids from calls where trace_id = $trace order by 1", (A, [f"{story.trace}:{C}"]), (B, []))  # fmt: skip


def case_8_failed_then_right(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", error=True)
    story.call(B, ROOT, "first", "one")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=ROOT)


def case_9_lost_parent(story: Story) -> None:
    story.two_calls()
    story.parcels = [(kind, parcel) for kind, parcel in story.parcels if parcel["spanId"] != ROOT]
    story.reward(1.0, span=ROOT)
    story.holds("select flags from rollouts where list_contains(trace_ids, $trace)", (["no_root"],))
    story.holds("select distinct flags from calls where trace_id = $trace", (["orphan"],))


def case_10_inside_a_judge(story: Story) -> None:
    story.two_calls()
    begin = story.otlp.tick()
    story.call(D, C, "grade this", "good")
    story.span(C, ROOT, begin, story.otlp.tick(), values={"openinference.span.kind": "EVALUATOR"})
    story.reward(1.0, span=ROOT)


NEXT_DAY = 86_400 * 10**9


def case_11_next_day_by_response_id(story: Story) -> None:
    ids = story.response_ids()
    story.two_calls(**ids)
    story.reward(1.0, context=False, at=story.otlp.tick() + NEXT_DAY, **ids["a"])


def case_11_next_day_by_link(story: Story) -> None:
    story.two_calls()
    values = {"annotations.0.annotation.name": "reward", "annotations.0.annotation.score": 1.0}
    at = story.otlp.tick() + NEXT_DAY
    link = {"traceId": story.trace, "spanId": A}
    story.span(C, None, at, at + 10**6, trace=f"{story.number + 1:016x}{9:016x}", links=[link], values=values)


def case_11_next_day_by_rollout_id(story: Story) -> None:
    named = {"lightning.rollout.id": f"rollout-{story.number}"}
    story.two_calls(a=named, b=named)
    story.reward(1.0, context=False, at=story.otlp.tick() + NEXT_DAY, **named)


def case_12_not_a_number(story: Story) -> None:
    story.two_calls()
    marker = f"nan-{story.number}"
    story.reward(float("nan"), span=ROOT, **{"gen_ai.evaluation.explanation": marker})
    story.holds(f"select unresolved_reason from rewards where explanation = '{marker}'", ("refused_value",))


def case_13_before_the_call_ends(story: Story) -> None:
    story.two_calls()
    story.reward(1.0, span=ROOT, at=story.otlp.tick() - 30_000_000)


def case_14_two_answers(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", "uno")
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=ROOT)


def case_14_own_reward_of_two_answers(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", "uno")
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=A)
    story.reward(0.5, span=B)
    story.holds("select unresolved_reason from rewards where target_trace_id = $trace order by 1 nulls last", ("ambiguous_choice",), (None,))  # fmt: skip


def case_15_a_chain_between(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, C, "first", "one")
    story.call(B, C, "second", "two")
    story.span(C, D, begin, story.otlp.tick(), values={"openinference.span.kind": "CHAIN"})
    story.span(D, ROOT, begin, story.otlp.tick(), name="n", values={**AGENT, "agent.name": "planner"})
    story.span(ROOT, None, begin, story.otlp.tick(), values={"openinference.span.kind": "CHAIN"})
    story.reward(1.0, span=ROOT)
    story.holds("select distinct agent from calls where trace_id = $trace", ("planner",))


def case_15_the_reward_on_the_agent(story: Story) -> None:
    case_15_a_chain_between(story)
    story.parcels = [(kind, parcel) for kind, parcel in story.parcels if kind == "span"]
    story.reward(1.0, span=D)


def case_16_no_start_time(story: Story) -> None:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", start=0)
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), values=AGENT)
    story.reward(1.0, span=ROOT)
    story.holds("select flags from calls where trace_id = $trace order by span_id", (["no_start_time"],), ([],))


Case = Callable[[Story], None]
BOTH = {A: [1.0], B: [1.0]}
NONE = {A: [None], B: [None]}
ONLY_A = {A: [1.0], B: [None]}
CASES: list[tuple[Case, str, dict[str, list[Any]]]] = [
    (case_1_one_final_reward, "broadcast", BOTH),
    (case_2_a_correction_supersedes, "broadcast", {A: [0.9], B: [0.9]}),
    (case_2_rewards_by_response_id, "step", {A: [0.1], B: [0.9]}),
    (case_3_a_reward_that_names_a, "step", ONLY_A),
    (case_3_a_carrier_span_that_links_to_a, "step", ONLY_A),
    (case_4_parallel_agents_with_events, "agent", {A: [1.0], B: [0.0]}),
    (case_4_parallel_agents_with_child_spans, "agent", {A: [1.0], B: [0.0]}),
    (case_5_any_span_name, "broadcast", {**BOTH, C: [1.0]}),
    (case_6_no_reward, "broadcast", NONE),
    (case_7_one_call_three_times, "broadcast", BOTH),
    (case_8_failed_then_right, "broadcast", {A: ["error"], B: [1.0]}),
    (case_9_lost_parent, "broadcast", BOTH),
    (case_10_inside_a_judge, "broadcast", {**BOTH, D: ["judge"]}),
    (case_11_next_day_by_response_id, "step", ONLY_A),
    (case_11_next_day_by_link, "step", ONLY_A),
    (case_11_next_day_by_rollout_id, "broadcast", BOTH),
    (case_12_not_a_number, "broadcast", NONE),
    (case_13_before_the_call_ends, "broadcast", BOTH),
    (case_14_two_answers, "broadcast", {A: [1.0, 1.0], B: [1.0]}),
    (case_14_own_reward_of_two_answers, "step", {A: [None, None], B: [0.5]}),
    (case_15_a_chain_between, "broadcast", BOTH),
    (case_15_the_reward_on_the_agent, "agent", BOTH),
    (case_16_no_start_time, "broadcast", BOTH),
]
METHODS = sorted({method for _, method, _ in CASES})


@dataclass
class Told:
    """Every story of every order, as the lake knows it."""

    stories: dict[str, list[Story]]
    credits: dict[str, dict[str, dict[str, list[Any]]]]
    connections: dict[str, Any]


@pytest.fixture(scope="module")
def told(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("attribution")
    collector = start_for_module(
        "lightning-collect", "--lake", str(folder / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    lakes = {method: _same_files(folder / "lake", folder / method) for method in METHODS}
    otlp = Otlp(collector.url)
    stories: dict[str, list[Story]] = {case.__name__: [] for case, _, _ in CASES}
    for order in range(ORDERS):
        for number, (case, _, _) in enumerate(CASES):
            story = Story(otlp, order * len(CASES) + number)
            case(story)
            stories[case.__name__].append(story)
    rng = random.Random(16)
    parcels = [parcel for told in stories.values() for story in told for parcel in story.parcels]
    rng.shuffle(parcels)
    cuts = sorted(rng.sample(range(1, len(parcels)), PORTIONS - 1))
    for begin, end in zip([0, *cuts], [*cuts, len(parcels)], strict=True):
        portion = parcels[begin:end]
        while portion:
            size = rng.randrange(1, SENT_AT_ONCE + 1)
            part, portion = portion[:size], portion[size:]
            otlp.send([p for kind, p in part if kind == "span"], [p for kind, p in part if kind == "record"])
        otlp.flush()
        for method, lake in lakes.items():
            # The last now is past every quiet time.
            now = time.time_ns() + (10**13 if end == len(parcels) else 0)
            run_transform(lake, _config(method), now_unix_nano=now)
    connections = {method: open_tables(lake) for method, lake in lakes.items()}
    yield Told(stories, {method: _credits(connection) for method, connection in connections.items()}, connections)
    for connection in connections.values():
        connection.close()


def _config(method: str) -> TransformConfig:
    return TransformConfig.model_validate({"credit": {"method": method}, "settle_s": 1, "rewards": {"train": {"reward": 1.0}}})  # fmt: skip


def _same_files(lake: Path, beside: Path) -> Path:
    """A lake with the files of another and a `derived/` of its own."""
    beside.mkdir()
    for name in ("spans", "events", "metrics", "manifest", "tombstones"):
        (beside / name).symlink_to(lake / name)
    return beside


def _credits(connection: Any) -> dict[str, dict[str, list[Any]]]:
    """{trace: {span: [credit of each choice, or why the call is not trained]}}"""
    found: dict[str, dict[str, list[Any]]] = {}
    rows = connection.execute(
        "select calls.trace_id, calls.span_id, case when calls.trainable then credits.reward::double end, calls.untrainable_reason "
        "from calls left join credits using (trace_id, span_id) order by calls.trace_id, calls.span_id, credits.choice"
    ).fetchall()
    for trace, span, credit, reason in rows:
        found.setdefault(trace, {}).setdefault(span, []).append(reason or credit)
    return found


@pytest.mark.parametrize(("case", "method", "expected"), CASES, ids=[case.__name__ for case, _, _ in CASES])
def test_credit_lands_where_it_belongs(told: Told, case: Case, method: str, expected: dict[str, list[Any]]) -> None:
    stories = told.stories[case.__name__]
    assert len(stories) == ORDERS
    for order, story in enumerate(stories):
        assert told.credits[method].get(story.trace) == expected, f"order {order}"
        for query, rows in story.checks:
            bound = {"trace": story.trace} if "$trace" in query else {}
            assert told.connections[method].execute(query, bound).fetchall() == rows, f"order {order}: {query}"


def test_all_sixteen_are_here() -> None:
    here = {int(name.split("_")[1]) for name in globals() if name.startswith("case_")}
    assert here == set(range(1, 17))


def test_what_has_no_reward_is_counted(told: Told) -> None:
    unrewarded = [*told.stories["case_6_no_reward"], *told.stories["case_12_not_a_number"]]
    row = told.connections["broadcast"].execute("select calls from funnel where stage = 'rewarded' and reason = 'no_reward'").fetchone()  # fmt: skip
    assert row is not None and row[0] >= 2 * len(unrewarded)


def test_discounted_credit_falls_with_the_distance(otlp: Otlp, tmp_path: Path) -> None:
    story = Story(otlp, 0)
    story.two_calls()
    story.reward(1.0, span=ROOT)
    otlp.send([p for kind, p in story.parcels if kind == "span"], [p for kind, p in story.parcels if kind == "record"])
    otlp.flush()
    config = TransformConfig.model_validate({"credit": {"method": "discounted", "gamma": 0.5}, "settle_s": 1})
    run_transform(tmp_path / "lake", config)
    with open_tables(tmp_path / "lake") as connection:
        assert connection.execute("select span_id, reward::double from credits order by step").fetchall() == [
            (A, 0.5),
            (B, 1.0),
        ]


@pytest.mark.parametrize("seed", range(3))
def test_a_sessions_reward_stands_on_what_began_since_the_one_before(otlp: Otlp, tmp_path: Path, seed: int) -> None:
    traces = [f"{n}" * 32 for n in (1, 2, 3)]
    parcels: list[tuple[str, dict[str, Any]]] = []
    chat = {"session.id": "chat"}

    def episode(number: int) -> None:
        story = Story(otlp, number)
        story.trace = traces[number]
        begin = otlp.tick()
        story.call(A, ROOT, "hello", "hi", values=chat)
        story.span(ROOT, None, begin, otlp.tick(), values={**AGENT, **chat})
        parcels.extend(story.parcels)

    def reward(value: float, **values: Any) -> None:
        story = Story(otlp, 0)
        story.reward(value, context=False, **{**chat, **values})
        parcels.extend(story.parcels)

    episode(0)
    reward(0.25)
    episode(1)
    episode(2)
    reward(0.5)
    reward(0.75)  # nothing began in between: it takes the place of 0.5
    reward(0.1, **{"gen_ai.evaluation.name": "tone"})  # another name counts for itself
    rng = random.Random(seed)
    rng.shuffle(parcels)
    while parcels:
        size = rng.randrange(1, len(parcels) + 1)
        part, parcels = parcels[:size], parcels[size:]
        otlp.send([p for kind, p in part if kind == "span"], [p for kind, p in part if kind == "record"])
        otlp.flush()
        if parcels and rng.random() < 0.5:
            run_transform(tmp_path / "lake", _config("broadcast"))
    run_transform(tmp_path / "lake", _config("broadcast"), now_unix_nano=time.time_ns() + 10**13)
    with open_tables(tmp_path / "lake") as connection:
        credits = connection.execute("select left(trace_id, 1), reward::double from credits order by 1").fetchall()
        rewards = connection.execute(
            "select name, value, left(rollout_id, 1), superseded_by is null from rewards order by name, value, 3"
        ).fetchall()
    assert credits == [("1", 0.25), ("2", 0.75), ("3", 0.75)]
    assert rewards == [
        ("reward", 0.25, "1", True),
        *(("reward", value, trace, value == 0.75) for value in (0.5, 0.75) for trace in "23"),
        *(("tone", 0.1, trace, True) for trace in "123"),
    ]
