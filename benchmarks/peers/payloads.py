"""Trace requests made before the clock starts, and given fresh ids each time they are sent.

    mixed   whole agent episodes: an agent, model calls that repeat their history, tools; about 38 attributes, 4.5 KB
    small   spans of 13 short attributes, about 0.5 KB

Words follow Zipf's law, so that compression finds about as much as in text; a seed decides everything.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPANS_PER_REQUEST = 100
PREPARED = 64
SALT = b"\xa5\x5a\xc3\x3c"  # where each id begins; replaced by a number that no other request has
TURNS = 24

_WORDS = [f"{random.Random(n).choice(('ka', 'le', 'mo', 'ri', 'su', 'ten'))}{n:x}" for n in range(5000)]
_CUMULATED = list(itertools.accumulate(1 / (n + 1) for n in range(len(_WORDS))))


class Body:
    """One prepared request; `fresh` renews every trace and span id in place."""

    def __init__(self, request: ExportTraceServiceRequest) -> None:
        self._data = bytearray(request.SerializeToString())
        self._at: list[int] = []
        at = self._data.find(SALT)
        while at >= 0:
            self._at.append(at)
            at = self._data.find(SALT, at + 4)

    def __len__(self) -> int:
        return len(self._data)

    def fresh(self, number: int) -> bytearray:
        """The bytes to send, with ids that only `number` has. One sender at a time uses a Body."""
        data, salt = self._data, number.to_bytes(4, "big")
        for at in self._at:
            data[at : at + 4] = salt
        return data


def requests(payload: str, resource: dict[str, str], seed: int = 0) -> list[Body]:
    """PREPARED requests of SPANS_PER_REQUEST spans each, `resource` among their resource attributes."""
    chance = random.Random(seed)
    spans = {"mixed": _mixed, "small": _small}[payload](chance)
    bodies = []
    for _ in range(PREPARED):
        request = ExportTraceServiceRequest()
        of = request.resource_spans.add()
        for key, value in {"service.name": "bench", "service.instance.id": "bench-1", **resource}.items():
            of.resource.attributes.add(key=key).value.string_value = value
        scope = of.scope_spans.add()
        scope.scope.name, scope.scope.version = "openinference.instrumentation.openai", "0.1.40"
        scope.spans.extend(next(spans) for _ in range(SPANS_PER_REQUEST))
        bodies.append(Body(request))
    return bodies


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, cum_weights=_CUMULATED, k=words))


def _span(chance: random.Random, trace: int, number: int, parent: int, name: str, **attributes: Any) -> Any:
    span = ExportTraceServiceRequest().resource_spans.add().scope_spans.add().spans.add()
    span.trace_id = SALT + trace.to_bytes(12, "big")
    span.span_id = SALT + number.to_bytes(4, "big")
    if parent:
        span.parent_span_id = SALT + parent.to_bytes(4, "big")
    span.name, span.kind = name, 1
    span.start_time_unix_nano = 1_795_000_000_000_000_000 + number * 1_000_000
    span.end_time_unix_nano = span.start_time_unix_nano + chance.randrange(10**8)
    span.status.code = 1
    for key, value in attributes.items():
        kind = {str: "string_value", int: "int_value", float: "double_value", bool: "bool_value"}[type(value)]
        setattr(span.attributes.add(key=key.replace("__", ".")).value, kind, value)
    return span


def _mixed(chance: random.Random) -> Iterator[Any]:
    number = 0
    trace = 0
    while True:
        trace += 1
        number += 1
        root, session = number, f"session-{trace}"
        task = _text(chance, 40)
        kind = {"session.id": session, "user.id": f"user-{trace % 500}"}
        yield _span(chance, trace, root, 0, "agent", openinference__span__kind="AGENT", input__value=task, **kind)
        history = [("system", _text(chance, 60)), ("user", task)]
        for _turn in range(TURNS):
            number += 1
            answer = _text(chance, 30)
            call: dict[str, Any] = {"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini", **kind}
            for index, (role, content) in enumerate(history):
                call[f"llm.input_messages.{index}.message.role"] = role
                call[f"llm.input_messages.{index}.message.content"] = content
            call["llm.output_messages.0.message.role"] = "assistant"
            call["llm.output_messages.0.message.content"] = answer
            stem = "llm.output_messages.0.message.tool_calls.0.tool_call"
            call[f"{stem}.id"], call[f"{stem}.function.name"] = f"call_{number}", "search"
            call[f"{stem}.function.arguments"] = '{"query": "' + _text(chance, 6) + '"}'
            call["llm.invocation_parameters"] = '{"temperature": 0.7, "max_tokens": 512}'
            call["input.value"] = (
                '{"messages": ' + str(len(history)) + ', "text": "' + " ".join(t for _, t in history)[:1500] + '"}'
            )
            call["output.value"] = answer
            call["gen_ai.request.temperature"] = 0.7
            for index, name in enumerate(("prompt", "completion", "total")):
                call[f"llm.token_count.{name}"] = 100 + number % 900 + index
            call["gen_ai.operation.name"], call["gen_ai.request.model"] = "chat", "gpt-4o-mini"
            call["gen_ai.usage.input_tokens"], call["gen_ai.usage.output_tokens"] = 100 + number % 900, 30
            call["gen_ai.response.id"], call["llm.is_streaming"] = f"chatcmpl-{trace}-{number}", False
            yield _span(chance, trace, number, root, "ChatCompletion", **call)
            number += 1
            found = _text(chance, 30)
            yield _span(
                chance, trace, number, root, "search", openinference__span__kind="TOOL", tool__name="search",
                input__value=call[f"{stem}.function.arguments"], output__value=found, **kind,
            )  # fmt: skip
            history += [("assistant", answer), ("tool", found)]


def _small(chance: random.Random) -> Iterator[Any]:
    number = 0
    while True:
        number += 1
        texts = {f"app.key.{n}": f"a value of {chance.randrange(1000)}" for n in range(8)}
        numbers = {f"app.count.{n}": chance.randrange(10**6) for n in range(5)}
        yield _span(chance, number // 10 + 1, number, number - number % 10, "step", **texts, **numbers)
