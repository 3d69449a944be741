"""What real frameworks sent against what the model server saw: fixtures/expected.yml says which request became what.

Every capture under fixtures/otlp is posted as it was recorded to one real collector and transformed once. Then each
line of a capture's server_requests.jsonl must have become exactly what expected.yml says, and no call may be left over.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from running import Starter

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

FIXTURES = Path(__file__).parents[1] / "fixtures"
CAPTURES = sorted(
    str(path.parent.relative_to(FIXTURES / "otlp")) for path in (FIXTURES / "otlp").glob("*/*/server_requests.jsonl")
)
EXPECTED: dict[str, dict[int, Any]] = yaml.safe_load((FIXTURES / "expected.yml").read_text()) or {}
KINDS = ("call", "not_kept", "failed_call", "attempt_of", "not_emitted", "not_a_call")
FIELDS = ("prompt", "response", "tool_call_ids", "response_id", "finish_reason", "usage")
# A judge's own call, one that continues a response of which only the server knows the earlier messages, and one of which
# the convention cannot tell whether its prompt is whole.
RIGHTLY_UNTRAINABLE = ("judge", "partial_prompt", "content_partial")
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "n": 1}


@dataclass(frozen=True)
class Exchange:
    """One request and its answer in canonical form, from the server's record or from a row of `calls`."""

    prompt: list[Any]
    response: tuple[str, list[Any]] | None
    response_id: str | None
    finish_reason: str | None
    usage: tuple[int | None, int | None]
    tool_call_ids: list[str | None] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[Any, Any, Any] = (None, None, None)
    choices: int = 1
    failed: bool = False
    untrainable: str | None = None


def text_of(content: Any) -> str:
    """The text of a message's content, of its text parts when it has several."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def tool_calls_of(message: dict[str, Any]) -> list[Any]:
    """Id, name and parsed arguments of each tool call."""
    calls = []
    for call in message.get("tool_calls") or []:
        arguments = call["function"].get("arguments") or "{}"
        # A model may write what is no JSON; then the text itself is compared.
        with contextlib.suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
        calls.append((call.get("id"), call["function"]["name"], arguments))
    return calls


def canonical(message: dict[str, Any]) -> tuple[Any, ...]:
    """Role, text, tool calls and the tool call that is answered: what identifies a message."""
    role = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    return role, text_of(message.get("content")), tool_calls_of(message), message.get("tool_call_id")


def item_as_message(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the Responses API as a chat message."""
    if item.get("type") == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        return {"role": "assistant", "tool_calls": [{"id": item["call_id"], "function": function}]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    return item


def content_as_messages(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A content of Gemini's API as chat messages: each tool's result is one of its own."""
    parts = content["parts"]
    results = [
        {"role": "tool", "tool_call_id": result["id"], "content": json.dumps(result["response"], separators=(",", ":"))}
        for result in (part["functionResponse"] for part in parts if "functionResponse" in part)
    ]
    asked = [
        {"id": call["id"], "function": {"name": call["name"], "arguments": json.dumps(call["args"])}}
        for call in (part["functionCall"] for part in parts if "functionCall" in part)
    ]
    if results:
        return results
    role = {"model": "assistant"}.get(content.get("role", "user"), content.get("role", "user"))
    return [{"role": role, "content": parts, "tool_calls": asked}]


def ids_of(response: tuple[str, list[Any]] | None) -> list[str | None]:
    """The ids of the tool calls of an answer."""
    return [call[0] for call in response[1]] if response else []


def without_ids(response: tuple[str, list[Any]] | None) -> Any:
    """What a model itself wrote of an answer: the ids of tool calls are its server's."""
    return response and (response[0], [call[1:] for call in response[1]])


def tools_of(tools: list[dict[str, Any]] | None) -> list[Any]:
    """Name, description and parameters of each tool that was offered."""
    functions = [f for tool in tools or [] for f in tool.get("functionDeclarations", [tool.get("function", tool)])]
    return [(f["name"], f.get("description"), f.get("parameters", f.get("parameters_json_schema"))) for f in functions]


def from_server(record: dict[str, Any]) -> Exchange:
    """What the model server was asked and what it answered."""
    request, reply = record["request"], record.get("reply")
    if "messages" in request:
        messages = request["messages"]
    elif "contents" in request:
        system = request.get("systemInstruction")
        messages = [{"role": "system", "content": system["parts"]}] if system else []
        messages += [message for content in request["contents"] for message in content_as_messages(content)]
    else:
        asked = request.get("input", request.get("prompt"))
        # Text, or the token ids that the completions API takes too, is what one user says.
        items = asked if isinstance(asked, list) and isinstance(asked[0], dict) else [{"content": str(asked)}]
        messages = [item_as_message({"role": "user", **item}) for item in items]
        if request.get("instructions"):
            messages = [{"role": "system", "content": request["instructions"]}, *messages]
    response = usage = None
    if reply and "output" in reply:
        answers = [item_as_message(item) for item in reply["output"] if item["type"] != "reasoning"]
        response = "".join(text_of(a.get("content")) for a in answers), [c for a in answers for c in tool_calls_of(a)]
        usage = reply["usage"]["input_tokens"], reply["usage"]["output_tokens"]
    elif reply:
        response = reply.get("content") or reply.get("text") or "", tool_calls_of(reply)
        usage = reply.get("usage") and (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
    return Exchange(
        prompt=[canonical(message) for message in messages],
        response=response,
        response_id=record.get("response_id"),
        finish_reason=(reply or {}).get("finish_reason"),
        usage=usage or (None, None),
        tool_call_ids=ids_of(response),
        tools=tools_of(request.get("tools")),
        sampling={
            "max_tokens": request.get("max_completion_tokens") or request.get("max_output_tokens"),
            **request.get("generationConfig", {}),
            **request,
        },
        tokens=(record.get("prompt_token_ids"), record.get("token_ids"), (reply or {}).get("logprobs")),
        choices=(reply or {}).get("n", 1),
        failed=record["status"] != 200,
    )


def from_call(row: dict[str, Any]) -> Exchange:
    """What the lake knows of the same."""
    answers = json.loads(row["response_messages"])
    first = canonical(answers[0]) if answers else None
    reasons = row["finish_reasons"]
    return Exchange(
        prompt=[canonical(message) for message in json.loads(row["prompt_messages"])],
        response=(first[1], first[2]) if first else None,
        response_id=row["response_id"],
        finish_reason=reasons[0] if reasons else None,
        usage=(row["prompt_tokens"], row["completion_tokens"]),
        tool_call_ids=ids_of((first[1], first[2]) if first else None),
        tools=tools_of(json.loads(row["tools"] or "[]")),
        sampling=json.loads(row["sampling"]),
        tokens=(row["prompt_ids"], (row["response_ids"] or [None])[0], (row["response_logprobs"] or [None])[0]),
        choices=len(row["choices"]),
        failed=row["error"],
        untrainable=row["untrainable_reason"],
    )


def pair_up(lines: dict[int, Exchange], calls: list[Exchange]) -> tuple[dict[int, Exchange], list[Exchange]]:
    """Which call is which line: by response id, then by content, then by what is left in order; and the calls left over.

    Calls come in the order of their start, which is the order in which the server saw them unless they overlap.
    """
    free = list(calls)
    found: dict[int, Exchange] = {}
    same = (
        lambda line, call: call.response_id is not None and line.response_id == call.response_id,
        lambda line, call: call.response_id is None and (line.prompt, line.response) == (call.prompt, call.response),
        lambda line, call: call.response_id is None and line.prompt == call.prompt,
        lambda line, call: call.response_id is None and line.response == call.response,
        lambda line, call: call.response_id is None,
    )
    for test in same:
        for number, line in lines.items():
            call = next((call for call in free if number not in found and test(line, call)), None)
            if call is not None:
                found[number] = call
                free = [other for other in free if other is not call]
    return found, free


def differing(line: Exchange, call: Exchange, *, failed: bool = False) -> list[str]:
    """The fields in which a call is not what the server says; what the server does not say is not compared."""
    unequal = []
    if line.prompt != call.prompt:
        unequal.append("prompt")
    if failed:
        return unequal
    if (without_ids(line.response), line.choices) != (without_ids(call.response), call.choices):
        unequal.append("response")
    elif line.tool_call_ids != call.tool_call_ids:
        unequal.append("tool_call_ids")
    if line.response_id != call.response_id:
        unequal.append("response_id")
    if line.finish_reason is not None and line.finish_reason != call.finish_reason:
        unequal.append("finish_reason")
    if line.usage[0] is not None and line.usage != call.usage:
        unequal.append("usage")
    return unequal


def server_lines(capture: str) -> dict[int, dict[str, Any]]:
    """The server's records by their line, from 1."""
    text = (FIXTURES / "otlp" / capture / "server_requests.jsonl").read_text()
    return {number: json.loads(line) for number, line in enumerate(text.splitlines(), 1)}


def traces_of(capture: str) -> set[str]:
    """The trace ids that a capture sent."""
    found = set()
    for path in (FIXTURES / "otlp" / capture).glob("*-traces.pb"):
        body = ExportTraceServiceRequest.FromString(path.read_bytes())
        found |= {s.trace_id.hex() for r in body.resource_spans for scope in r.scope_spans for s in scope.spans}
    return found


Found = dict[str, list[Exchange]]


@pytest.fixture(scope="module")
def found(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """The calls of every capture, by start, after a real collector and a real transform."""
    lake = tmp_path_factory.mktemp("captures") / "lake"
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    for capture in CAPTURES:
        for path in sorted((FIXTURES / "otlp" / capture).glob("*.pb")):
            signal_name = path.stem.split("-")[1]
            assert collector.post(f"/v1/{signal_name}", path.read_bytes(), "application/x-protobuf") == b"", path
    collector.post("/flush")
    config = TransformConfig.model_validate({"rewards": {"train": {"resolved": 1.0}}})
    run_transform(lake, config, now_unix_nano=time.time_ns())
    with open_tables(lake, threads=1) as tables:
        cursor = tables.execute("select * from calls order by start_unix_nano, span_id")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    owners = {trace: capture for capture in CAPTURES for trace in traces_of(capture)}
    by_capture: Found = {capture: [] for capture in CAPTURES}
    for row in rows:
        by_capture[owners[row["trace_id"]]].append(from_call(row))
    yield by_capture


def kind_of(line: Any) -> str:
    """The one word that says what became of a request."""
    if line == "call":
        return "call"
    named = [kind for kind in KINDS if kind in line]
    # A failed call may have lost its prompt too.
    return "failed_call" if "failed_call" in named else named[0]


def reason_of(line: dict[str, Any]) -> str:
    """The sentence beside an exception."""
    said = line.get("because") or next((line[kind] for kind in KINDS if isinstance(line.get(kind), str)), "")
    return said.strip()


def test_every_line_is_spoken_for() -> None:
    """Each capture and each of its lines has an entry, and each exception its sentence."""
    assert set(EXPECTED) == set(CAPTURES)
    for capture in CAPTURES:
        assert list(EXPECTED[capture]) == list(server_lines(capture)), capture
        for number, line in EXPECTED[capture].items():
            if line == "call":
                continue
            assert len(reason_of(line).split()) >= 4 and reason_of(line).endswith("."), f"{capture} {number}: no reason"
            assert set(line) <= {*KINDS, "because"}, f"{capture} {number}: {line}"
            assert set(line.get("not_kept", ())) <= set(FIELDS), f"{capture} {number}: {line}"
            if "attempt_of" in line:
                last = EXPECTED[capture][line["attempt_of"]]
                assert line["attempt_of"] > number and kind_of(last) in ("call", "not_kept", "failed_call")


@pytest.mark.parametrize("capture", CAPTURES)
def test_each_request_became_what_expected_says(capture: str, found: Found) -> None:
    """No call more, no call less; each field equals the server's, or is excused and missing; whole calls can be trained."""
    expected = EXPECTED[capture]
    lines = {number: from_server(record) for number, record in server_lines(capture).items()}
    due = {n: line for n, line in lines.items() if kind_of(expected[n]) in ("call", "not_kept", "failed_call")}
    assert len(found[capture]) == len(due)
    pairs, left_over = pair_up(due, found[capture])
    assert not left_over, f"calls that no line explains: {left_over}"
    for number, line in due.items():
        entry, call = expected[number], pairs[number]
        failed = kind_of(entry) == "failed_call"
        excused = sorted(entry.get("not_kept", ())) if isinstance(entry, dict) else []
        unequal = sorted(differing(line, call, failed=failed))
        assert unequal == excused, f"line {number}: {unequal} differ, expected.yml says {excused}\n{line}\n{call}"
        assert call.failed == failed, f"line {number}"
        # Conventions leave out much of these, and may write a default that was not sent; what they say is right.
        assert call.tools in ([], line.tools), f"line {number}"
        for here, there in zip(call.tokens, line.tokens, strict=True):
            assert here is None or there is None or here == there, f"line {number}: token ids or log-probabilities"
        said = {**SAMPLING_DEFAULTS, **line.sampling}
        assert {key: said.get(key) for key in call.sampling} == call.sampling, f"line {number}"
        for name in {"response_id", "finish_reason", "usage"} & set(excused):
            assert getattr(call, name) in (None, (None, None)), f"line {number}: {name} is wrong, not missing"
        if "tool_call_ids" in excused:
            assert set(call.tool_call_ids) == {None}, f"line {number}: ids of tool calls are wrong, not missing"
        if failed or {"prompt", "response"} & set(excused):
            assert call.untrainable is not None, f"line {number}: trainable although its content is not the server's"
        else:
            assert call.untrainable in (None, *RIGHTLY_UNTRAINABLE), f"line {number}: {call.untrainable}"


def test_exact_tokens_are_read_where_a_capture_holds_them(found: Found) -> None:
    """What the server was asked to return with its answer is in OpenInference's payload of that answer."""
    asked = {
        record["response_id"]
        for capture in CAPTURES
        if capture.startswith(("openai-sdk/openinference-openai", "langchain/openinference-langchain+openai"))
        for record in server_lines(capture).values()
        if record["request"].get("return_token_ids") and record["status"] == 200
    }
    exact = [call for calls in found.values() for call in calls if None not in call.tokens[:2]]
    assert {call.response_id for call in exact} >= asked and len(exact) >= 5
