"""AutoGen: one trace a run. Its agents and tools trace themselves; what is missing is a span around them all.

A top-level `run` or `run_stream` of an agent or a team gets a root span; inside of another span it gets none.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace

from otel_lightning.instrumentation.provider import SCOPE


def patch_agents(module: ModuleType) -> None:
    """Called when the base class of agents has been imported."""
    _patch(module.BaseChatAgent)


def patch_teams(module: ModuleType) -> None:
    """Called when the base class of teams has been imported."""
    _patch(module.BaseGroupChat)


def _patch(kind: Any) -> None:
    run, stream = kind.run, kind.run_stream
    if hasattr(run, "_lightning"):
        return

    @functools.wraps(run)
    async def run_in_root(self: Any, *arguments: Any, **named: Any) -> Any:
        root = _root(self)
        if root is None:
            return await run(self, *arguments, **named)
        with trace.use_span(root, end_on_exit=True):
            return await run(self, *arguments, **named)

    @functools.wraps(stream)
    async def stream_in_root(self: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        root = _root(self)
        if root is None:
            async for item in stream(self, *arguments, **named):
                yield item
            return
        # The root is current while the run works, not while whoever reads the stream does.
        inside = trace.set_span_in_context(root)
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
            root.record_exception(error)
            root.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            await items.aclose()
            root.end()

    run_in_root._lightning = True  # type: ignore[attr-defined]
    kind.run, kind.run_stream = run_in_root, stream_in_root


def _root(runner: Any) -> trace.Span | None:
    if trace.get_current_span().get_span_context().is_valid:
        return None
    name = str(getattr(runner, "name", "") or type(runner).__name__)
    return trace.get_tracer(SCOPE).start_span(
        name, attributes={"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name}
    )
