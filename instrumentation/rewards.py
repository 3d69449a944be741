"""How it went, as the standard `gen_ai.evaluation.result`: during the run by what is active, or days later by an id.

    reward(1.0)                                        # the span that is current: the call, the tool, the agent, the run
    reward(0.2, name="tone", span=response)            # an OpenAI answer, a span, a rollout
    feedback(1.0, name="resolved", session="chat-17")  # from any process, by trace, span, response, session or rollout

Both return at once: records are sent in the background and flushed at exit. `.wait()` or `await` on what `feedback`
returns comes back when the collector has it on disk, and raises EmitError in one line when it does not take it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Generator
from typing import Any

from opentelemetry import trace

from otel_lightning.instrumentation.emit import EmitError, Emitter
from otel_lightning.instrumentation.endpoint import reachable
from otel_lightning.instrumentation.settings import DEFAULT_ENDPOINT

_lock = threading.Lock()
_emitters: dict[str, Emitter] = {}


class Sent:
    """A record on its way."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    def wait(self, timeout_s: float = 30.0) -> None:
        """Return when the collector has acknowledged it; EmitError otherwise."""
        self._emitter.flush(timeout_s)

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.to_thread(self.wait).__await__()


def reward(
    value: float | None = None,
    *,
    name: str = "reward",
    label: str | None = None,
    span: Any = None,
    explanation: str | None = None,
    choice: int | None = None,
    source: str | None = None,
    identifier: str | None = None,
) -> Sent:
    """Reward what is going on, or what `span` says: a span, a rollout, an OpenAI answer, "trace:span".

    EmitError when there is nothing to reward: no span is active and none was named.
    """
    return feedback(
        value,
        name=name,
        label=label,
        explanation=explanation,
        choice=choice,
        source=source,
        identifier=identifier,
        **_target(span),
    )


def feedback(
    value: float | None = None,
    *,
    name: str = "reward",
    label: str | None = None,
    trace: str | None = None,
    span: str | None = None,
    response: str | None = None,
    session: str | None = None,
    rollout: str | None = None,
    explanation: str | None = None,
    choice: int | None = None,
    source: str | None = None,
    identifier: str | None = None,
    endpoint: str | None = None,
) -> Sent:
    """Send one evaluation of one thing: a trace, a span (`span="trace:span"`, or with `trace`), a response, a session, a rollout.

    EmitError when none or several are named, with neither value nor label, or a value that is not finite.
    """
    if span is not None and ":" in span:
        if trace is not None:
            raise EmitError("name the span as 'trace:span' or by trace and span, not both")
        trace, _, span = span.partition(":")
    emitter = _emitter(endpoint)
    emitter.evaluation(
        name,
        value=value,
        label=label,
        explanation=_cleaned(explanation),
        rollout_id=rollout,
        trace_id=trace,
        span_id=span,
        response_id=response,
        session_id=session,
        choice=choice,
        source=source,
        identifier=identifier,
    )
    return Sent(emitter)


def _target(given: Any) -> dict[str, str]:
    from otel_lightning.instrumentation.provider import telemetry
    from otel_lightning.instrumentation.rollouts import Run
    from otel_lightning.instrumentation.rollouts import current as current_run

    if given is None:
        run = current_run()
        if run is not None and trace.get_current_span() is run.span:
            return {"rollout": run.id}  # its trace may hold other episodes
        current = trace.get_current_span().get_span_context()
        made = telemetry()
        if not current.is_valid and made is not None and made.root is not None:
            if made.settings.rollout_id is not None:
                return {"rollout": made.settings.rollout_id}
            current = made.root.get_span_context()
        if not current.is_valid:
            raise EmitError("nothing to reward: no span is active; use 'with rollout():' around the run or name span=…")
        given = current
    if isinstance(given, Run):
        return {"rollout": given.id}
    if isinstance(given, trace.Span):
        given = given.get_span_context()
    if isinstance(given, trace.SpanContext):
        return {"trace": trace.format_trace_id(given.trace_id), "span": trace.format_span_id(given.span_id)}
    if isinstance(given, str) and ":" in given:
        return {"span": given}
    response_id = given if isinstance(given, str) else getattr(given, "id", None)
    if isinstance(response_id, str) and response_id:
        return {"response": response_id}
    raise EmitError(f"span={given!r:.60} is no span, rollout, answer with an id or 'trace:span'")


def _emitter(endpoint: str | None) -> Emitter:
    where = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or DEFAULT_ENDPOINT
    with _lock:
        if where not in _emitters:
            if not _emitters:
                _at_end()
            _emitters[where] = Emitter(where, service_name=os.environ.get("OTEL_SERVICE_NAME") or "lightning-feedback")
        return _emitters[where]


def _at_end() -> None:
    from otel_lightning.instrumentation.provider import telemetry

    made = telemetry()
    if made is not None:
        made.at_end.append(_flush)
    else:
        atexit.register(_flush_and_say)


def _flush(seconds: float) -> None:
    for emitter in list(_emitters.values()):
        with contextlib.suppress(EmitError):  # said at exit, by `unsent`
            emitter.flush(max(0.1, seconds))


def _flush_and_say() -> None:
    """At the end of a process that is not instrumented."""
    for where, emitter in list(_emitters.items()):
        if reachable(where):
            with contextlib.suppress(EmitError):
                emitter.flush(5.0)
        if emitter.unsent:
            logging.getLogger("otel_lightning").warning(
                "otel-lightning: %d rewards were not taken by %s", emitter.unsent, where
            )


def unsent() -> int:
    """Records that no collector has taken."""
    return sum(emitter.unsent for emitter in list(_emitters.values()))


def _forget() -> None:
    """A forked child makes its own: the threads and connections stayed with the parent."""
    global _lock
    _lock = threading.Lock()
    _emitters.clear()


def _cleaned(text: str | None) -> str | None:
    from otel_lightning.instrumentation.provider import telemetry

    made = telemetry()
    if text is None or made is None:
        return text
    return made.privacy.text(text, "gen_ai.evaluation.explanation")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
