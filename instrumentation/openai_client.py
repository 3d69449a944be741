"""The OpenAI SDK's client, 1.x to 3.x: response ids onto spans, trace context into requests, and token capture (opt-in).

Patched where every call passes (sync, async, streams, raw responses, LangChain's): `BaseClient._build_request` and
`_process_response`. With LIGHTNING_CAPTURE_TOKENS=1 chat completions also ask for token ids and log-probabilities; a server
that refuses is asked once more without, and never again. Nothing is taken from what the agent sees; an error in here is
never the agent's.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_lightning.instrumentation import provider, tokens

LLM_SPAN_KEY = "lightning.llm_span"  # in the context: the framework's span of this very call (see langchain.py)
ASKED = {"logprobs": True, "return_token_ids": True}
# They refuse unknown parameters, so the first call would cost a round trip for nothing.
NEVER_ASKED = ("api.openai.com", "openai.azure.com", "api.anthropic.com", "generativelanguage.googleapis.com")
GENERATIONS = ("/chat/completions", "/completions", "/responses")  # an answer of vectors is not read again
REFUSALS = (400, 404, 415, 422)
_propagator = TraceContextTextMapPropagator()
_refusing: set[str] = set()


class _Call:
    """One request on its way: where it belongs, and how to ask again without our additions."""

    def __init__(self, client: Any, context: Any, body: Any) -> None:
        self.client, self.context, self.body = client, context, body
        self.span = trace.get_current_span(context)
        self.began = time.time_ns()
        self.asked = False
        self.plain: Any = None


def patch(module: ModuleType) -> None:
    """Called when `openai` has been imported."""
    base: Any = importlib.import_module("openai._base_client")
    if getattr(base.BaseClient._build_request, "_lightning", False):
        return
    build = base.BaseClient._build_request

    @functools.wraps(build)
    def build_request(self: Any, options: Any, *arguments: Any, **named: Any) -> Any:
        try:
            call, additions = _plan(self, options)
        except Exception:
            return build(self, options, *arguments, **named)
        if not additions:
            request = build(self, options, *arguments, **named)
        else:
            given = options.json_data
            options.json_data = {**given, **additions}
            try:
                request = build(self, options, *arguments, **named)
            finally:
                options.json_data = given
            call.asked, call.plain = True, lambda: build(self, options, *arguments, **named)
        try:
            _send_through(self, request, call)
        except Exception:
            provider.log.debug("openai request", exc_info=True)
        return request

    build_request._lightning = True  # type: ignore[attr-defined]
    base.BaseClient._build_request = build_request
    sync, asynchronous = base.SyncAPIClient._process_response, base.AsyncAPIClient._process_response

    @functools.wraps(sync)
    def process_response(self: Any, *arguments: Any, **named: Any) -> Any:
        _listen(named.get("response"), bool(named.get("stream")))
        return sync(self, *arguments, **named)

    @functools.wraps(asynchronous)
    async def process_response_async(self: Any, *arguments: Any, **named: Any) -> Any:
        _listen(named.get("response"), bool(named.get("stream")))
        return await asynchronous(self, *arguments, **named)

    base.SyncAPIClient._process_response = process_response
    base.AsyncAPIClient._process_response = process_response_async


def _plan(client: Any, options: Any) -> tuple[_Call, dict[str, Any]]:
    made = provider.telemetry()
    body = options.json_data if isinstance(options.json_data, dict) else None
    call = _Call(client, context_api.get_current(), body)
    if made is None or not made.settings.tokens or body is None:
        return call, {}
    if options.method.lower() != "post" or not str(options.url).rstrip("/").endswith("/chat/completions"):
        return call, {}
    host = urlsplit(str(client.base_url)).hostname or ""
    if str(client.base_url) in _refusing or any(host == name or host.endswith(f".{name}") for name in NEVER_ASKED):
        return call, {}
    extra = options.extra_json if isinstance(options.extra_json, dict) else {}
    return call, {key: value for key, value in ASKED.items() if key not in body and key not in extra}


def _send_through(client: Any, request: Any, call: _Call) -> None:
    request._lightning_call = call
    host = request.url.host
    if "traceparent" not in request.headers and not any(host == n or host.endswith(f".{n}") for n in NEVER_ASKED):
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, call.context)
        request.headers.update(carrier)
    if not call.asked:
        return
    http = client._client
    if "_lightning_send" in http.__dict__:
        return
    send = http.send
    if inspect.iscoroutinefunction(send):

        @functools.wraps(send)
        async def send_async(request: Any, *arguments: Any, **named: Any) -> Any:
            response = await send(request, *arguments, **named)
            plain = _refused(request, response)
            if plain is None:
                return response
            again = await send(plain, *arguments, **named)
            if again.status_code >= 400:
                return again
            _never_again(request)
            await response.aclose()
            return again

        http.send = send_async
    else:

        @functools.wraps(send)
        def send_sync(request: Any, *arguments: Any, **named: Any) -> Any:
            response = send(request, *arguments, **named)
            plain = _refused(request, response)
            if plain is None:
                return response
            again = send(plain, *arguments, **named)
            if again.status_code >= 400:
                return again
            _never_again(request)
            response.close()
            return again

        http.send = send_sync
    http._lightning_send = True


def _refused(request: Any, response: Any) -> Any:
    """The same request without our additions, if they may be why the server said no."""
    call = getattr(request, "_lightning_call", None)
    if call is None or not call.asked or response.status_code not in REFUSALS:
        return None
    try:
        plain = call.plain()
        again = _Call(call.client, call.context, call.body)
        again.began = call.began
        plain._lightning_call = again
        if "traceparent" in request.headers:
            plain.headers["traceparent"] = request.headers["traceparent"]
        return plain
    except Exception:
        return None


def _never_again(request: Any) -> None:
    _refusing.add(str(request._lightning_call.client.base_url))


def _listen(response: Any, stream: bool) -> None:
    """Learn from an answer what the agent's span lacks, and keep the tokens; the agent reads it as if nobody had."""
    try:
        call = getattr(getattr(response, "request", None), "_lightning_call", None)
        if call is None:
            return
        heard = _Heard(call)
        if not stream:
            generated = response.request.url.path.rstrip("/").endswith(GENERATIONS)
            if generated and hasattr(response, "_content") and "json" in response.headers.get("content-type", ""):
                heard.whole(json.loads(response.content))
            return
        for name, tee in (("iter_bytes", _tee), ("aiter_bytes", _tee_async)):
            original = getattr(response, name, None)
            if original is not None:
                setattr(response, name, functools.partial(tee, original, heard))
    except Exception:
        provider.log.debug("openai response", exc_info=True)


def _tee(original: Any, heard: _Heard, *arguments: Any, **named: Any) -> Iterator[bytes]:
    parts = original(*arguments, **named)
    try:
        for part in parts:
            heard.part(part)
            yield part
    finally:
        parts.close()
    heard.end()


async def _tee_async(original: Any, heard: _Heard, *arguments: Any, **named: Any) -> AsyncIterator[bytes]:
    parts = original(*arguments, **named)
    try:
        async for part in parts:
            heard.part(part)
            yield part
    finally:
        await parts.aclose()
    heard.end()


class _Heard:
    """One answer, whole or in parts. A stream that was cut leaves no token record."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._rest = b""
        self._named = False
        self._chunks = tokens.Chunks()
        self._done = False

    def whole(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            return
        self._name(answer.get("id"))
        if self._call.asked and "choices" in answer:
            tokens.record(self._call.context, self._call.began, self._call.body, answer)

    def part(self, part: bytes) -> None:
        if self._done or (self._named and not self._call.asked):
            return
        try:
            self._rest += part
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    self.end()
                    return
                chunk = json.loads(data)
                self._name(chunk.get("id"))
                if self._call.asked:
                    self._chunks.add(chunk)
        except Exception:
            self._done = True
            provider.log.debug("openai stream", exc_info=True)

    def end(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            if self._call.asked and (answer := self._chunks.answer()) is not None:
                tokens.record(self._call.context, self._call.began, self._call.body, answer)
        except Exception:
            provider.log.debug("openai stream", exc_info=True)

    def _name(self, response_id: Any) -> None:
        """The response id onto the span of the call: some frameworks lose it, all of them on streams."""
        if self._named or not isinstance(response_id, str) or not response_id:
            return
        self._named = True
        span = self._call.span
        attributes = getattr(span, "attributes", None) or {}
        if not span.is_recording() or "gen_ai.response.id" in attributes:
            return
        if (
            context_api.get_value(LLM_SPAN_KEY, self._call.context)
            or attributes.get("openinference.span.kind") == "LLM"
        ):
            span.set_attribute("gen_ai.response.id", response_id)
