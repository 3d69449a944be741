"""One chat completion: the request read, the answers sampled, the OpenAI form written, the token record kept."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from otel_lightning.app.errors import SenderError
from otel_lightning.serving.engine import Answer, Engine, Sampling
from otel_lightning.serving.messages import normal_messages, parse_answer
from otel_lightning.serving.pool import Loaded, Pool
from otel_lightning.serving.prompts import Prompt
from otel_lightning.serving.records import Records, genai_messages

ROLLOUTS_COUNTED = 200_000
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class ChatRequest:
    """A request that was understood."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    use_tools: bool
    sampling: Sampling
    n: int
    logprobs: bool
    return_token_ids: bool
    stream: bool
    include_usage: bool
    rollout_id: str | None
    traceparent: str | None


class Chat:
    """Answers chat completions over a pool of policies."""

    def __init__(self, pool: Pool, engine: Engine, records: Records, max_tokens: int) -> None:
        self._pool, self._engine, self._records, self._max_tokens = pool, engine, records, max_tokens
        self._counts: OrderedDict[str, int] = OrderedDict()
        self.calls = 0

    def count(self, rollout_id: str) -> int:
        """Answers given for a rollout since start."""
        return self._counts.get(rollout_id, 0)

    def read(self, body: Any, rollout_id: str | None, headers: dict[bytes, bytes]) -> ChatRequest:
        """Understand a request body; SenderError names the field that is off."""
        if not isinstance(body, dict):
            raise SenderError("the body must be a JSON object")
        metadata = body.get("metadata") or {}
        named = headers.get(b"x-lightning-rollout")
        choice = body.get("tool_choice", "auto")
        if choice not in ("auto", "none", None):
            raise SenderError("tool_choice must be 'auto' or 'none'; forcing a tool is not served")
        tools = body.get("tools") or None
        if tools is not None and not isinstance(tools, list):
            raise SenderError("tools must be a list")
        n = _integer(body, "n", 1, 1, MAX_CHOICES)
        top_logprobs = _integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
        if top_logprobs and not body.get("logprobs"):
            raise SenderError("top_logprobs needs logprobs: true")
        return ChatRequest(
            model=str(body.get("model") or "current"),
            messages=normal_messages(body.get("messages")),
            tools=tools,
            use_tools=tools is not None and choice != "none",
            sampling=Sampling(
                temperature=_number(body, "temperature", -1.0, 0.0, 100.0),
                top_p=_number(body, "top_p", -1.0, 0.0, 1.0),
                top_k=_integer(body, "top_k", -1, -1, 1 << 20),
                min_p=_number(body, "min_p", -1.0, 0.0, 1.0),
                seed=body.get("seed") if isinstance(body.get("seed"), int) else None,
                max_tokens=_integer(
                    body, "max_completion_tokens", _integer(body, "max_tokens", 0, 1, 1 << 20), 1, 1 << 20
                ),
                stop=_stops(body.get("stop")),
                top_logprobs=top_logprobs,
            ),
            n=n,
            logprobs=bool(body.get("logprobs")),
            return_token_ids=bool(body.get("return_token_ids")),
            stream=bool(body.get("stream")),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            rollout_id=rollout_id
            or (named.decode("latin-1") if named else None)
            or (str(metadata["session_id"]) if isinstance(metadata, dict) and metadata.get("session_id") else None),
            traceparent=headers.get(b"traceparent", b"").decode("latin-1") or None,
        )

    async def prepare(self, request: ChatRequest) -> tuple[Loaded, Prompt, Sampling]:
        """The policy, the prompt and the sampling with the policy's defaults; SenderError when it does not fit."""
        version = self._pool.resolve(request.model)
        loaded = self._pool.peek(version) or await asyncio.to_thread(self._pool.get, version)
        prompt = loaded.prompts.build(request.messages, request.tools if request.use_tools else None)
        room = loaded.context - len(prompt.ids)
        if room < 1:
            raise SenderError(
                f"the prompt has {len(prompt.ids)} tokens and the model's context {loaded.context}; shorten the messages"
            )
        given, defaults = request.sampling, loaded.defaults
        wanted = given.max_tokens or min(self._max_tokens, int(defaults.get("max_new_tokens", self._max_tokens)))
        sampling = Sampling(
            temperature=given.temperature if given.temperature >= 0 else float(defaults.get("temperature", 1.0)),
            top_p=given.top_p if given.top_p >= 0 else float(defaults.get("top_p", 1.0)),
            top_k=max(given.top_k, 0) if given.top_k >= 0 else int(defaults.get("top_k", 0)),
            min_p=given.min_p if given.min_p >= 0 else float(defaults.get("min_p", 0.0)),
            seed=given.seed,
            max_tokens=min(wanted, room),
            stop=given.stop,
            top_logprobs=given.top_logprobs,
        )
        return loaded, prompt, sampling

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The whole answer as an OpenAI chat completion."""
        began = time.time_ns()
        loaded, prompt, sampling = await self.prepare(request)
        answers = await asyncio.gather(
            *(
                asyncio.wrap_future(self._engine.submit(loaded.version, prompt.ids, _seeded(sampling, index)))
                for index in range(request.n)
            )
        )
        response_id = f"chatcmpl-{secrets.token_hex(12)}"
        choices = [self._choice(loaded, prompt, request, index, answer) for index, answer in enumerate(answers)]
        self._record(loaded, prompt, request, sampling, response_id, began, answers, choices)
        response: dict[str, Any] = {
            "id": response_id,
            "object": "chat.completion",
            "created": began // 1_000_000_000,
            "model": loaded.version,
            "choices": choices,
            "usage": _usage(prompt, answers),
        }
        if request.return_token_ids:
            response["prompt_token_ids"] = prompt.ids
        return response

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """The answer as chat completion chunks. Text waits where it may still become a tool call."""
        began = time.time_ns()
        loaded, prompt, sampling = await self.prepare(request)
        response_id = f"chatcmpl-{secrets.token_hex(12)}"
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[tuple[int, int, float] | None] = asyncio.Queue()

        def hear(index: int) -> Any:
            return lambda token, logprob: loop.call_soon_threadsafe(tokens.put_nowait, (index, token, logprob))

        futures = [
            self._engine.submit(loaded.version, prompt.ids, _seeded(sampling, index), hear(index))
            for index in range(request.n)
        ]
        gathered = asyncio.gather(*map(asyncio.wrap_future, futures))
        gathered.add_done_callback(lambda _: tokens.put_nowait(None))

        def chunk(choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
            return {
                "id": response_id,
                "object": "chat.completion.chunk",
                "created": began // 1_000_000_000,
                "model": loaded.version,
                "choices": choices,
                **extra,
            }

        try:
            first = {"prompt_token_ids": prompt.ids} if request.return_token_ids else {}
            yield chunk([_delta(i, {"role": "assistant", "content": ""}) for i in range(request.n)], **first)
            heard: list[list[int]] = [[] for _ in range(request.n)]
            shown = [""] * request.n
            unsent: list[list[tuple[int, float]]] = [[] for _ in range(request.n)]
            hold = request.use_tools or bool(sampling.stop)
            while (item := await tokens.get()) is not None:
                index, token, logprob = item
                heard[index].append(token)
                unsent[index].append((token, logprob))
                text = loaded.prompts.decode(heard[index])
                if hold or text.endswith("\ufffd") or len(text) <= len(shown[index]):
                    continue
                yield chunk([self._delta_text(loaded, request, index, text[len(shown[index]) :], unsent[index])])
                shown[index], unsent[index] = text, []
            answers = await gathered
            choices = [self._choice(loaded, prompt, request, index, answer) for index, answer in enumerate(answers)]
            self._record(loaded, prompt, request, sampling, response_id, began, answers, choices)
            for index, choice in enumerate(choices):
                message = choice["message"]
                rest = (message["content"] or "")[len(shown[index]) :]
                if rest or unsent[index]:
                    yield chunk([self._delta_text(loaded, request, index, rest, unsent[index])])
                if message.get("tool_calls"):
                    calls = [{"index": k, **call} for k, call in enumerate(message["tool_calls"])]
                    yield chunk([_delta(index, {"tool_calls": calls})])
                yield chunk([_delta(index, {}, choice["finish_reason"])])
            if request.include_usage:
                yield chunk([], usage=_usage(prompt, answers))
        finally:
            for future in futures:
                future.cancel()  # the reader went away: the rest is not sampled

    def _delta_text(
        self, loaded: Loaded, request: ChatRequest, index: int, text: str, tokens: list[tuple[int, float]]
    ) -> dict[str, Any]:
        delta = _delta(index, {"content": text})
        if request.logprobs:
            delta["logprobs"] = {"content": [_logprob(loaded, token, logprob, []) for token, logprob in tokens]}
        if request.return_token_ids:
            delta["token_ids"] = [token for token, _ in tokens]
        return delta

    def _choice(
        self, loaded: Loaded, prompt: Prompt, request: ChatRequest, index: int, answer: Answer
    ) -> dict[str, Any]:
        text = answer.text
        if text is None:
            text = loaded.prompts.decode(answer.ids)
        message = parse_answer(text, request.use_tools)
        if answer.text is None:  # cut at a stop string, the ids hold more than the message says
            loaded.prompts.remember(prompt.ids, normal_messages([message])[0], answer.ids)
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "finish_reason": "tool_calls"
            if message.get("tool_calls") and answer.finish_reason == "stop"
            else answer.finish_reason,
            "logprobs": None,
        }
        if request.logprobs:
            tops = answer.top or [[] for _ in answer.ids]
            choice["logprobs"] = {
                "content": [
                    _logprob(loaded, token, logprob, top)
                    for token, logprob, top in zip(answer.ids, answer.logprobs, tops, strict=True)
                ]
            }
        if request.return_token_ids:
            choice["token_ids"] = answer.ids
        return choice

    def _record(
        self,
        loaded: Loaded,
        prompt: Prompt,
        request: ChatRequest,
        sampling: Sampling,
        response_id: str,
        began: int,
        answers: list[Answer],
        choices: list[dict[str, Any]],
    ) -> None:
        self.calls += 1
        if request.rollout_id is not None:
            self._counts[request.rollout_id] = self._counts.pop(request.rollout_id, 0) + 1
            if len(self._counts) > ROLLOUTS_COUNTED:
                self._counts.popitem(last=False)
        attributes: dict[str, Any] = {
            "lightning.capture": "serve",
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "lightning-serve",
            "gen_ai.request.model": request.model,
            "gen_ai.response.model": loaded.version,
            "gen_ai.response.id": response_id,
            "gen_ai.response.finish_reasons": [choice["finish_reason"] for choice in choices],
            "gen_ai.request.temperature": float(sampling.temperature),
            "gen_ai.request.top_p": float(sampling.top_p),
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.min_p": float(sampling.min_p),
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.usage.input_tokens": len(prompt.ids),
            "gen_ai.usage.output_tokens": sum(len(answer.ids) for answer in answers),
            "gen_ai.input.messages": genai_messages(request.messages),
            "gen_ai.output.messages": genai_messages(normal_messages([choice["message"] for choice in choices])),
            "lightning.policy.version": loaded.version,
            "lightning.tokenizer": loaded.tokenizer_sha256,
            "lightning.logprobs.mode": "sampling",
            "lightning.prompt.token_ids": prompt.ids,
        }
        if sampling.seed is not None:
            attributes["gen_ai.request.seed"] = sampling.seed
        if request.tools is not None:
            attributes["gen_ai.tool.definitions"] = orjson.dumps(request.tools).decode()
        if request.rollout_id is not None:
            attributes["lightning.rollout.id"] = request.rollout_id
        if prompt.retokenized:
            attributes["lightning.retokenized_history"] = True
        for index, answer in enumerate(answers):
            attributes[f"lightning.choice.{index}.token_ids"] = answer.ids
            attributes[f"lightning.choice.{index}.logprobs"] = answer.logprobs
        self._records.emit(request.traceparent, began, attributes, None)


def _seeded(sampling: Sampling, index: int) -> Sampling:
    """Each of n choices samples for itself, and the same again for the same seed."""
    if sampling.seed is None or index == 0:
        return sampling
    return Sampling(**{**sampling.__dict__, "seed": sampling.seed + index * 1_000_003})


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


def _logprob(loaded: Loaded, token: int, logprob: float, top: list[tuple[int, float]]) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = str(loaded.prompts.tokenizer.decode([token]))
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {**entry(token, logprob), "top_logprobs": [entry(*pair) for pair in top]}


def _usage(prompt: Prompt, answers: list[Answer]) -> dict[str, int]:
    sampled = sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": len(prompt.ids), "completion_tokens": sampled, "total_tokens": len(prompt.ids) + sampled}


def _number(body: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SenderError(f"{key} must be a number from {low:g} to {high:g}")
    return float(value)


def _integer(body: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SenderError(f"{key} must be a whole number from {low} to {high}")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise SenderError("stop must be a text or a list of texts")
    return tuple(values)
