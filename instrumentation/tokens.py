"""Token records made in the agent (plane B): one span a call, with the response id, the ids that were sampled and their
log-probabilities.

A prompt that continues what this process has seen is recorded as that call's response id and the ids that follow: an
episode's record grows with its length, not with its square. `lightning.prompt.length` says how many ids the whole has.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from otel_lightning.instrumentation import provider
from otel_lightning.instrumentation.enrich import EPISODE_KEY

PREFIX, LENGTH = "lightning.prompt.prefix_response_id", "lightning.prompt.length"
KNOWN_CALLS = 256  # calls of which prompt and answer are kept, to recognise what continues them
KNOWN_IDS = 1_000_000  # four bytes each

_lock = threading.Lock()
_known: OrderedDict[str, tuple[Any, array[int]]] = OrderedDict()  # by response id: the episode, prompt and answer
_texts: OrderedDict[tuple[int, int], list[str]] = OrderedDict()


def record(context: Any, began: int, body: Any, answer: dict[str, Any]) -> None:
    """Emit the record of one answered chat completion; nothing when the server gave no token ids."""
    choices = [choice for choice in answer.get("choices") or () if isinstance(choice, dict)]
    if not choices or not all(isinstance(choice.get("token_ids"), list) for choice in choices):
        return
    ids: dict[int, list[int]] = {int(choice.get("index", 0)): choice["token_ids"] for choice in choices}
    response_id = str(answer.get("id") or "")
    temperature = (body or {}).get("temperature")
    attributes: dict[str, Any] = {
        "lightning.capture": "client",
        "gen_ai.response.id": response_id,
        "gen_ai.response.finish_reasons": [str(choice.get("finish_reason") or "") for choice in choices],
        "gen_ai.usage.output_tokens": sum(len(value) for value in ids.values()),
        # vLLM's are before temperature unless it was started otherwise; at temperature 1 there is no difference.
        "lightning.logprobs.mode": "sampling" if temperature in (None, 1) else "raw",
    }
    for key, name in (("model", "gen_ai.response.model"),):
        if answer.get(key):
            attributes[name] = str(answer[key])
    for key in ("temperature", "top_p", "min_p"):
        if isinstance((body or {}).get(key), int | float):
            attributes[f"gen_ai.request.{key}"] = float(body[key])
    prompt = answer.get("prompt_token_ids")
    if isinstance(prompt, list) and prompt:
        attributes["gen_ai.usage.input_tokens"] = len(prompt)
        episode = context_api.get_value(EPISODE_KEY, context)
        named = episode.get("lightning.rollout.id") if isinstance(episode, dict) else None
        attributes |= _prompt(response_id, named, array("i", prompt), array("i", ids.get(0) or []))
    for index, choice in zip(ids, choices, strict=True):
        attributes[f"lightning.choice.{index}.token_ids"] = ids[index]
        content = (choice.get("logprobs") or {}).get("content") or []
        logprobs = [item.get("logprob") for item in content]
        if len(logprobs) == len(ids[index]) and all(isinstance(value, int | float) for value in logprobs):
            attributes[f"lightning.choice.{index}.logprobs"] = [float(value) for value in logprobs]
    span = trace.get_tracer(provider.SCOPE).start_span(
        "lightning.tokens", context=context, attributes=attributes, start_time=began
    )
    _remember_texts(span, body, answer)
    span.end()


def _prompt(response_id: str, episode: Any, prompt: array[int], response: array[int]) -> dict[str, Any]:
    """The attributes of a prompt: whole, or what follows the longest known call of its episode that it continues."""
    with _lock:
        best, length = None, 0
        for known_id, (known_episode, ids) in _known.items():
            if known_episode == episode and length < len(ids) <= len(prompt) and prompt[: len(ids)] == ids:
                best, length = known_id, len(ids)
        if response_id:
            _known[response_id] = (episode, prompt + response)
            total = sum(len(ids) for _, ids in _known.values())
            while len(_known) > KNOWN_CALLS or total > KNOWN_IDS:
                total -= len(_known.popitem(last=False)[1][1])
    attributes: dict[str, Any] = {LENGTH: len(prompt), "lightning.prompt.token_ids": prompt[length:].tolist()}
    if best is not None:
        attributes[PREFIX] = best
    return attributes


def _remember_texts(span: Any, body: Any, answer: dict[str, Any]) -> None:
    """What the ids stand for, kept beside the span: if a mask would change it, the ids may not leave either."""
    made = provider.telemetry()
    if made is None or not made.privacy.active:
        return
    context = span.get_span_context()
    messages = [choice.get("message") for choice in answer.get("choices") or ()]
    with _lock:
        _texts[(context.trace_id, context.span_id)] = [
            json.dumps((body or {}).get("messages"), default=str),
            json.dumps(messages, default=str),
        ]
        if len(_texts) > 10_000:
            _texts.popitem(last=False)


def texts_of(span: ReadableSpan) -> Sequence[str]:
    """The texts behind a token record's ids; for any other span none."""
    context = span.get_span_context()
    if context is None or not _texts:
        return ()
    with _lock:
        return _texts.pop((context.trace_id, context.span_id), ())


class Chunks:
    """The parts of a streamed answer, put together again as far as a record needs it."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """One parsed `data:` line."""
        for key in ("id", "model", "prompt_token_ids"):
            if chunk.get(key) and key not in self._answer:
                self._answer[key] = chunk[key]
        for part in chunk.get("choices") or ():
            index = int(part.get("index", 0))
            choice = self._choices.setdefault(
                index, {"index": index, "logprobs": {"content": []}, "message": {"content": "", "tool_calls": []}}
            )
            if isinstance(part.get("token_ids"), list):
                choice.setdefault("token_ids", []).extend(part["token_ids"])
            choice["logprobs"]["content"] += (part.get("logprobs") or {}).get("content") or []
            delta = part.get("delta") or {}
            choice["message"]["content"] += delta.get("content") or ""
            choice["message"]["tool_calls"] += delta.get("tool_calls") or []
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
        # vLLM sends the prompt's ids with the first choice of the first chunk, other servers beside it.
        for part in chunk.get("choices") or ():
            if part.get("prompt_token_ids") and "prompt_token_ids" not in self._answer:
                self._answer["prompt_token_ids"] = part["prompt_token_ids"]

    def answer(self) -> dict[str, Any] | None:
        """The whole; None for a stream that ended before every choice had its finish reason."""
        if not self._choices or not all(choice.get("finish_reason") for choice in self._choices.values()):
            return None
        return {**self._answer, "choices": [self._choices[index] for index in sorted(self._choices)]}
