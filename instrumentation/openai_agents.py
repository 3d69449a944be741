"""The OpenAI Agents SDK: our processor stays when the application sets others, and a run has a root when the SDK's tracing is off.

Who serves other models than OpenAI's usually turns the SDK's tracing off or replaces its processors, for they would send to OpenAI.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any

from opentelemetry import trace

from otel_lightning.instrumentation.provider import SCOPE
from otel_lightning.instrumentation.settings import truth


def patch(module: ModuleType) -> None:
    """Called when `agents` has been imported and instrumented."""
    provider: Any = importlib.import_module("agents.tracing").get_trace_provider()
    _keep_ours(provider)
    runner: Any = importlib.import_module("agents.run").AgentRunner
    run, streamed = runner.run, runner.run_streamed

    @functools.wraps(run)
    async def run_in_root(self: Any, starting_agent: Any, *arguments: Any, **named: Any) -> Any:
        root = _root(provider, starting_agent, named)
        if root is None:
            return await run(self, starting_agent, *arguments, **named)
        with trace.use_span(root, end_on_exit=True):
            return await run(self, starting_agent, *arguments, **named)

    @functools.wraps(streamed)
    def run_streamed_in_root(self: Any, starting_agent: Any, *arguments: Any, **named: Any) -> Any:
        root = _root(provider, starting_agent, named)
        if root is None:
            return streamed(self, starting_agent, *arguments, **named)
        with trace.use_span(root):  # the SDK's own task inherits it
            result = streamed(self, starting_agent, *arguments, **named)
        task = getattr(result, "run_loop_task", None) or getattr(result, "_run_impl_task", None)
        if task is None:
            root.end()
        else:
            task.add_done_callback(lambda _: root.end())
        return result

    runner.run, runner.run_streamed = run_in_root, run_streamed_in_root


def _keep_ours(provider: Any) -> None:
    set_processors = provider.set_processors
    multi = getattr(provider, "_multi_processor", None)

    @functools.wraps(set_processors)
    def set_and_keep(processors: list[Any]) -> None:
        ours = [p for p in getattr(multi, "_processors", ()) if type(p).__module__.startswith("openinference.")]
        set_processors([*processors, *(p for p in ours if p not in processors)])

    provider.set_processors = set_and_keep


def _root(provider: Any, agent: Any, named: dict[str, Any]) -> trace.Span | None:
    """A root where neither the application nor the SDK makes one."""
    off = (
        getattr(provider, "_disabled", False)
        or getattr(named.get("run_config"), "tracing_disabled", False)
        or truth(os.environ.get("OPENAI_AGENTS_DISABLE_TRACING"), False)
    )
    if not off or trace.get_current_span().get_span_context().is_valid:
        return None
    name = str(getattr(agent, "name", "") or "agent")
    return trace.get_tracer(SCOPE).start_span(
        name, attributes={"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name}
    )
