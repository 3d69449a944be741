"""Episodes for tests of any order and any cut: what real frameworks sent, and a hostile generator with known targets.

An episode is a list of parcels, the smallest things a sender may send apart, plus what every reward in it must stand on
and, where one can say it by hand, what its calls must be credited with. All ids are fresh for each number, but first user
messages are shared, so that episodes meet in groups.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

CAPTURES = Path(__file__).parents[1] / "fixtures" / "otlp"
BEGIN = 1_750_000_000_000_000_000
YEAR_2100 = 4_102_444_800_000_000_000
PROMPTS = ("where is my parcel", "cancel my order", "the app crashes", "refund please")
# Strings that must stay what they are.
NASTY = (
    "'; drop table spans; --", '"; select 1; --', "$now $1 {x} %s", "\\", "null", "[0]", "$.x", "𝔘𝔫𝔦 \u202e", "a\x00b", '{"a": [1',
    "' or 1=1 --", "</script><script>", "=cmd()", "", " ", "NaN", "\n\t", "e:" + "0" * 64, "trace:x",
)  # fmt: skip


@dataclass(frozen=True)
class Parcel:
    """One span or log record with its resource and scope."""

    resource: Resource
    scope: InstrumentationScope
    item: Span | LogRecord


@dataclass(frozen=True)
class Target:
    """What a reward must stand on, or why it must stand on nothing."""

    kind: str | None = None
    trace: str | None = None
    span: str | None = None
    choice: int | None = None
    reason: str | None = None


@dataclass
class Episode:
    """Parcels in the order of their story; `targets` by the reward's explanation, `credits` by (trace, span, choice)."""

    name: str
    parcels: list[Parcel] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)
    credits: dict[tuple[str, str, int], float | None] = field(default_factory=dict)


def captured() -> list[Episode]:
    """What each recorded framework sent."""
    episodes = []
    for folder in sorted({path.parent for path in CAPTURES.glob("*/*/*.pb")}):
        episode = Episode("/".join(folder.parts[-2:]))
        for path in sorted(folder.glob("*.pb")):
            if "-traces" in path.stem:
                for group in ExportTraceServiceRequest.FromString(path.read_bytes()).resource_spans:
                    episode.parcels += [
                        Parcel(group.resource, s.scope, item) for s in group.scope_spans for item in s.spans
                    ]
            elif "-logs" in path.stem:
                for group in ExportLogsServiceRequest.FromString(path.read_bytes()).resource_logs:
                    episode.parcels += [
                        Parcel(group.resource, s.scope, item) for s in group.scope_logs for item in s.log_records
                    ]
        episodes.append(episode)
    return episodes


def requests(parcels: list[Parcel]) -> Iterator[tuple[str, bytes]]:
    """The parcels as one request a signal: path and body."""
    spans, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    for parcel in parcels:
        if isinstance(parcel.item, Span):
            group = spans.resource_spans.add(resource=parcel.resource)
            group.scope_spans.add(scope=parcel.scope, spans=[parcel.item])
        else:
            records = logs.resource_logs.add(resource=parcel.resource)
            records.scope_logs.add(scope=parcel.scope, log_records=[parcel.item])
    if spans.resource_spans:
        yield "/v1/traces", spans.SerializeToString()
    if logs.resource_logs:
        yield "/v1/logs", logs.SerializeToString()


def value(item: Any) -> AnyValue:
    if isinstance(item, bool):
        return AnyValue(bool_value=item)
    if isinstance(item, int):
        return AnyValue(int_value=item)
    if isinstance(item, float):
        return AnyValue(double_value=item)
    if isinstance(item, bytes):
        return AnyValue(bytes_value=item)
    if isinstance(item, list):
        return AnyValue(array_value=ArrayValue(values=[value(part) for part in item]))
    if isinstance(item, dict):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(item)))
    return AnyValue(string_value=item)


def pairs(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(item)) for key, item in values.items()]


class Writer:
    """Writes one episode: fresh ids, a clock of its own, a process of its own."""

    def __init__(self, name: str, number: int, rng: random.Random) -> None:
        self.rng = rng
        self.number = number
        self.episode = Episode(f"{name}-{number}")
        self.resource = {"service.name": f"service-{number % 3}", "service.instance.id": f"process-{number}"}
        self.clock = BEGIN + number * 10**12
        self.spans = 0
        self.rewards = 0

    def tick(self, milliseconds: float = 10) -> int:
        self.clock += int(milliseconds * 1e6)
        return self.clock

    def trace(self, nth: int = 0) -> str:
        return f"{self.number + 1:016x}{nth + 1:016x}"

    def new_span(self) -> str:
        self.spans += 1
        return f"{self.number + 1:08x}{self.spans:08x}"

    def span(
        self, span_id: str | None = None, parent: str | None = None, values: dict[str, Any] | None = None, *, trace: str | None = None,
        start: int | None = None, end: int | None = None, name: str = "work", scope: str = "generated", error: bool = False,
        links: list[tuple[str, str]] = (), events: list[Span.Event] = (), dropped: int = 0,
    ) -> str:  # fmt: skip
        span_id = span_id or self.new_span()
        start = self.tick() if start is None else start
        item = Span(
            trace_id=bytes.fromhex(trace or self.trace()), span_id=bytes.fromhex(span_id), name=name,
            parent_span_id=bytes.fromhex(parent) if parent else b"", start_time_unix_nano=start,
            end_time_unix_nano=self.tick() if end is None else end, attributes=pairs(values or {}), events=events,
            links=[Span.Link(trace_id=bytes.fromhex(t), span_id=bytes.fromhex(s)) for t, s in links],
            status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET), dropped_attributes_count=dropped,
        )  # fmt: skip
        self._put(scope, item)
        return span_id

    def record(
        self, name: str, values: dict[str, Any], *, trace: str | None = None, span: str | None = None, at: int | None = None,
        body: Any = None,
    ) -> None:  # fmt: skip
        item = LogRecord(
            time_unix_nano=self.tick() if at is None else at, observed_time_unix_nano=self.clock, event_name=name,
            attributes=pairs(values), trace_id=bytes.fromhex(trace) if trace else b"", span_id=bytes.fromhex(span) if span else b"",
        )  # fmt: skip
        if body is not None:
            item.body.CopyFrom(value(body))
        self._put("judge", item)

    def _put(self, scope: str, item: Span | LogRecord) -> None:
        described = Resource(attributes=pairs(self.resource))
        self.episode.parcels.append(Parcel(described, InstrumentationScope(name=scope), item))

    def root(
        self, values: dict[str, Any] | None = None, *, trace: str | None = None, span_id: str | None = None, **more: Any
    ) -> str:
        return self.span(span_id, None, {"openinference.span.kind": "AGENT", **(values or {})}, trace=trace, **more)

    def call(
        self, parent: str | None, talk: list[tuple[str, str]] | str, answers: list[str] | str | None = "done", *,
        values: dict[str, Any] | None = None, convention: str | None = None, tools: list[tuple[str, str, str]] = (), **more: Any,
    ) -> str:  # fmt: skip
        """An LLM span in the words of one of the conventions; `tools` are (id, name, arguments) that the first answer asks for."""
        talk = [("user", talk)] if isinstance(talk, str) else talk
        answers = [answers] if isinstance(answers, str) else answers or []
        convention = convention or self.rng.choice(["openinference", "genai", "genai_events"])
        span_id = more.pop("span_id", None) or self.new_span()
        trace = more.get("trace") or self.trace()
        said: dict[str, Any]
        if convention == "openinference":
            said = {"openinference.span.kind": "LLM", "llm.model_name": "m"}
            for side, messages in (("input", talk), ("output", [("assistant", answer) for answer in answers])):
                for index, (role, text) in enumerate(messages):
                    said[f"llm.{side}_messages.{index}.message.role"] = role
                    said[f"llm.{side}_messages.{index}.message.content"] = text
            for index, (tool_id, name, arguments) in enumerate(tools):
                at = f"llm.output_messages.0.message.tool_calls.{index}.tool_call"
                said |= {f"{at}.id": tool_id, f"{at}.function.name": name, f"{at}.function.arguments": arguments}
        elif convention == "genai":
            asked = [{"type": "tool_call", "id": i, "name": n, "arguments": a} for i, n, a in tools]
            said = {
                "gen_ai.operation.name": "chat", "gen_ai.request.model": "m",
                "gen_ai.input.messages": [{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in talk],
                "gen_ai.output.messages": [
                    {"role": "assistant", "parts": [{"type": "text", "content": text}, *(asked if index == 0 else [])], "finish_reason": "stop"}
                    for index, text in enumerate(answers)
                ],
            }  # fmt: skip
            if not answers:
                del said["gen_ai.output.messages"]
        else:
            said = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
            for role, text in talk:
                self.record(
                    f"gen_ai.{role}.message", {}, trace=trace, span=span_id, body={"role": role, "content": text}
                )
            for index, text in enumerate(answers):
                message: dict[str, Any] = {"role": "assistant", "content": text}
                if tools and index == 0:
                    message["tool_calls"] = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in tools]  # fmt: skip
                self.record("gen_ai.choice", {}, trace=trace, span=span_id, body={"index": index, "finish_reason": "stop", "message": message})  # fmt: skip
        return self.span(span_id, parent, said | (values or {}), **more)

    def reward(self, score: float, target: Target, *, name: str = "reward", trace: str | None = None, span: str | None = None,
               at: int | None = None, **values: Any) -> str:  # fmt: skip
        """A `gen_ai.evaluation.result` record; its explanation is unique, and `target` is what it must stand on."""
        marker = self._marker(target)
        said = {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.score.value": score,
            "gen_ai.evaluation.explanation": marker,
        }
        self.record("gen_ai.evaluation.result", said | values, trace=trace, span=span, at=at)
        return marker

    def event(self, score: float, target: Target, *, name: str = "reward") -> Span.Event:
        said = {
            "gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": score,
            "gen_ai.evaluation.explanation": self._marker(target),
        }  # fmt: skip
        return Span.Event(time_unix_nano=self.tick(), name="gen_ai.evaluation.result", attributes=pairs(said))

    def inline(
        self, score: float, target: Target, *, widen: str = "", kind: str = "annotation", name: str = "reward"
    ) -> dict[str, Any]:
        at = f"{widen}{kind}s.0.{kind}"
        return {f"{at}.name": name, f"{at}.score": score, f"{at}.explanation": self._marker(target)}

    def _marker(self, target: Target) -> str:
        self.rewards += 1
        marker = f"{self.episode.name}/{self.rewards}"
        self.episode.targets[marker] = target
        return marker

    def credited(self, credit: float | None, *spans: str, trace: str | None = None, choice: int = 0) -> None:
        for span in spans:
            self.episode.credits[trace or self.trace(), span, choice] = credit

    def ask(self) -> str:
        """A first user message that other episodes have too."""
        return self.rng.choice(PROMPTS)

    def score(self) -> float:
        return self.rng.choice([0.0, 0.1, 0.2, 0.3, 1.0, -0.7, 1e-7, 12345.678])


def plain(w: Writer) -> None:
    root, score = w.new_span(), w.score()
    calls = [w.call(root, w.ask() if n == 0 else f"step {n} of {w.number}") for n in range(w.rng.randrange(2, 9))]
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace(), None), trace=w.trace(), span=root)
    w.credited(score, *calls)


def failed_then_right(w: Writer) -> None:
    root, score = w.new_span(), w.score()
    failed = w.call(root, "try", None, error=True)
    call = w.call(root, "try")
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, call)
    w.credited(None, failed)


def cycle(w: Writer) -> None:
    """Spans that are each other's ancestors, a call among them."""
    length = w.rng.randrange(1, 6)
    ring = [w.new_span() for _ in range(length)]
    score = w.score()
    for n, span in enumerate(ring):
        parent = ring[(n + 1) % length]
        if n == 0:
            w.call(parent, w.ask(), span_id=span)
        else:
            w.span(span, parent, {"openinference.span.kind": w.rng.choice(["CHAIN", "AGENT", "TOOL"])})
    below = w.call(ring[0], "below the ring")
    w.reward(score, Target("call", w.trace(), below, 0), trace=w.trace(), span=below)


def deep(w: Writer) -> None:
    """A chain of hundreds of spans with a call at its end."""
    root = above = w.new_span()
    depth, score = w.rng.randrange(50, 300), w.score()
    for _ in range(depth):
        above = w.span(None, above, {"openinference.span.kind": w.rng.choice(["CHAIN", "AGENT", "UNKNOWN"])})
    call = w.call(above, w.ask())
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, call)


def wide(w: Writer) -> None:
    root, score = w.new_span(), w.score()
    for _ in range(w.rng.randrange(50, 200)):
        w.span(None, root, {"openinference.span.kind": w.rng.choice(["CHAIN", "TOOL"])})
    call = w.call(root, w.ask())
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, call)


def not_numbers(w: Writer) -> None:
    root = w.new_span()
    call = w.call(root, w.ask(), values={"gen_ai.request.temperature": float("nan"), "odd": float("-inf")})
    w.root(span_id=root)
    for score in (float("nan"), float("inf"), float("-inf"), 1e9):
        w.reward(score, Target(reason="refused_value"), trace=w.trace(), span=root)
    w.credited(None, call)


def times(w: Writer) -> None:
    """Calls without a start, without an end, backwards, in 1970, in 2100 and beyond 2⁶³."""
    root, score = w.new_span(), w.score()
    ended = w.tick()
    spans = [
        w.call(root, w.ask(), start=0, end=ended),
        w.call(root, "backwards", start=ended + 10**9, end=ended),
        w.call(root, "in 1970", start=1, end=2),
        w.call(root, "in 2100", start=YEAR_2100, end=YEAR_2100 + 1),
    ]
    if w.rng.random() < 0.5:
        spans.append(w.call(root, "beyond", start=2**63 + 5, end=2**64 - 1))
    w.root(span_id=root)
    # A clock ahead of everybody's never becomes quiet, so nothing here is ever credited.
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.episode.credits.update({(w.trace(), span, 0): None for span in spans})


def copies(w: Writer) -> None:
    """A span as it was exported while unfinished, then finished, then finished with another answer."""
    root, call, score = w.new_span(), w.new_span(), w.score()
    start, end = w.tick(), w.tick()
    w.call(root, w.ask(), None, span_id=call, start=start, end=0, convention="openinference")
    said = w.ask()
    w.call(root, said, "one", span_id=call, start=start, end=end, convention="openinference")
    if w.rng.random() < 0.5:
        w.call(root, said, "another", span_id=call, start=start, end=end, convention="openinference")
        w.credited(None, call)
    else:
        w.credited(score, call)
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)


def nasty_strings(w: Writer) -> None:
    """SQL, paths and worse in every string a sender controls."""
    pick = lambda: w.rng.choice(NASTY)  # noqa: E731
    w.resource |= {"service.name": pick(), pick() + str(w.number): pick()}
    root, score = w.new_span(), w.score()
    here = {
        "session.id": f"{pick()}{w.number}", "user.id": pick(), "lightning.task.id": pick(), "lightning.group.id": pick(),
        "lightning.policy.version": pick(), "llm.invocation_parameters": pick(), "output.value": pick(), "metadata": pick(),
        "gen_ai.response.finish_reasons": pick(), "gen_ai.tool.definitions": pick(), pick(): pick(), f"llm.tools.{pick()}": pick(),
        "llm.input_messages.x.message.role": "user", "gen_ai.agent.name": pick(),
    }  # fmt: skip
    call = w.call(root, [(w.rng.choice(["user", "developer", "model", pick()]), pick()), ("user", f"hello {w.number}")], pick() + "!",
                  values=here, name=pick(), scope=pick())  # fmt: skip
    tool = w.call(root, "t", "u", tools=[(f"{pick()}{w.number}", pick(), pick())], name=pick())
    w.span(
        None,
        root,
        {"openinference.span.kind": "TOOL", "tool.name": pick(), "input.value": pick(), "output.value": pick()},
        name=pick(),
    )
    w.root({"agent.name": pick()}, span_id=root, name=pick())
    w.reward(
        score,
        Target("trace", w.trace()),
        trace=w.trace(),
        span=root,
        **{"lightning.reward.source": pick(), "lightning.reward.identifier": pick()},
    )
    del call, tool


def session(w: Writer) -> None:
    """A conversation whose turns are traces of their own, rewarded as a session."""
    chat, score = f"chat-{w.number}", w.score()
    talk: list[tuple[str, str]] = [("user", w.ask())]
    convention = w.rng.choice(["openinference", "genai", "genai_events"])
    calls = []
    for turn in range(w.rng.randrange(2, 5)):
        root, trace = w.new_span(), w.trace(turn)
        answer = f"answer {turn} of {w.number}"
        calls.append(
            (trace, w.call(root, list(talk), answer, trace=trace, values={"session.id": chat}, convention=convention))
        )
        w.root({"session.id": chat}, span_id=root, trace=trace)
        talk += [("assistant", answer), ("user", f"more {turn}")]
    w.reward(score, Target("session"), **{"session.id": chat})
    for trace, call in calls:
        w.credited(score, call, trace=trace)


def linked(w: Writer) -> None:
    """Traces that link to the one before, and one that links to two."""
    score = w.score()
    roots = [w.new_span() for _ in range(3)]
    calls = []
    for nth, root in enumerate(roots):
        calls.append(w.call(root, w.ask() if nth == 0 else f"part {nth} of {w.number}", trace=w.trace(nth)))
        w.root(span_id=root, trace=w.trace(nth), links=[(w.trace(nth - 1), roots[nth - 1])] if nth else [])
    batch = w.new_span()
    w.call(batch, f"batch of {w.number}", trace=w.trace(7))
    w.root(span_id=batch, trace=w.trace(7), links=[(w.trace(0), roots[0]), (w.trace(1), roots[1])])
    w.reward(score, Target("trace", w.trace(0)), trace=w.trace(0), span=roots[0])
    for nth, call in enumerate(calls):
        w.credited(score, call, trace=w.trace(nth))


def late_feedback(w: Writer) -> None:
    root, response, rollout, score = w.new_span(), f"chatcmpl-{w.number}", f"rollout-{w.number}", w.score()
    named = {"lightning.rollout.id": rollout}
    a = w.call(root, w.ask(), values={**named, "gen_ai.response.id": response})
    b = w.call(root, "then", values=named)
    w.root(named, span_id=root)
    tomorrow = w.clock + 86_400 * 10**9
    w.reward(0.5, Target("call", w.trace(), a, 0), name="tone", at=tomorrow, **{"gen_ai.response.id": response})
    w.reward(score, Target("rollout"), at=tomorrow + 1, **named)
    w.reward(1.0, Target(reason="target_not_found"), at=tomorrow, **{"gen_ai.response.id": f"nobody-{w.number}"})
    w.credited(score, a, b)


def corrected(w: Writer) -> None:
    root = w.new_span()
    call = w.call(root, w.ask())
    w.root(span_id=root)
    scores = [w.score() for _ in range(w.rng.randrange(2, 5))]
    for score in scores:
        w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(scores[-1], call)


def tiny_rewards(w: Writer) -> None:
    """Sixteen episodes whose rewards a double forgets beside a large one, and remembers before it."""
    for nth in range(16):
        root = w.new_span()
        call = w.call(root, w.ask(), trace=w.trace(nth))
        w.root(span_id=root, trace=w.trace(nth))
        w.reward(0.000000007, Target("trace", w.trace(nth)), trace=w.trace(nth), span=root)
        w.credited(0.000000007, call, trace=w.trace(nth))


def many_rewards(w: Writer) -> None:
    """Rewards of one name that are added up: a large one and many so small that a double forgets them beside it."""
    root = w.new_span()
    call = w.call(root, w.ask())
    w.root(span_id=root)
    scores = [99999999.9] + [0.000000004] * 20
    for number, score in enumerate(scores):
        w.reward(
            score,
            Target("trace", w.trace()),
            name="many",
            trace=w.trace(),
            span=root,
            **{"lightning.reward.identifier": f"{number}"},
        )
    w.credited(99999999.90000008, call)


def about_nothing(w: Writer) -> None:
    """Rewards that say of nothing what they are about: each stands for itself, on nothing."""
    root = w.new_span()
    call = w.call(root, w.ask())
    w.root(span_id=root)
    for _ in range(2):
        w.reward(w.score(), Target(reason="target_not_found"))
    w.credited(None, call)


def undated(w: Writer) -> None:
    """A reward without a time of its own: only when it was seen is known."""
    root, score = w.new_span(), w.score()
    call = w.call(root, w.ask())
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root, at=0)
    w.credited(score, call)


def parallel_agents(w: Writer) -> None:
    root = w.new_span()
    begin = w.tick()
    agents = [w.new_span() for _ in range(w.rng.randrange(2, 5))]
    calls = {agent: w.call(agent, f"for {n}" if n else w.ask()) for n, agent in enumerate(agents)}
    for agent in agents:
        score = w.score()
        event = w.event(score, Target("span", w.trace(), agent))
        if w.rng.random() < 0.5:
            w.span(None, agent, events=[event])
            event = None
        w.span(
            agent,
            root,
            {"openinference.span.kind": "AGENT"},
            start=begin,
            name=f"agent {agent[-1]}",
            events=[event] if event else [],
        )
    w.root(span_id=root)
    w.credited(None, *calls.values())


def several_answers(w: Writer) -> None:
    root, score = w.new_span(), w.score()
    call = w.call(root, w.ask(), ["one", "two", "three"], convention=w.rng.choice(["openinference", "genai"]))
    w.root(span_id=root)
    w.reward(
        0.25,
        Target("call", w.trace(), call, 1),
        name="tone",
        trace=w.trace(),
        span=call,
        **{"lightning.target.choice": 1},
    )
    w.reward(0.5, Target("call", w.trace(), call, reason="ambiguous_choice"), name="tone", trace=w.trace(), span=call)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    for choice in range(3):
        w.credited(score, call, choice=choice)


def judged(w: Writer) -> None:
    root, judge, score = w.new_span(), w.new_span(), w.score()
    call = w.call(root, w.ask())
    grading = w.call(judge, "grade this", "good")
    w.span(judge, root, {"openinference.span.kind": w.rng.choice(["EVALUATOR", "GUARDRAIL"])})
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.reward(
        1.0, Target("call", w.trace(), grading, 0, reason="target_is_judge"), name="tone", trace=w.trace(), span=grading
    )
    w.credited(score, call)
    w.credited(None, grading)


def attempts(w: Writer) -> None:
    """Several attempts at one rollout id: the last one counts."""
    rollout, score = f"rollout-{w.number}", w.score()
    last = w.rng.randrange(2, 4)
    for attempt in range(1, last + 1):
        root, trace = w.new_span(), w.trace(attempt)
        named = {"lightning.rollout.id": rollout, "lightning.attempt": attempt}
        call = w.call(root, w.ask(), values=named, trace=trace)
        w.root(named, span_id=root, trace=trace)
        w.credited(score if attempt == last else None, call, trace=trace)
    w.reward(score, Target("rollout"), **{"lightning.rollout.id": rollout})


def served(w: Writer) -> None:
    """Token records of a model server beside the agent's spans, joined in three ways; sequences continue one another."""
    root, score = w.new_span(), w.score()
    talk: list[tuple[str, str]] = [("user", w.ask())]
    ids = [1, 2, 3]
    calls = []
    how = w.rng.choice(["response_id", "traceparent", "content"])
    for turn in range(w.rng.randrange(1, 4)):
        answer = f"answer {turn} of {w.number}"
        shared = {"gen_ai.response.id": f"chatcmpl-{w.number}-{turn}"} if how == "response_id" else {}
        call, begin = w.new_span(), w.tick()
        tokens = [10 + turn, 20 + w.number % 7, 3]
        record = {
            **shared, "lightning.capture": "serve", "lightning.prompt.token_ids": ids, "lightning.choice.0.token_ids": tokens,
            "lightning.choice.0.logprobs": [-0.5, -0.25, -0.125], "lightning.tokenizer": "t", "lightning.logprobs.mode": "sampling",
            "lightning.policy.version": f"v000{1 + w.number % 2}", "gen_ai.request.temperature": 1.0, "gen_ai.usage.output_tokens": 3,
        }  # fmt: skip
        parent = call if how == "traceparent" else None
        where = w.trace() if how == "traceparent" else w.trace(90 + turn)
        process, w.resource = w.resource, {"service.name": "serve", "service.instance.id": "server"}
        w.call(parent, list(talk), answer, values=record, convention="genai", trace=where)
        w.resource = process
        calls.append(
            w.call(root, list(talk), answer, values=shared, span_id=call, start=begin, convention="openinference")
        )
        talk += [("assistant", answer), ("user", f"more {turn}")]
        ids = [*ids, *tokens, 4 + turn]
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, *calls)


def doubles(w: Writer) -> None:
    """One call seen by two instrumentations: nested, beside each other, or under one response id in another trace."""
    root, score = w.new_span(), w.score()
    said, how = w.ask(), w.rng.choice(["nested", "beside", "two traces"])
    start, end = w.tick(), w.tick(50)
    if how == "nested":
        outer = w.call(root, said, "yes", start=start, end=end, convention="openinference")
        call = w.call(outer, said, "yes", start=start + 10, end=end - 10, scope="inner", convention="openinference")
    elif how == "beside":
        call = w.call(root, said, "yes", start=start, end=end, convention="openinference")
        w.call(root, said, "yes", start=start + 10, end=end - 10, scope="inner", convention="openinference")
    else:
        shared = {"gen_ai.response.id": f"chatcmpl-{w.number}"}
        call = w.call(root, said, "yes", start=start, end=end, values=shared)
        w.call(None, said, "yes", start=start + 10, end=end - 10, scope="inner", values=shared, trace=w.trace(5))
    w.root(span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, call)


def tools(w: Writer) -> None:
    """Two tools that one answer asks for at once, each rewarded, and the call that reads their results."""
    root, score = w.new_span(), w.score()
    asked = [(f"call_{w.number}_{n}", "lookup", '{"b": 1, "a": [2]}') for n in range(2)]
    call = w.call(root, w.ask(), "", tools=asked)
    executions = []
    for tool_id, name, arguments in asked:
        values = {
            "openinference.span.kind": "TOOL",
            "tool.name": name,
            "gen_ai.tool.call.id": tool_id,
            "input.value": arguments,
        }
        executions.append(w.span(None, root, values))
    last = w.call(root, "and so", "done")
    w.root(span_id=root)
    w.reward(0.25, Target("tool", w.trace(), executions[0]), name="tone", **{"gen_ai.tool.call.id": asked[0][0]})
    w.reward(0.75, Target("tool", w.trace(), executions[1]), name="tone", trace=w.trace(), span=executions[1])
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(score, call, last)


def orphans(w: Writer) -> None:
    lost, score = w.new_span(), w.score()
    calls = [w.call(lost, w.ask() if n == 0 else f"then {n}") for n in range(2)]
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=lost)
    w.credited(score, *calls)


def bare_calls(w: Writer) -> None:
    """Calls without anything around them, each continuing the one before."""
    talk: list[tuple[str, str]] = [("user", w.ask())]
    score = w.score()
    calls = []
    convention = w.rng.choice(["openinference", "genai", "genai_events"])
    for turn in range(3):
        answer = f"answer {turn} of {w.number}"
        calls.append(w.call(None, list(talk), answer, trace=w.trace(turn), convention=convention))
        talk += [("assistant", answer), ("user", f"more {turn} of {w.number}")]
    w.reward(score, Target("call", w.trace(1), calls[1], 0), trace=w.trace(1), span=calls[1])
    w.credited(None, *[calls[0]], trace=w.trace(0))


def inline(w: Writer) -> None:
    """Evaluations as attributes: of the span, of its trace, of its session; on a span of their own that links."""
    root, score = w.new_span(), w.score()
    call = w.call(root, w.ask(), values=w.inline(0.5, Target("call", w.trace(), w.number and None, 0), name="tone"))
    marker = f"{w.episode.name}/1"
    w.episode.targets[marker] = Target("call", w.trace(), call, 0)
    values = w.inline(
        score, Target("trace", w.trace()), widen="trace.", kind=w.rng.choice(["annotation", "evaluation"])
    )
    w.root(values, span_id=root)
    other = w.trace(9)
    w.span(None, None, w.inline(0.75, Target("call", w.trace(), call, 0), kind="evaluation", name="tone"), trace=other, links=[(w.trace(), call)])  # fmt: skip
    w.credited(score, call)


def reused_response_id(w: Writer) -> None:
    root, shared = w.new_span(), {"gen_ai.response.id": f"fixed-{w.number}"}
    calls = [w.call(root, f"{w.ask()} {n}", values=shared) for n in range(3)]
    w.root(span_id=root)
    w.reward(1.0, Target(reason="target_not_found"), name="tone", **shared)
    w.credited(None, *calls)


def announced(w: Writer) -> None:
    """A rollout that its driver announces, with a start that names the session, and an end."""
    rollout, chat, score = f"rollout-{w.number}", f"chat-{w.number}", w.score()
    start = {
        "lightning.rollout.id": rollout, "session.id": chat, "lightning.task.id": f"task-{w.number % 4}",
        "lightning.split": w.rng.choice(["train", "eval", "test"]), "lightning.group.id": f"group-{w.number % 3}",
    }  # fmt: skip
    w.record("lightning.rollout.start", start)
    root = w.new_span()
    call = w.call(root, w.ask(), values={"session.id": chat})
    w.root({"session.id": chat}, span_id=root)
    status = w.rng.choice(["finished", "error", "timeout"])
    w.record("lightning.rollout.end", {"lightning.rollout.id": rollout, "status": status})
    w.reward(score, Target("rollout"), **{"lightning.rollout.id": rollout})
    w.credited(None if status == "timeout" else score, call)


def two_names(w: Writer) -> None:
    """A trace whose calls name two rollouts, and one call that names none."""
    root = w.new_span()
    for name in "xy":
        w.call(root, f"{w.ask()} {name}", values={"lightning.rollout.id": f"{name}-{w.number}"})
    call = w.call(root, "whose am I")
    w.root(span_id=root)
    w.reward(1.0, Target("rollout"), **{"lightning.rollout.id": f"x-{w.number}"})
    w.credited(None, call)


def counted(w: Writer) -> None:
    """A process that says how many spans it ended; some never arrive."""
    root, score, short = w.new_span(), w.score(), w.rng.random() < 0.5
    call = w.call(root, w.ask(), values={"lightning.span.seq": 1})
    w.root({"lightning.span.count": 3 if short else 2, "lightning.span.seq": 0}, span_id=root)
    w.reward(score, Target("trace", w.trace()), trace=w.trace(), span=root)
    w.credited(None if short else score, call)


def anything(w: Writer) -> None:
    """A random graph of random spans and rewards: nothing is known of it but that it must come out alike each time."""
    rng = w.rng
    ids = [w.new_span() for _ in range(rng.randrange(2, 30))]
    near = w.clock
    kinds = ["CHAIN", "AGENT", "TOOL", "EVALUATOR", "GUARDRAIL", "RETRIEVER", "LLM"]
    for span in ids:
        start = rng.choice([0, near, near + rng.randrange(10**9), near - rng.randrange(10**9)])
        more: dict[str, Any] = {
            "parent": rng.choice([None, *ids, w.new_span()]), "trace": w.trace(rng.randrange(2)), "start": start,
            "end": rng.choice([0, start, start + rng.randrange(10**9)]), "error": rng.random() < 0.1,
            "scope": rng.choice(["one", "two"]), "name": rng.choice(NASTY), "dropped": rng.choice([0, 0, 0, 2]),
            "links": [(w.trace(rng.randrange(3)), rng.choice(ids)) for _ in range(rng.choice([0, 0, 1, 2]))],
        }  # fmt: skip
        values: dict[str, Any] = {}
        for key, choices in (
            ("session.id", (f"a{w.number}", f"b{w.number}")), ("lightning.rollout.id", (f"p{w.number}", f"q{w.number}")),
            ("gen_ai.response.id", (f"r{w.number}", f"s{w.number}")), ("lightning.span.seq", (1, 2, 3)), ("lightning.attempt", (1, 2)),
            ("lightning.capture", ("serve", "client")), ("gen_ai.tool.call.id", (f"t{w.number}", f"u{w.number}")),
        ):  # fmt: skip
            if rng.random() < 0.12:
                values[key] = rng.choice(choices)
        if rng.random() < 0.5:
            talk = [
                (rng.choice(["user", "assistant", "system"]), rng.choice(["hi", "yes", "no"]))
                for _ in range(rng.randrange(1, 5))
            ]
            w.call(
                more.pop("parent"),
                talk,
                rng.choice([None, "yes", "no", ["yes", "no"]]),
                values=values,
                span_id=span,
                **more,
            )
        else:
            w.span(span, more.pop("parent"), {"openinference.span.kind": rng.choice(kinds), **values}, **more)
    for _ in range(rng.randrange(4)):
        where = {"trace": w.trace(rng.randrange(3)), "span": rng.choice(ids)} if rng.random() < 0.6 else {}
        marker = w.reward(w.score(), Target(), name=rng.choice(["reward", "tone"]), **where, **rng.choice([
            {}, {"session.id": f"a{w.number}"}, {"lightning.rollout.id": f"p{w.number}"}, {"gen_ai.response.id": f"r{w.number}"},
            {"lightning.target.trace_id": w.trace(0), "lightning.target.span_id": rng.choice(ids)},
        ]))  # fmt: skip
        del w.episode.targets[marker]


KINDS: tuple[Callable[[Writer], None], ...] = (
    plain, failed_then_right, cycle, deep, wide, not_numbers, times, copies, nasty_strings, session, linked, late_feedback,
    corrected, tiny_rewards, many_rewards, about_nothing, undated, parallel_agents, several_answers, judged, attempts, served, doubles, tools, orphans, bare_calls, inline,
    reused_response_id, announced, two_names, counted, anything, anything,
)  # fmt: skip


def generated(
    count: int, seed: int, kinds: tuple[Callable[[Writer], None], ...] = KINDS, first: int = 0
) -> list[Episode]:
    """`count` episodes, every kind in turn, numbered from `first`."""
    episodes = []
    for number in range(first, first + count):
        kind = kinds[number % len(kinds)]
        writer = Writer(kind.__name__, number, random.Random(f"{seed}/{number}"))
        kind(writer)
        episodes.append(writer.episode)
    return episodes
