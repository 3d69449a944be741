"""An episode said outright: a root span with the task it was about, around whatever the agent does.

    with rollout(task="ticket-17", split="train") as run:      # async with, and @rollout(...) on functions, work as well
        answer = agent(ticket)
        run.reward(1.0)

Every span beneath carries the episode's id, task and group, so that none of them depends on the root arriving.
"""

from __future__ import annotations

import functools
import inspect
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace

from otel_lightning.instrumentation.emit import SPLITS, EmitError
from otel_lightning.instrumentation.enrich import EPISODE_KEY
from otel_lightning.instrumentation.provider import SCOPE

F = TypeVar("F", bound=Callable[..., Any])
_active: ContextVar[tuple[Run, ...]] = ContextVar("lightning_rollouts", default=())


class Run:
    """One episode as it goes on: its ids, and where its rewards go."""

    def __init__(self, span: trace.Span, rollout_id: str) -> None:
        self.span, self.id = span, rollout_id
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else None
        self.span_id = trace.format_span_id(context.span_id) if context.is_valid else None
        self._token: Any = None

    def reward(
        self, value: float | None = None, *, name: str = "reward", label: str | None = None, **more: Any
    ) -> None:
        """Reward the whole episode; during it or after."""
        from otel_lightning.instrumentation.rewards import feedback

        feedback(value, name=name, label=label, rollout=self.id, **more)


class rollout:
    """A context manager and decorator, for sync and async code. Of `task` and `group` the ids; `id` names the episode."""

    def __init__(
        self,
        *,
        task: str | None = None,
        group: str | None = None,
        id: str | None = None,
        split: str | None = None,
        attempt: int | None = None,
        session: str | None = None,
        name: str = "rollout",
    ) -> None:
        if split is not None and split not in SPLITS:
            raise EmitError(f"split '{split}' must be one of {', '.join(SPLITS)}")
        self._id, self._name = id, name
        self._given = {
            "lightning.task.id": task,
            "lightning.group.id": group,
            "lightning.split": split,
            "lightning.attempt": attempt,
            "session.id": session,
        }

    def __enter__(self) -> Run:
        rollout_id = self._id or uuid.uuid4().hex
        attributes = {key: value for key, value in self._given.items() if value is not None}
        attributes["lightning.rollout.id"] = rollout_id
        context = context_api.set_value(EPISODE_KEY, dict(attributes))
        span = trace.get_tracer(SCOPE).start_span(
            self._name,
            context=context if trace.get_current_span(context).get_span_context().is_valid else _at_top(context),
            attributes={**attributes, "gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": self._name},
            start_time=time.time_ns(),
        )
        run = Run(span, rollout_id)
        run._token = context_api.attach(trace.set_span_in_context(span, context))
        _active.set((*_active.get(), run))
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *rest, run = _active.get()
        _active.set(tuple(rest))
        context_api.detach(run._token)
        if isinstance(error, Exception):
            run.span.record_exception(error)
            run.span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        run.span.end()

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: F) -> F:
        """Decorate: every call is an episode of its own."""
        name = self._name if self._name != "rollout" else getattr(function, "__name__", "rollout")

        def fresh() -> rollout:
            given = self._given
            return rollout(
                task=given["lightning.task.id"],
                group=given["lightning.group.id"],
                id=self._id,
                split=given["lightning.split"],
                attempt=given["lightning.attempt"],
                session=given["session.id"],
                name=name,
            )

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*arguments: Any, **named: Any) -> Any:
                with fresh():
                    return await function(*arguments, **named)

            return run_async  # type: ignore[return-value]
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise EmitError(f"@rollout on the generator '{name}': use 'with rollout(...)' inside of it")

        @functools.wraps(function)
        def run_sync(*arguments: Any, **named: Any) -> Any:
            with fresh():
                return function(*arguments, **named)

        return run_sync  # type: ignore[return-value]


def current() -> Run | None:
    """The innermost episode that this code runs in."""
    active = _active.get()
    return active[-1] if active else None


def _at_top(context: Any) -> Any:
    """Under the process's root, where the process as a whole is an episode too."""
    from otel_lightning.instrumentation.provider import telemetry

    made = telemetry()
    return context if made is None or made.root is None else trace.set_span_in_context(made.root, context)
