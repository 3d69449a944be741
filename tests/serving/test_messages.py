"""Tool calls read out of answers; what does not parse stays text."""

from __future__ import annotations

import json

import pytest

from otel_lightning.app.errors import SenderError
from otel_lightning.serving.messages import canonical, normal_messages, parse_answer


def test_a_tool_call_becomes_one_and_text_beside_it_stays() -> None:
    message = parse_answer('let me see <tool_call>{"name": "find", "arguments": {"b": 1, "a": [2]}}</tool_call>', True)
    assert message["content"] == "let me see"
    assert message["tool_calls"][0]["function"]["name"] == "find"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"b": 1, "a": [2]}


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "find"',
        "<tool_call>find</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "a", "arguments": {}}</tool_call><tool_call>{"na',
    ],
)
def test_a_malformed_call_comes_back_as_content(text: str) -> None:
    assert parse_answer(text, True) == {"role": "assistant", "content": text}


def test_without_tools_nothing_is_a_tool_call() -> None:
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    assert parse_answer(text, False)["content"] == text


def test_canonical_form_knows_no_key_order_and_no_null_content() -> None:
    def said(arguments: str, content: str | None) -> bytes:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return canonical(normal_messages([{"role": "assistant", "content": content, "tool_calls": [call]}])[0])

    assert said('{"a": 1, "b": 2}', None) == said('{"b":2,"a":1}', "")
    assert said('{"a": 1}', None) != said('{"a": 2}', None)


def test_images_are_refused_by_name() -> None:
    with pytest.raises(SenderError, match=r"messages\[0\]\.content holds a part that is not text"):
        normal_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
