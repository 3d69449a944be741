"""A lake of LLM traces for the transform's benchmark: real captures, replayed with fresh ids, times and text.

Every trace of the captures under tests/fixtures/otlp is a unit: all that was said in it is widened until its spans carry
TEXT_BYTES each on average, and what an instance must have of its own (trace and span ids, response and tool call ids,
sessions, processes, times, texts) is filled into the serialised bytes in place. Units of one capture make an episode; the
conventions take turns, and so do the captures of one, so each convention has an equal share of the episodes. The lake is written
by the collector's own ingest.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "otlp"
LEFT_OUT = ("limits",)  # captures of lost data
TEXT_BYTES = 8192
SHORTEST_TEXT, LONGEST_TEXT = 200, 12_000
PROMPT_TOKENS, ANSWER_TOKENS = 512, 128
TRACE, ROOT, OTHER = b"\xa1" * 15 + b"\x01", b"\xb2" * 7 + b"\x01", b"\xa1" * 15 + b"\x02"
IDS = re.compile(r"\b(?:chatcmpl|resp|call|msg|cmpl|toolu|run|thread)[-_][A-Za-z0-9]{6,}|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")  # fmt: skip
OWN_NAMES = ("session.id", "gen_ai.conversation.id", "user.id", "service.instance.id")
RECORDS = ("gen_ai.choice", "gen_ai.user.message", "gen_ai.system.message")
ROLLOUT_NAMES = ("agentlightning.rollout_id", "agentlightning.attempt_id")
COUNTS = (
    "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion", "ai.usage.outputTokens",
    "ai.usage.completionTokens",
)  # fmt: skip
HEX = b"0123456789abcdef"


@dataclass
class Unit:
    """One trace of a capture as serialised requests, and where in them an instance's own values go."""

    capture: str
    convention: str
    spans: int
    llm_spans: int
    bodies: dict[str, bytearray] = field(default_factory=dict)
    traces: dict[str, list[int]] = field(default_factory=dict)
    roots: dict[str, list[int]] = field(default_factory=dict)
    span_ids: list[dict[str, list[int]]] = field(default_factory=list)
    names: list[tuple[int, dict[str, list[int]]]] = field(default_factory=list)  # hex digits to fill in
    rollouts: list[tuple[int, dict[str, list[int]]]] = field(
        default_factory=list
    )  # the same, alike all over an episode
    texts: list[tuple[int, dict[str, list[int]]]] = field(default_factory=list)
    times: list[tuple[int, dict[str, list[int]]]] = field(default_factory=list)
    lasts_nano: int = 0

    def places(self, what: bytes) -> dict[str, list[int]]:
        """Where the bodies hold `what`, by signal."""
        found: dict[str, list[int]] = {}
        for signal, body in self.bodies.items():
            at = body.find(what)
            while at >= 0:
                found.setdefault(signal, []).append(at)
                at = body.find(what, at + len(what))
        return found


class Text:
    """Fresh text by the slice: random words, more of some than of others."""

    def __init__(self, chance: random.Random, size: int = 24 << 20) -> None:
        letters = "etaoinshrdlcumwfgypbvk"
        words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(20_000)]
        weights = [1 / (rank + 10) for rank in range(len(words))]
        self._corpus = " ".join(chance.choices(words, weights=weights, k=size // 6)).encode()
        self._chance = chance

    def slice(self, length: int) -> bytes:
        at = int(self._chance.random() * (len(self._corpus) - length))
        return self._corpus[at : at + length]


def units(tokens: bool, text_bytes: int, chance: random.Random) -> dict[str, list[Unit]]:
    """Every usable trace of every capture, by capture."""
    found: dict[str, list[Unit]] = {}
    for folder in sorted(path.parent for path in FIXTURES.glob("*/*/server_requests.jsonl")):
        if folder.parent.name in LEFT_OUT:
            continue
        name = folder.relative_to(FIXTURES).as_posix()
        made = _units_of(folder, name, tokens, text_bytes, chance)
        if made:
            found[name] = made
    return found


def _units_of(folder: Path, name: str, tokens: bool, text_bytes: int, chance: random.Random) -> list[Unit]:
    traces, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    for path in sorted(folder.glob("*-traces.pb")):
        traces.MergeFromString(path.read_bytes())
    for path in sorted(folder.glob("*-logs.pb")):
        logs.MergeFromString(path.read_bytes())
    said = _said(folder / "server_requests.jsonl")
    ids = {span.trace_id for rs in traces.resource_spans for ss in rs.scope_spans for span in ss.spans}
    made = []
    for trace_id in sorted(ids):
        own, own_logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
        own.CopyFrom(traces)
        own_logs.CopyFrom(logs)
        _keep(own.resource_spans, "scope_spans", "spans", trace_id)
        _keep(own_logs.resource_logs, "scope_logs", "log_records", trace_id)
        unit = _unit(name, own, own_logs, said, tokens, text_bytes, chance)
        if unit is not None:
            made.append(unit)
    return made


def _keep(resources: Any, scopes: str, rows: str, trace_id: bytes) -> None:
    for resource in resources:
        for scope in getattr(resource, scopes):
            kept = [row for row in getattr(scope, rows) if row.trace_id == trace_id]
            del getattr(scope, rows)[:]
            getattr(scope, rows).extend(kept)


def _said(path: Path) -> list[str]:
    """Every text of some length that the model server heard or said, the longest first."""
    texts: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key in ("content", "text", "input", "instructions", "output") and isinstance(item, str):
                    texts.add(item)
                elif key not in ("tools", "headers"):
                    walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for line in path.read_text().splitlines():
        walk(json.loads(line))
    return sorted((text for text in texts if len(text) >= 10), key=lambda text: (-len(text), text))


def _strings(request: Any) -> Iterator[Any]:
    """Every AnyValue that holds a string, wherever it is nested."""

    def of(value: Any) -> Iterator[Any]:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            yield value
        elif kind == "array_value":
            for item in value.array_value.values:
                yield from of(item)
        elif kind == "kvlist_value":
            for item in value.kvlist_value.values:
                yield from of(item.value)

    resources = request.resource_spans if hasattr(request, "resource_spans") else request.resource_logs
    for resource in resources:
        for attribute in resource.resource.attributes:
            yield from of(attribute.value)
        scopes = resource.scope_spans if hasattr(resource, "scope_spans") else resource.scope_logs
        for scope in scopes:
            for row in scope.spans if hasattr(scope, "spans") else scope.log_records:
                for attribute in row.attributes:
                    yield from of(attribute.value)
                if hasattr(row, "body"):
                    yield from of(row.body)
                for event in getattr(row, "events", ()):
                    for attribute in event.attributes:
                        yield from of(attribute.value)


def _rows(request: Any) -> list[Any]:
    if hasattr(request, "resource_spans"):
        return [span for rs in request.resource_spans for ss in rs.scope_spans for span in ss.spans]
    return [record for rl in request.resource_logs for sl in rl.scope_logs for record in sl.log_records]


def _forms(text: str) -> list[str]:
    """A text as it stands in attributes: plain, within JSON, within JSON within JSON."""
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    ascii_once = json.dumps(text)[1:-1]
    return list(dict.fromkeys([json.dumps(once, ensure_ascii=False)[1:-1], json.dumps(ascii_once)[1:-1], once, ascii_once, text]))  # fmt: skip


def _speaks(span: Any, logged: set[bytes]) -> str | None:
    """The convention that an LLM span of a capture speaks; None for a span that is none. `logged`: spans with records of messages."""
    values = {a.key: a.value.string_value for a in span.attributes}
    chat = values.get("gen_ai.operation.name") in ("chat", "text_completion", "generate_content")
    if "ai.operationId" in values:
        return "vercel" if values["ai.operationId"].endswith((".doGenerate", ".doStream")) else None
    if "langfuse.observation.type" in values:
        return "langfuse" if values["langfuse.observation.type"] == "generation" else None
    if "langsmith.span.kind" in values:
        return "langsmith" if values["langsmith.span.kind"] == "llm" else None
    if "openinference.span.kind" in values:
        return "openinference" if values["openinference.span.kind"] == "LLM" else None
    if "gen_ai.request.type" in values or "agentops.span.kind" in values:
        return "agentops" if values.get("gen_ai.request.type") in ("chat", "completion") else None
    if "llm.request.type" in values or "traceloop.span.kind" in values:
        return "openllmetry" if "llm.request.type" in values or chat else None
    if not chat:
        return None
    if "events" in values:
        return "pydantic_ai"
    return "genai_events" if span.span_id in logged else "genai"


def _unit(
    capture: str, spans: Any, logs: Any, said: list[str], tokens: bool, text_bytes: int, chance: random.Random
) -> Unit | None:
    rows, records = _rows(spans), _rows(logs)
    logged = {
        record.span_id
        for record in records
        if record.event_name in RECORDS or "event.name" in {a.key for a in record.attributes}
    }
    spoken = {row.span_id: _speaks(row, logged) for row in rows}
    llm = [row for row in rows if spoken[row.span_id]]
    if not llm:
        return None
    unit = Unit(capture, Counter(filter(None, spoken.values())).most_common(1)[0][0], len(rows), len(llm))
    known = {row.span_id for row in rows}
    span_ids = sorted(known)
    for row in rows:
        row.trace_id = TRACE
        if row.parent_span_id not in known:
            row.parent_span_id = ROOT
        for link in row.links:
            link.trace_id = TRACE
    for record in records:
        record.trace_id = TRACE
    if tokens:
        for row in llm:
            _add_tokens(row, chance)
    # What was said becomes a place to fill: once for how often each text occurs, then as long as that allows.
    texts = [text for text in said if any(form in value.string_value for r in (spans, logs) for value in _strings(r) for form in _forms(text))]  # fmt: skip
    short = {text: f"\u0001{number:04d}\u0002" for number, text in enumerate(texts)}
    for request in (spans, logs):
        for value in _strings(request):
            for text in texts:
                for form in _forms(text):
                    value.string_value = value.string_value.replace(form, short[text])
    joined = "\u0003".join(value.string_value for r in (spans, logs) for value in _strings(r))
    occurrences = sum(joined.count(mark) for mark in short.values())
    fixed = len(joined) - 6 * occurrences
    if not occurrences:
        return None
    length = min(LONGEST_TEXT, max(SHORTEST_TEXT, (text_bytes * len(rows) - fixed) // occurrences))
    marks = {}
    for number, text in enumerate(texts):
        marks[short[text]] = (f"Q{number:04d}Z" + "".join(chance.choices("qxzjvk", k=30))).ljust(length, "#")
    names: dict[str, str] = {}
    own_names = {
        attribute.value.string_value
        for request in (spans, logs)
        for resource in (request.resource_spans if hasattr(request, "resource_spans") else request.resource_logs)
        for holder in (resource.resource, *(_rows(request)))
        for attribute in holder.attributes
        if (attribute.key in OWN_NAMES or attribute.key.lower().endswith(("session_id", "sessionid", "thread_id")))
        and len(attribute.value.string_value) >= 4
    }
    rollouts = {
        attribute.value.string_value
        for request in (spans, logs)
        for resource in (request.resource_spans if hasattr(request, "resource_spans") else request.resource_logs)
        for holder in (resource.resource, *(_rows(request)))
        for attribute in holder.attributes
        if attribute.key in ROLLOUT_NAMES and len(attribute.value.string_value) >= 4
    }
    # Names of rollouts are as long as each other: the units of an episode share one.
    names |= {name: "".join(chance.choices("0123456789abcdef", k=32)) for name in sorted(rollouts)}
    found = sorted({*IDS.findall(joined), *own_names, *rollouts}, key=lambda text: (-len(text), text))
    for request in (spans, logs):
        for value in _strings(request):
            text = value.string_value
            for name in found:
                if name in text:
                    text = text.replace(name, _hex(names, name, chance))
            for mark, place in marks.items():
                text = text.replace(mark, place)
            value.string_value = text
    times = sorted({t for row in rows for t in (row.start_time_unix_nano, row.end_time_unix_nano)} | {e.time_unix_nano for row in rows for e in row.events} | {t for r in records for t in (r.time_unix_nano, r.observed_time_unix_nano)} - {0})  # fmt: skip
    first = min(t for t in times if t)
    unit.lasts_nano = max(times) - first
    unit.bodies = {"spans": bytearray(spans.SerializeToString())}
    if records:
        unit.bodies["events"] = bytearray(logs.SerializeToString())
    unit.traces, unit.roots = unit.places(TRACE), unit.places(ROOT)
    unit.span_ids = [unit.places(span_id) for span_id in span_ids]
    unit.names = [(len(put), unit.places(put.encode())) for name, put in names.items() if name not in rollouts]
    unit.rollouts = [(len(put), unit.places(put.encode())) for name, put in names.items() if name in rollouts]
    unit.texts = [(length, unit.places(place.encode())) for place in marks.values()]
    unit.times = [(t - first, unit.places(struct.pack("<Q", t))) for t in times if t]
    return unit


def _hex(names: dict[str, str], name: str, chance: random.Random) -> str:
    if name not in names:
        names[name] = "".join(chance.choices("0123456789abcdef", k=len(name)))
    return names[name]


def _add_tokens(span: Any, chance: random.Random) -> None:
    """Exact ids and log-probabilities on a call, as the token capture of an agent writes them."""
    for key, count in (("lightning.prompt.token_ids", PROMPT_TOKENS), ("lightning.choice.0.token_ids", ANSWER_TOKENS)):
        values = span.attributes.add(key=key).value.array_value.values
        for _ in range(count):
            values.add(int_value=chance.randrange(50_000))
    values = span.attributes.add(key="lightning.choice.0.logprobs").value.array_value.values
    for _ in range(ANSWER_TOKENS):
        values.add(double_value=-chance.random())
    span.attributes.add(key="lightning.tokenizer").value.string_value = "5f" * 32
    span.attributes.add(key="lightning.policy.version").value.string_value = "v0001"
    for attribute in span.attributes:
        if attribute.key in COUNTS:
            attribute.value.int_value = ANSWER_TOKENS
        elif attribute.key == "langfuse.observation.usage_details":
            counts = json.loads(attribute.value.string_value)
            counts |= {key: ANSWER_TOKENS for key in ("output", "completion_tokens") if key in counts}
            attribute.value.string_value = json.dumps(counts)


@dataclass
class Episode:
    """What one rollout put into the requests: its traces, spans, LLM spans."""

    traces: list[bytes]
    spans: int
    llm_spans: int
    capture: str
    convention: str
    root_span: bytes


class Maker:
    """Episodes without end, from a seed."""

    def __init__(self, spans_a_trace: int, seed: int, begin_unix_nano: int, text_bytes: int = TEXT_BYTES) -> None:
        self._chance = random.Random(seed)
        self._text = Text(self._chance)
        self._spans_a_trace = spans_a_trace
        with_tokens, without = units(True, text_bytes, self._chance), units(False, text_bytes, self._chance)
        self.captures = sorted(with_tokens)
        # A capture belongs to the convention that most of its traces speak.
        spoken = {
            name: Counter(unit.convention for unit in with_tokens[name]).most_common(1)[0][0] for name in self.captures
        }
        self.conventions = sorted(set(spoken.values()))
        self._turns = cycle(
            [
                (
                    convention,
                    cycle(
                        [
                            (name, pool[name])
                            for name in self.captures
                            if spoken[name] == convention
                            for pool in (with_tokens, without)
                        ]
                    ),
                )
                for convention in self.conventions
            ]
        )
        self._number = 0
        self._clock = begin_unix_nano

    def episode(
        self, traces: bytearray, logs: bytearray, *, of: list[bytes] | None = None, only: int | None = None
    ) -> Episode:
        """Append one rollout's spans and log records to two requests; one in ten lies over two traces.

        With `of` the spans go to traces that exist (late spans), at most `only` units of them.
        """
        chance = self._chance
        self._number += 1
        convention, captures = next(self._turns)
        capture, pool = next(captures)
        two = self._number % 10 == 0 and of is None
        ids = of or [chance.randbytes(16) for _ in range(1 + two)]
        roots = [chance.randbytes(8) for _ in ids]
        made = Episode(ids, 0, 0, capture, convention, roots[0])
        began = self._clock
        turn, goal = chance.randrange(len(pool)), self._spans_a_trace * len(ids)
        placed = which = 0
        while (made.spans < goal - len(ids) or (two and not which)) and (only is None or placed < only):
            unit = pool[turn % len(pool)]
            turn += 1
            which = 1 if two and placed and made.spans >= goal // 2 else 0
            placed += 1
            self._fill(unit, ids[which], roots[which], ids[0], traces, logs)
            made.spans += unit.spans
            made.llm_spans += unit.llm_spans
        if of is None:
            for number, (trace, root) in enumerate(zip(ids, roots, strict=True)):
                traces += _root(trace, root, began, self._clock, ids[0] if number else None, roots[0])
            made.spans += len(ids)
            logs += reward(self._clock, (self._number % 5) / 4, trace_id=ids[0], span_id=roots[0])
        return made

    def _fill(self, unit: Unit, trace: bytes, root: bytes, first: bytes, traces: bytearray, logs: bytearray) -> None:
        bodies, chance = unit.bodies, self._chance

        def put(places: dict[str, list[int]], value: bytes) -> None:
            size = len(value)
            for signal, found in places.items():
                body = bodies[signal]
                for at in found:
                    body[at : at + size] = value

        put(unit.traces, trace)
        put(unit.roots, root)
        for places in unit.span_ids:
            put(places, chance.randbytes(8))
        for length, places in unit.names:
            put(places, chance.randbytes((length + 1) // 2).hex()[:length].encode())
        for length, places in unit.rollouts:
            put(places, first.hex()[:length].encode())
        for length, places in unit.texts:
            put(places, self._text.slice(length))
        for offset, places in unit.times:
            put(places, struct.pack("<Q", self._clock + offset))
        self._clock += unit.lasts_nano + 1_000_000
        traces += bodies["spans"]
        if "events" in bodies:
            logs += bodies["events"]


def _root(trace: bytes, span_id: bytes, start: int, end: int, linked: bytes | None, linked_span: bytes) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "bench"
    span = resource.scope_spans.add().spans.add(
        trace_id=trace, span_id=span_id, name="episode", start_time_unix_nano=start, end_time_unix_nano=end
    )
    if linked:
        span.links.add(trace_id=linked, span_id=linked_span)
    return request.SerializeToString()


def reward(at: int, value: float, *, trace_id: bytes = b"", span_id: bytes = b"", name: str = "reward") -> bytes:
    """One evaluation as a log record in the context of a span."""
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add()
        .scope_logs.add()
        .log_records.add(time_unix_nano=at, trace_id=trace_id, span_id=span_id, event_name="gen_ai.evaluation.result")
    )
    record.attributes.add(key="gen_ai.evaluation.name").value.string_value = name
    record.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = value
    return request.SerializeToString()


class Writer:
    """The collector's own durable path: log, fsync, Parquet, manifest."""

    REQUEST_BYTES = 2 << 20

    def __init__(self, lake: Path) -> None:
        from otel_lightning.collector.ingest import Ingest, Limits
        from otel_lightning.collector.parquet import ParquetConverter
        from otel_lightning.store.fs import RealDisk
        from otel_lightning.store.lake import Lake

        os.makedirs(lake, exist_ok=True)
        self._ingest = Ingest(RealDisk, Lake(lake), ParquetConverter(), Limits(roll_s=3600))
        self.traces, self.logs = bytearray(), bytearray()
        self._waiting: list[tuple[Any, Any]] = []

    def offer(self, force: bool = False) -> None:
        """Send what has gathered, if it is enough for a request."""
        from otel_lightning.collector.check import check_protobuf

        for signal, body in (("spans", self.traces), ("events", self.logs)):
            if len(body) > (0 if force else self.REQUEST_BYTES):
                accepted = check_protobuf(signal, bytes(body))
                body.clear()
                self._submit(accepted)
        while len(self._waiting) > 64:
            self._settle()

    def _submit(self, accepted: Any) -> None:
        from otel_lightning.app.errors import BusyError

        while True:
            try:
                self._waiting.append((accepted, self._ingest.submit(accepted)))
                return
            except BusyError:
                if self._waiting:
                    self._settle()
                else:
                    time.sleep(0.05)

    def _settle(self) -> None:
        """Wait for the oldest request; a sender sends again what was too much for now."""
        from otel_lightning.app.errors import BusyError

        accepted, future = self._waiting.pop(0)
        try:
            future.result(120)
        except BusyError:
            time.sleep(0.05)
            self._submit(accepted)

    def close(self) -> None:
        """Everything is Parquet afterwards."""
        self.offer(force=True)
        while self._waiting:
            self._settle()
        if not self._ingest.close():
            raise SystemExit("transform: the lake was not written whole; nothing was measured")
