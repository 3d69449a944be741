"""Credit lands where it belongs: attribution cases written by hand, through the real collector, in random orders."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from running import Otlp, attributes

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT, A, B = "b7ad6b7169203331", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"


class Story:
    """A root span with calls A and B below, and whatever a case adds; sent in any order and split."""

    def __init__(self, otlp: Otlp) -> None:
        self.otlp = otlp
        self.spans: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []

    def span(
        self,
        span_id: str,
        parent: str | None,
        start: int,
        end: int,
        *,
        trace: str = TRACE,
        name: str = "work",
        error: bool = False,
        **values: Any,
    ) -> None:
        span: dict[str, Any] = {
            "traceId": trace, "spanId": span_id, "name": name, "kind": 1, "startTimeUnixNano": str(start), "endTimeUnixNano": str(end),
            "attributes": attributes(values), "_scope": "test.llm",
        }  # fmt: skip
        if parent:
            span["parentSpanId"] = parent
        if error:
            span["status"] = {"code": 2}
        self.spans.append(span)

    def call(
        self,
        span_id: str,
        parent: str | None,
        prompt: str,
        answer: str | None,
        *,
        name: str = "ChatCompletion",
        **more: Any,
    ) -> int:
        start = self.otlp.tick()
        values: dict[str, Any] = {
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": prompt,
        }
        if answer is not None:
            values |= {
                "llm.output_messages.0.message.role": "assistant",
                "llm.output_messages.0.message.content": answer,
            }
        values |= more.pop("values", {})
        self.span(span_id, parent, more.pop("start", start), self.otlp.tick(), name=name, **{**values, **more})
        return start

    def reward(
        self,
        value: float,
        *,
        name: str = "reward",
        trace: str | None = TRACE,
        span: str | None = None,
        at: int | None = None,
        **values: Any,
    ) -> None:
        record: dict[str, Any] = {
            "eventName": "gen_ai.evaluation.result", "timeUnixNano": str(at or self.otlp.tick()),
            "attributes": attributes({"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": value, **values}),
        }  # fmt: skip
        if trace:
            record["traceId"] = trace
        if span:
            record["spanId"] = span
        self.records.append(record)

    def two_calls(self) -> None:
        begin = self.otlp.tick()
        self.call(A, ROOT, "first", "one")
        self.call(B, ROOT, "second", "two")
        self.span(ROOT, None, begin, self.otlp.tick(), name="agent", **{"openinference.span.kind": "AGENT"})

    def deliver(self, lake: Path, method: str, rng: random.Random, baseline: str = "none") -> dict[str, Any]:
        """Send in random order and pieces, transforming in between; {span: (credit, trainable)}."""
        config = TransformConfig.model_validate(
            {"credit": {"method": method, "baseline": baseline}, "settle_s": 1, "threads": 1}
        )
        parcels = [("spans", s) for s in self.spans] + [("records", r) for r in self.records]
        rng.shuffle(parcels)
        while parcels:
            size = rng.randrange(1, len(parcels) + 1)
            part, parcels = parcels[:size], parcels[size:]
            self.otlp.send([s for kind, s in part if kind == "spans"], [r for kind, r in part if kind == "records"])
            self.otlp.flush()
            if parcels and rng.random() < 0.5:
                run_transform(lake, config)
        run_transform(lake, config, now_unix_nano=time.time_ns() + 10**13)
        with open_tables(lake) as connection:
            rows = connection.execute(
                "select calls.span_id, credits.reward::double, calls.trainable from calls left join credits using (trace_id, span_id) "
                "order by calls.span_id, credits.choice"
            ).fetchall()
        found: dict[str, Any] = {}
        for span_id, credit, trainable in rows:
            found.setdefault(span_id, []).append((credit, trainable))
        return {key: value[0] if len(value) == 1 else value for key, value in found.items()}


def final_reward(story: Story) -> str:
    story.two_calls()
    story.reward(1.0, span=ROOT)
    return "broadcast"


def corrected_reward(story: Story) -> str:
    story.two_calls()
    story.reward(0.1, span=ROOT)
    story.reward(0.9, span=ROOT)
    return "broadcast"


def linked_to_a(story: Story) -> str:
    story.two_calls()
    story.reward(1.0, trace=None, **{"lightning.target.trace_id": TRACE, "lightning.target.span_id": A})
    return "step"


def each_its_own(story: Story) -> str:
    story.two_calls()
    story.reward(0.1, span=A)
    story.reward(0.9, span=B)
    return "step"


def no_reward(story: Story) -> str:
    story.two_calls()
    return "broadcast"


def sent_twice(story: Story) -> str:
    story.two_calls()
    story.spans.append(dict(next(s for s in story.spans if s["spanId"] == A)))
    story.reward(1.0, span=ROOT)
    return "broadcast"


def failed_then_right(story: Story) -> str:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", None, error=True)
    story.call(B, ROOT, "first", "one")
    story.span(ROOT, None, begin, story.otlp.tick(), **{"openinference.span.kind": "AGENT"})
    story.reward(1.0, span=ROOT)
    return "broadcast"


def lost_root(story: Story) -> str:
    story.two_calls()
    story.spans = [s for s in story.spans if s["spanId"] != ROOT]
    story.reward(1.0, span=ROOT)
    return "broadcast"


def inside_a_judge(story: Story) -> str:
    story.two_calls()
    judge = "cccccccccccccccc"
    story.span(judge, ROOT, story.otlp.tick(), story.otlp.tick(), **{"openinference.span.kind": "EVALUATOR"})
    story.call("dddddddddddddddd", judge, "grade this", "good")
    story.reward(1.0, span=ROOT)
    return "broadcast"


def next_day_by_response_id(story: Story) -> str:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", values={"gen_ai.response.id": "chatcmpl-a"})
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), **{"openinference.span.kind": "AGENT"})
    story.reward(
        1.0, trace="ffffffffffffffffffffffffffffffff", span="eeeeeeeeeeeeeeee", **{"gen_ai.response.id": "chatcmpl-a"}
    )
    return "step"


def not_a_number(story: Story) -> str:
    story.two_calls()
    story.reward(float("nan"), span=ROOT)
    return "broadcast"


def before_the_call_ends(story: Story) -> str:
    story.two_calls()
    story.reward(1.0, span=ROOT, at=story.otlp.tick() - 30_000_000)
    return "broadcast"


def odd_names_and_a_chain_between(story: Story) -> str:
    begin = story.otlp.tick()
    chain = "9999999999999999"
    story.call(A, chain, "first", "one", name="chat gpt-4o")
    story.call(B, chain, "second", "two", name="anything")
    story.span(chain, ROOT, begin, story.otlp.tick(), **{"openinference.span.kind": "CHAIN"})
    story.span(ROOT, None, begin, story.otlp.tick(), **{"openinference.span.kind": "AGENT"})
    story.reward(1.0, span=ROOT)
    return "broadcast"


def no_start_time(story: Story) -> str:
    begin = story.otlp.tick()
    story.call(A, ROOT, "first", "one", start=0)
    story.call(B, ROOT, "second", "two")
    story.span(ROOT, None, begin, story.otlp.tick(), **{"openinference.span.kind": "AGENT"})
    story.reward(1.0, span=ROOT)
    return "broadcast"


BOTH = {A: (1.0, True), B: (1.0, True)}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (final_reward, BOTH),
    (corrected_reward, {A: (0.9, True), B: (0.9, True)}),
    (each_its_own, {A: (0.1, True), B: (0.9, True)}),
    (linked_to_a, {A: (1.0, True), B: (None, True)}),
    (odd_names_and_a_chain_between, BOTH),
    (no_reward, {A: (None, True), B: (None, True)}),
    (sent_twice, BOTH),
    (failed_then_right, {A: (None, False), B: (1.0, True)}),
    (lost_root, BOTH),
    (inside_a_judge, {**BOTH, "dddddddddddddddd": (None, False)}),
    (next_day_by_response_id, {A: (1.0, True), B: (None, True)}),
    (not_a_number, {A: (None, True), B: (None, True)}),
    (before_the_call_ends, BOTH),
    (no_start_time, BOTH),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("case", "expected"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_credit_lands_where_it_belongs(
    otlp: Otlp, tmp_path: Path, case: Any, expected: dict[str, Any], seed: int
) -> None:
    story = Story(otlp)
    method = case(story)
    assert story.deliver(tmp_path / "lake", method, random.Random(f"{case.__name__}/{seed}")) == expected


def test_discounted_credit_falls_with_the_distance(otlp: Otlp, tmp_path: Path) -> None:
    story = Story(otlp)
    story.two_calls()
    story.reward(1.0, span=ROOT)
    story.otlp.send(story.spans, story.records)
    story.otlp.flush()
    config = TransformConfig.model_validate({"credit": {"method": "discounted", "gamma": 0.5}, "settle_s": 1})
    run_transform(tmp_path / "lake", config)
    with open_tables(tmp_path / "lake") as connection:
        assert connection.execute("select span_id, reward::double from credits order by step").fetchall() == [
            (A, 0.5),
            (B, 1.0),
        ]


@pytest.mark.parametrize("seed", range(3))
def test_a_sessions_reward_stands_on_what_began_since_the_one_before(otlp: Otlp, tmp_path: Path, seed: int) -> None:
    story = Story(otlp)
    traces = [f"{n}" * 32 for n in (1, 2, 3)]

    def episode(trace: str) -> None:
        begin = otlp.tick()
        story.call(
            f"{trace[0]}" * 15 + "a",
            f"{trace[0]}" * 15 + "b",
            f"hello {trace[0]}",
            "hi",
            trace=trace,
            values={"session.id": "chat"},
        )
        story.span(f"{trace[0]}" * 15 + "b", None, begin, otlp.tick(), trace=trace, **{"openinference.span.kind": "AGENT", "session.id": "chat"})  # fmt: skip

    episode(traces[0])
    story.reward(0.25, trace=None, **{"session.id": "chat"})
    episode(traces[1])
    episode(traces[2])
    story.reward(0.5, trace=None, **{"session.id": "chat"})
    story.reward(0.75, trace=None, **{"session.id": "chat"})  # nothing began in between: it takes the place of 0.5
    story.reward(0.1, trace=None, name="tone", **{"session.id": "chat"})  # another name counts for itself
    found = story.deliver(tmp_path / "lake", "broadcast", random.Random(seed))
    assert {span[0]: credit for span, (credit, _) in found.items()} == {"1": 0.25, "2": 0.75, "3": 0.75}
    with open_tables(tmp_path / "lake") as connection:
        rewards = connection.execute(
            "select name, value, left(rollout_id, 1), superseded_by is null from rewards order by name, value, 3"
        ).fetchall()
    assert rewards == [
        ("reward", 0.25, "1", True),
        *(("reward", value, trace, value == 0.75) for value in (0.5, 0.75) for trace in "23"),
        *(("tone", 0.1, trace, True) for trace in "123"),
    ]
