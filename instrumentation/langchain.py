"""LangChain's calls to the OpenAI SDK happen in the span that LangChain has for them.

OpenInference's LangChain tracer makes no span current, so that whatever the SDK does would be a trace of its own. Inside
ChatOpenAI's own methods the run is known: its span is made current, the SDK's instrumentor stays silent (one span a call),
and openai_client.py can complete that span with the response id, which LangChain loses on streams.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from otel_lightning.instrumentation.openai_client import LLM_SPAN_KEY

METHODS = ("_generate", "_agenerate", "_stream", "_astream", "_stream_responses", "_astream_responses")
# The run that this code works for; streams are not told by LangChain itself.
_run_id: ContextVar[uuid.UUID | None] = ContextVar("lightning_langchain_run", default=None)


def patch(module: ModuleType) -> None:
    """Called when langchain_openai's chat models have been imported."""
    base: Any = importlib.import_module("langchain_core.language_models.chat_models").BaseChatModel
    for name, knows in (
        ("stream", _own_id),
        ("astream", _own_id),
        ("_generate_with_cache", _told),
        ("_agenerate_with_cache", _told),
    ):
        _replace(base, name, lambda method, knows=knows: _around(method, functools.partial(_enter_run, knows)))
    for value in list(vars(module).values()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            for name in METHODS:
                _replace(value, name, lambda method: _around(method, _enter_span))


def _replace(kind: type, name: str, wrap: Callable[[Any], Any]) -> None:
    method = kind.__dict__.get(name)
    if inspect.isfunction(method) and not hasattr(method, "_lightning"):
        wrapped = wrap(method)
        wrapped._lightning = True
        setattr(kind, name, wrapped)


Leave = Callable[[], None]


def _around(method: Callable[..., Any], enter: Callable[[tuple[Any, ...], dict[str, Any]], Callable[[], Leave]]) -> Any:
    """The method with something entered while it runs; of a generator, while it works and not while its reader does."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream_async(self: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
            into = enter(arguments, named)
            parts = method(self, *arguments, **named)
            try:
                while True:
                    leave = into()
                    try:
                        part = await parts.__anext__()
                    except StopAsyncIteration:
                        return
                    finally:
                        leave()
                    yield part
            finally:
                await parts.aclose()

        return stream_async
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def generate_async(self: Any, *arguments: Any, **named: Any) -> Any:
            leave = enter(arguments, named)()
            try:
                return await method(self, *arguments, **named)
            finally:
                leave()

        return generate_async
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def stream(self: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
            into = enter(arguments, named)
            parts = method(self, *arguments, **named)
            try:
                while True:
                    leave = into()
                    try:
                        part = next(parts)
                    except StopIteration:
                        return
                    finally:
                        leave()
                    yield part
            finally:
                parts.close()

        return stream

    @functools.wraps(method)
    def generate(self: Any, *arguments: Any, **named: Any) -> Any:
        leave = enter(arguments, named)()
        try:
            return method(self, *arguments, **named)
        finally:
            leave()

    return generate


def _own_id(arguments: tuple[Any, ...], named: dict[str, Any]) -> uuid.UUID | None:
    """A stream gets its run's id from us, through the configuration that LangChain has for that."""
    if len(arguments) > 1:
        return None
    config = dict(named.get("config") or {})
    named["config"] = config
    return config.setdefault("run_id", uuid.uuid4())


def _told(arguments: tuple[Any, ...], named: dict[str, Any]) -> uuid.UUID | None:
    manager = named.get("run_manager") or (arguments[2] if len(arguments) > 2 else None)
    return getattr(manager, "run_id", None)


def _enter_run(
    knows: Callable[[tuple[Any, ...], dict[str, Any]], uuid.UUID | None],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> Callable[[], Leave]:
    run_id = knows(arguments, named)

    def into() -> Leave:
        token = _run_id.set(run_id)
        return lambda: _run_id.reset(token)

    return into


def _enter_span(arguments: tuple[Any, ...], named: dict[str, Any]) -> Callable[[], Leave]:
    context = _context(_told(arguments, named) or _run_id.get())

    def into() -> Leave:
        if context is None:
            return lambda: None
        token = context_api.attach(context)
        return lambda: context_api.detach(token)

    return into


def _context(run_id: uuid.UUID | None) -> Any:
    """The context of the run's span; None where there is none, and the call is left as it is."""
    try:
        if run_id is None or "openinference.instrumentation.langchain" not in sys.modules:
            return None
        instrumentor = importlib.import_module("openinference.instrumentation.langchain").LangChainInstrumentor()
        if getattr(instrumentor, "_tracer", None) is None:
            return None
        span = instrumentor.get_span(run_id)
        if span is None or not span.is_recording():
            return None
        context = trace.set_span_in_context(span)
        context = context_api.set_value(LLM_SPAN_KEY, True, context)
        return context_api.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True, context)
    except Exception:
        return None
