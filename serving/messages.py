"""Messages between the OpenAI form and the model's text: canonical form, tool calls read out of answers.

Canonical is role, text, tool calls (id, name, arguments as JSON with sorted keys) and tool_call_id, nothing else: the
form in which an answer that comes back in a later prompt is recognised.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Any

import orjson

from otel_lightning.app.errors import SenderError

ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
HERMES = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def normal_messages(given: Any) -> list[dict[str, Any]]:
    """The request's messages with text as one string and arguments as objects, as chat templates expect them.

    SenderError when they are not messages of the OpenAI form.
    """
    if not isinstance(given, list) or not given:
        raise SenderError("messages must be a list with at least one message")
    return [_normal(message, index) for index, message in enumerate(given)]


def _normal(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise SenderError(f"messages[{index}].role must be one of {', '.join(sorted(ROLES))}")
    role = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    normal: dict[str, Any] = {"role": role, "content": _text(message.get("content"), index)}
    if message.get("tool_calls"):
        normal["tool_calls"] = [_tool_call(call, index) for call in message["tool_calls"]]
    if role == "tool":
        normal["tool_call_id"] = message.get("tool_call_id") or message.get("name") or ""
    return normal


def _text(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise SenderError(f"messages[{index}].content holds a part that is not text; only text is served here")
            parts.append(str(part.get("text", "")))
        return "".join(parts)
    raise SenderError(f"messages[{index}].content must be text")


def _tool_call(call: Any, index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise SenderError(f"messages[{index}].tool_calls holds something that is no function call")
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # no JSON: kept as the text that it is
            arguments = orjson.loads(arguments)
    return {
        "id": call.get("id") or "",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def canonical(message: dict[str, Any]) -> bytes:
    """A normal message as bytes that equal messages share."""
    calls = [
        [call["id"], call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())
    ]
    value = [message["role"], message["content"], calls, message.get("tool_call_id")]
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def parse_answer(text: str, tools: bool) -> dict[str, Any]:
    """An assistant message in OpenAI form from the model's text.

    With tools offered, `<tool_call>{"name": …, "arguments": {…}}</tool_call>` becomes a tool call; one that does not
    parse leaves the whole text as content.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if not tools or "<tool_call>" not in text:
        return message
    calls = []
    for found in HERMES.finditer(text):
        try:
            value = orjson.loads(found[1])
            name, arguments = value["name"], value.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return message
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return message
        function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
        calls.append({"id": f"call_{secrets.token_hex(6)}", "type": "function", "function": function})
    rest = HERMES.sub("", text).strip()
    if not calls or "<tool_call>" in rest:
        return message
    return {"role": "assistant", "content": rest or None, "tool_calls": calls}
