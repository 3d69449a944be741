"""AutoGen: one trace a run. Its agents and tools trace themselves; what is missing is a span around them all.

A top-level `run` or `run_stream` of an agent or a team gets a root span; inside of another span it gets none. A runtime that the
application started earlier handles messages in tasks of its own: each message carries the context that it was sent in.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace

from otel_lightning.instrumentation.provider import SCOPE

RUN_KEY = "lightning.autogen_run"  # in the context: the span that a run's agents are siblings under


def patch_agents(module: ModuleType) -> None:
    """Called when the base class of agents has been imported."""
    _patch(module.BaseChatAgent)


def patch_teams(module: ModuleType) -> None:
    """Called when the base class of teams has been imported."""
    _patch(module.BaseGroupChat)


def patch_runtime(module: ModuleType) -> None:
    """Called when the single-threaded runtime has been imported."""
    runtime: Any = module.SingleThreadedAgentRuntime
    plain: Any = module.Queue

    class Carrying(plain):
        async def put(self, item: Any) -> None:
            context = context_api.get_current()
            top = context_api.get_value(RUN_KEY, context)
            item._lightning_context = (
                trace.set_span_in_context(top, context) if isinstance(top, trace.Span) else context
            )
            await super().put(item)

    module.Queue = Carrying  # type: ignore[attr-defined]
    for name in ("_process_send", "_process_publish", "_process_response"):
        setattr(runtime, name, _in_context_of_message(getattr(runtime, name)))


def _in_context_of_message(method: Any) -> Any:
    @functools.wraps(method)
    async def process(self: Any, message_envelope: Any) -> Any:
        sent_in = getattr(message_envelope, "_lightning_context", None)
        if sent_in is None or trace.get_current_span().get_span_context().is_valid:
            return await method(self, message_envelope)
        token = context_api.attach(sent_in)
        try:
            return await method(self, message_envelope)
        finally:
            context_api.detach(token)

    return process


def _patch(kind: Any) -> None:
    run, stream = kind.run, kind.run_stream
    if hasattr(run, "_lightning"):
        return

    @functools.wraps(run)
    async def run_in_root(self: Any, *arguments: Any, **named: Any) -> Any:
        root = _root(self)
        token = context_api.attach(_inside(root))
        try:
            return await run(self, *arguments, **named)
        except Exception as error:
            _fail(root, error)
            raise
        finally:
            context_api.detach(token)
            if root is not None:
                root.end()

    @functools.wraps(stream)
    async def stream_in_root(self: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        root = _root(self)
        # The root is current while the run works, not while whoever reads the stream does.
        inside = _inside(root)
        items = stream(self, *arguments, **named)
        try:
            while True:
                token = context_api.attach(inside)
                try:
                    item = await items.__anext__()
                except StopAsyncIteration:
                    return
                finally:
                    inside = context_api.get_current()
                    context_api.detach(token)
                yield item
        except Exception as error:
            _fail(root, error)
            raise
        finally:
            await items.aclose()
            if root is not None:
                root.end()

    run_in_root._lightning = True  # type: ignore[attr-defined]
    kind.run, kind.run_stream = run_in_root, stream_in_root


def _inside(root: trace.Span | None) -> Any:
    """The context of a run: its root is current, and messages sent below it belong right under that root."""
    top = trace.get_current_span() if root is None else root
    context = context_api.get_current() if root is None else trace.set_span_in_context(root)
    return context if context_api.get_value(RUN_KEY, context) else context_api.set_value(RUN_KEY, top, context)


def _fail(root: trace.Span | None, error: Exception) -> None:
    if root is not None:
        root.record_exception(error)
        root.set_status(trace.StatusCode.ERROR, type(error).__name__)


def _root(runner: Any) -> trace.Span | None:
    if trace.get_current_span().get_span_context().is_valid:
        return None
    name = str(getattr(runner, "name", "") or type(runner).__name__)
    return trace.get_tracer(SCOPE).start_span(
        name, attributes={"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name}
    )
