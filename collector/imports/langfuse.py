"""Langfuse exports: what the page downloads (a trace with its observations and scores), what the API answers, and what
the blob storage integration writes (traces, observations, observations_v2, scores as JSON or JSONL).

    generation       a `chat` span with gen_ai.* attributes, messages in the form of the GenAI conventions
    agent, tool      `invoke_agent`, `execute_tool`
    anything else    a chain with its input and output
    score            gen_ai.evaluation.result on its observation, trace or session

Several observations without a parent get the trace as their root. Field names are read in both spellings, traceId and
trace_id. Written from Langfuse's documented format; no server of theirs was run against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_lightning.collector.imports.build import Piece, Requests, span_id, trace_id, unix_nano
from otel_lightning.collector.imports.source import Skipped, records

SCOPE = "langfuse"
OPERATIONS = {"generation": "chat", "agent": "invoke_agent", "tool": "execute_tool", "embedding": "embeddings"}
PARAMETERS = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "topP": ("top_p", float),
    "max_tokens": ("max_tokens", int),
    "maxTokens": ("max_tokens", int),
    "max_completion_tokens": ("max_tokens", int),
    "seed": ("seed", int),
}


@dataclass
class _Trace:
    """What the observations of a trace share."""

    name: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    environment: str | None = None
    start_unix_nano: int = 0
    end_unix_nano: int = 0
    parentless: int = 0
    input: Any = None
    output: Any = None


def is_langfuse(record: Mapping[str, Any]) -> bool:
    """Whether a record is a trace, an observation or a score of Langfuse, or a trace with all of its own."""
    return isinstance(record.get("observations"), list) or _kind(record) is not None


class Langfuse:
    """Reads several files that belong together: observations of one may have their trace in another."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._traces: dict[str, _Trace] = {}
        for path in paths:
            for kind, record in self._records(path, Skipped()):
                if kind == "trace":
                    self._note_trace(record)
                elif kind == "observation":
                    self._note_observation(record)

    def pieces(self, path: Path, skipped: Skipped) -> Iterator[Piece]:
        """One file's spans and scores."""
        requests = Requests(SCOPE)
        for kind, record in self._records(path, skipped):
            if kind == "observation":
                self._observation(requests, record)
            elif kind == "score":
                self._score(requests, record, skipped)
            else:
                self._root(requests, record)
            yield from requests.take()
        yield from requests.take(last=True)

    def _records(self, path: Path, skipped: Skipped) -> Iterator[tuple[str, dict[str, Any]]]:
        """Traces, observations and scores, taken out of each other."""
        for record in records(path, skipped):
            outer = record.get("trace")
            trace = outer if isinstance(outer, dict) else record
            observations = record.get("observations") or trace.get("observations")
            inner = observations if isinstance(observations, list) else []
            if inner and isinstance(inner[0], dict):
                yield "trace", trace
                for item in inner:
                    yield "observation", {"traceId": trace.get("id"), **item}
                for item in record.get("scores") or trace.get("scores") or ():
                    if isinstance(item, dict):
                        yield "score", {"traceId": trace.get("id"), **item}
                continue
            kind = _kind(record)
            if kind is None:
                skipped.count("records that are neither trace, observation nor score")
            else:
                yield kind, record

    def _note_trace(self, record: dict[str, Any]) -> None:
        trace = self._traces.setdefault(str(record.get("id")), _Trace())
        trace.name = record.get("name")
        trace.session_id, trace.user_id = _get(record, "sessionId"), _get(record, "userId")
        trace.environment = record.get("environment")
        trace.input, trace.output = record.get("input"), record.get("output")
        trace.start_unix_nano = trace.start_unix_nano or unix_nano(record.get("timestamp"))

    def _note_observation(self, record: dict[str, Any]) -> None:
        trace = self._traces.setdefault(str(_get(record, "traceId")), _Trace())
        trace.session_id = trace.session_id or _get(record, "sessionId")
        trace.user_id = trace.user_id or _get(record, "userId")
        start, end = unix_nano(_get(record, "startTime")), unix_nano(_get(record, "endTime"))
        trace.start_unix_nano = min(trace.start_unix_nano or start, start or trace.start_unix_nano)
        trace.end_unix_nano = max(trace.end_unix_nano, end, start)
        trace.parentless += not _get(record, "parentObservationId")

    def _root(self, requests: Requests, record: dict[str, Any]) -> None:
        """The trace itself as a span, where its observations have no root of their own."""
        identity = str(record.get("id"))
        trace = self._traces[identity]
        if trace.parentless == 1:
            return
        requests.span(
            trace_id(identity),
            _root_id(identity),
            None,
            str(trace.name or "trace"),
            trace.start_unix_nano,
            max(trace.end_unix_nano, trace.start_unix_nano),
            {"openinference.span.kind": "CHAIN", **_texts(trace.input, trace.output), **_shared(trace)},
        )

    def _observation(self, requests: Requests, record: dict[str, Any]) -> None:
        identity = str(_get(record, "traceId"))
        trace = self._traces[identity]
        parent = _get(record, "parentObservationId")
        parent_id = span_id(str(parent)) if parent else None
        # A root of its own stands for the trace, unless the trace has to stand for several.
        if parent_id is None and trace.parentless > 1 and trace.name is not None:
            parent_id = _root_id(identity)
        kind = str(record.get("type") or "SPAN").lower()
        name = str(record.get("name") or kind)
        start = unix_nano(_get(record, "startTime"))
        requests.span(
            trace_id(identity),
            span_id(str(record.get("id"))),
            parent_id,
            name,
            start,
            unix_nano(_get(record, "endTime")) or start,
            {**_attributes(kind, name, record), **_shared(trace)},
            error=str(_get(record, "statusMessage") or "") if record.get("level") == "ERROR" else None,
        )

    def _score(self, requests: Requests, record: dict[str, Any], skipped: Skipped) -> None:
        value, text = record.get("value"), _get(record, "stringValue")
        categorical = str(_get(record, "dataType") or "").upper() == "CATEGORICAL"
        if isinstance(value, str):
            value, text = None, text or value
        if categorical and text is not None:
            value = None
        if value is None and text is None:
            skipped.count("scores with neither value nor text")
            return
        trace, observation, session = (_get(record, f"{what}Id") for what in ("trace", "observation", "session"))
        if not trace and not session:
            skipped.count("scores on neither trace nor session")
            return
        requests.evaluation(
            str(record.get("name")),
            unix_nano(record.get("timestamp") or _get(record, "updatedAt") or _get(record, "createdAt")),
            value=None if value is None else float(value),
            label=text,
            explanation=record.get("comment"),
            source=record.get("source"),
            identifier=str(record["id"]) if record.get("id") else None,
            trace_id=trace_id(str(trace)) if trace else b"",
            span_id=span_id(str(observation)) if observation and trace else b"",
            session_id=None if trace else str(session),
        )


def _kind(record: Mapping[str, Any]) -> str | None:
    if _get(record, "startTime") is not None and _get(record, "traceId") is not None:
        return "observation"
    if "name" in record and ("value" in record or _get(record, "stringValue") is not None) and "input" not in record:
        return "score"
    if "id" in record and "timestamp" in record:
        return "trace"
    return None


def _get(record: Mapping[str, Any], camel: str) -> Any:
    """A field in either spelling: traceId, trace_id."""
    if camel in record:
        return record[camel]
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in camel)
    return record.get(snake)


def _root_id(trace: str) -> bytes:
    return span_id(f"trace {trace}")


def _shared(trace: _Trace) -> dict[str, Any]:
    return {
        "session.id": trace.session_id,
        "user.id": trace.user_id,
        "deployment.environment.name": trace.environment,
    }


def _attributes(kind: str, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    operation = OPERATIONS.get(kind)
    given, answered = _parsed(record.get("input")), _parsed(record.get("output"))
    if operation == "chat":
        return {"gen_ai.operation.name": operation, **_model(record), **_messages(given, answered), **_tools(given)}
    if operation == "execute_tool":
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.arguments": _text(given),
            "gen_ai.tool.call.result": _text(answered),
        }
    if operation is not None:
        who = {"gen_ai.agent.name": name} if operation == "invoke_agent" else {}
        return {"gen_ai.operation.name": operation, **who, **_model(record), **_texts(given, answered)}
    span_kind = kind.upper() if kind in ("retriever", "evaluator", "guardrail") else "CHAIN"
    return {"openinference.span.kind": span_kind, **_texts(given, answered)}


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    usage = _parsed(_get(record, "usageDetails")) or _parsed(record.get("usage")) or {}
    usage = usage if isinstance(usage, dict) else {}
    parameters = _parsed(_get(record, "modelParameters")) or {}
    found: dict[str, Any] = {
        "gen_ai.request.model": _get(record, "providedModelName") or record.get("model"),
        "gen_ai.usage.input_tokens": _whole(usage.get("input") or _get(record, "promptTokens")),
        "gen_ai.usage.output_tokens": _whole(usage.get("output") or _get(record, "completionTokens")),
    }
    for key, value in parameters.items() if isinstance(parameters, dict) else ():
        if key in PARAMETERS:
            ours, number = PARAMETERS[key]
            try:
                found[f"gen_ai.request.{ours}"] = number(value)
            except (TypeError, ValueError):
                continue  # "inf", or a text that is no number
    return found


def _messages(given: Any, answered: Any) -> dict[str, Any]:
    prompt = given.get("messages", given.get("prompt", given)) if isinstance(given, dict) else given
    if isinstance(prompt, dict) and "role" not in prompt:
        prompt = _text(prompt)
    answer = answered
    if isinstance(answered, dict) and isinstance(answered.get("choices"), list):
        answer = [choice.get("message") for choice in answered["choices"] if isinstance(choice, dict)]
    return {
        "gen_ai.input.messages": _genai(prompt, "user"),
        "gen_ai.output.messages": _genai(answer, "assistant"),
    }


def _tools(given: Any) -> dict[str, Any]:
    tools = given.get("tools") if isinstance(given, dict) else None
    return {"gen_ai.tool.definitions": _text(tools)} if tools else {}


def _genai(messages: Any, role: str) -> str | None:
    """Messages as the GenAI conventions write them; a text is one message of `role`."""
    if messages is None:
        return None
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        messages = [messages if isinstance(messages, dict) else {"role": role, "content": _text(messages)}]
    return _text([_genai_message(message, role) for message in messages])


def _genai_message(message: Mapping[str, Any], role: str) -> dict[str, Any]:
    content, parts = message.get("content"), []
    role = str(message.get("role") or role)
    if role == "tool":
        part = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return {"role": role, "parts": [part]}
    for item in content if isinstance(content, list) else [content]:
        if isinstance(item, dict) and isinstance(item.get("text"), str):
            parts.append({"type": "text", "content": item["text"]})
        elif item not in (None, ""):
            parts.append({"type": "text", "content": item if isinstance(item, str) else _text(item)})
    for call in message.get("tool_calls") or ():
        function = call.get("function") or call
        arguments = _parsed(function.get("arguments", function.get("args")))
        parts.append({"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": arguments})
    found: dict[str, Any] = {"role": role, "parts": parts}
    if message.get("finish_reason"):
        found["finish_reason"] = message["finish_reason"]
    return found


def _texts(given: Any, answered: Any) -> dict[str, Any]:
    return {"input.value": _text(given), "output.value": _text(answered)}


def _parsed(value: Any) -> Any:
    """JSON where a text holds JSON: the blob export writes inputs and parameters as text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None
