"""Prompts as token ids that extend one another.

An answer that was sampled here and comes back in a later prompt keeps the very ids it was sampled as, so that the
later prompt begins with the earlier one token for token. They are found by (prompt ids, canonical answer). Where they
are not known the history is tokenised as text and the miss is said (`retokenized`).
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson
from transformers import PreTrainedTokenizerBase

from otel_lightning.app.errors import SenderError
from otel_lightning.serving.messages import canonical

REMEMBERED = 200_000  # answers and prompts kept; about 150 MB of ids at 150 ids each


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt; `retokenized` when an assistant message in it had to be tokenised from text."""

    ids: list[int]
    retokenized: bool


class Prompts:
    """Renders and tokenises the prompts of one tokenizer. Thread-safe; memory is bounded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._end = str(tokenizer.eos_token or "")
        # Rendering costs what is handed in, twice a call: schemas that no template reads were half of it.
        template = tokenizer.chat_template
        self._reads_tools = not isinstance(template, str) or "tools" in template
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, array[int]] = OrderedDict()
        self._prompts: OrderedDict[bytes, tuple[array[int], bool]] = OrderedDict()

    def build(self, messages: list[dict[str, Any]], tools: Any) -> Prompt:
        """The prompt for the next answer to `messages` (normal form); SenderError when the template refuses them."""
        tools = tools if self._reads_tools else None
        key = self._prompt_key(messages, tools)
        known = self._get(self._prompts, key)
        if known is not None:
            return Prompt(known[0].tolist(), known[1])
        prompt = self._continue(messages, tools) or self._whole(messages, tools)
        self._put(self._prompts, key, (array("i", prompt.ids), prompt.retokenized))
        return prompt

    def remember(self, prompt_ids: list[int], message: dict[str, Any], ids: list[int]) -> None:
        """Keep the ids that `message` (normal form) was sampled as, after a prompt."""
        self._put(self._answers, _answer_key(prompt_ids, message), array("i", ids))

    def decode(self, ids: list[int]) -> str:
        """The text of sampled ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _whole(self, messages: list[dict[str, Any]], tools: Any) -> Prompt:
        text = self._render(messages, tools, True)
        return Prompt(self._encode(text), any(message["role"] == "assistant" for message in messages))

    def _continue(self, messages: list[dict[str, Any]], tools: Any) -> Prompt | None:
        last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None or not self._end:
            return None
        before = self.build(messages[:last], tools) if last else None
        if before is None:
            return None
        known = self._get(self._answers, _answer_key(before.ids, messages[last]))
        if known is None:
            return None
        answer = known.tolist()
        so_far = self._render(messages[: last + 1], tools, False)
        whole = self._render(messages, tools, True)
        if not whole.startswith(so_far):
            return None  # a template that rewrites history: nothing of it can be reused
        end = so_far.rfind(self._end)
        if end < 0:
            return None
        finished = bool(answer) and answer[-1] == self.tokenizer.eos_token_id
        rest = whole[end + len(self._end) if finished else end :]
        return Prompt(before.ids + answer + self._encode(rest), before.retokenized)

    def _render(self, messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools or None, tokenize=False, add_generation_prompt=generate
                )
            )
        except (
            Exception
        ) as error:  # a template is a program of the model's author: whatever it raises is about the messages
            raise SenderError(
                f"the model's chat template refuses these messages: {' '.join(str(error).split())[:200]}"
            ) from None

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _prompt_key(self, messages: list[dict[str, Any]], tools: Any) -> bytes:
        digest = hashlib.blake2b(orjson.dumps(tools, option=orjson.OPT_SORT_KEYS), digest_size=16)
        for message in messages:
            digest.update(canonical(message))
        return digest.digest()

    def _get(self, kept: OrderedDict[bytes, Any], key: bytes) -> Any:
        with self._lock:
            if key in kept:
                kept.move_to_end(key)
                return kept[key]
        return None

    def _put(self, kept: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
        with self._lock:
            kept[key] = value
            if len(kept) > REMEMBERED:
                kept.popitem(last=False)


def _answer_key(prompt_ids: list[int], message: dict[str, Any]) -> bytes:
    digest = hashlib.blake2b(array("i", prompt_ids).tobytes(), digest_size=16)
    digest.update(canonical(message))
    return digest.digest()
