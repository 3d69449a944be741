"""Outcomes and episode marks as OTLP log records: `gen_ai.evaluation.result`, `lightning.rollout.start` and `.end`.

    emitter = Emitter("http://127.0.0.1:4318")
    emitter.evaluation("resolved", value=1.0, session_id="chat-17")
    emitter.flush()          # returns when the collector has acknowledged everything, raises EmitError otherwise

Nothing but OpenTelemetry is imported: this runs in strangers' processes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from otel_lightning.instrumentation.endpoint import exporter

EVALUATION, START, END = "gen_ai.evaluation.result", "lightning.rollout.start", "lightning.rollout.end"
SPLITS = ("train", "eval", "test")
QUEUE_RECORDS = 65_536
BATCH_RECORDS = 512
DELAY_MS = 200


class EmitError(Exception):
    """A record is not right, or the collector did not take what was sent; one line that says what to do."""


class Emitter:
    """Sends records to an OTLP endpoint in the background. Thread-safe.

    `endpoint` is the base URL, as in OTEL_EXPORTER_OTLP_ENDPOINT; the protocol follows from what listens there (endpoint.py).
    Headers come from OTEL_EXPORTER_OTLP_HEADERS.
    """

    def __init__(self, endpoint: str, *, service_name: str = "lightning-feedback") -> None:
        _check(endpoint)
        self.endpoint = endpoint
        self._exporter = _Counting(lambda: exporter("LOGS", endpoint))
        self._provider = LoggerProvider(
            resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False
        )
        self._processor = BatchLogRecordProcessor(
            self._exporter,
            max_queue_size=QUEUE_RECORDS,
            max_export_batch_size=BATCH_RECORDS,
            schedule_delay_millis=DELAY_MS,
        )
        self._provider.add_log_record_processor(self._processor)
        self._logger = self._provider.get_logger("otel_lightning.instrumentation")
        self._lock = threading.Lock()
        self._emitted = 0

    def rollout_start(
        self,
        rollout_id: str,
        *,
        task_id: str | None = None,
        group_id: str | None = None,
        split: str | None = None,
        attempt: int | None = None,
        session_id: str | None = None,
        conversation_id: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Announce an episode, and by which session, conversation or trace its calls can be known."""
        if split is not None and split not in SPLITS:
            raise EmitError(f"split '{split}' must be one of {', '.join(SPLITS)}")
        self._emit(
            START,
            {
                "lightning.rollout.id": rollout_id,
                "lightning.task.id": task_id,
                "lightning.group.id": group_id,
                "lightning.split": split,
                "lightning.attempt": attempt,
                "session.id": session_id,
                "gen_ai.conversation.id": conversation_id,
                "lightning.target.trace_id": _hex(trace_id, 32, "trace_id"),
            },
        )

    def rollout_end(
        self,
        rollout_id: str,
        *,
        status: str = "finished",
        reason: str | None = None,
        calls: int | None = None,
        spans: int | None = None,
        attempt: int | None = None,
    ) -> None:
        """Announce the end of an episode; `calls` is how many answers its model server counted for it."""
        self._emit(
            END,
            {
                "lightning.rollout.id": rollout_id,
                "lightning.attempt": attempt,
                "status": status,
                "reason": reason,
                "calls": calls,
                "spans": spans,
            },
        )

    def evaluation(
        self,
        name: str,
        *,
        value: float | None = None,
        label: str | None = None,
        explanation: str | None = None,
        rollout_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        response_id: str | None = None,
        session_id: str | None = None,
        choice: int | None = None,
        source: str | None = None,
        identifier: str | None = None,
        version: str | None = None,
    ) -> None:
        """Send one evaluation of exactly one target: a rollout, a trace, a span (with its trace), a response or a session.

        EmitError when there is no target or several, neither value nor label, or a value that is not finite.
        """
        targets = [t for t in (rollout_id, trace_id, response_id, session_id) if t]
        if len(targets) != 1:
            raise EmitError("name exactly one target: a rollout, a trace (and span), a response or a session")
        if span_id and not trace_id:
            raise EmitError("a span is named by its trace and itself; give both")
        if value is None and label is None:
            raise EmitError("give a value or a label")
        if value is not None and not math.isfinite(value):
            raise EmitError(f"the value {value} is not a finite number")
        if not name:
            raise EmitError("give the evaluation a name")
        self._emit(
            EVALUATION,
            {
                "gen_ai.evaluation.name": name,
                "gen_ai.evaluation.score.value": None if value is None else float(value),
                "gen_ai.evaluation.score.label": label,
                "gen_ai.evaluation.explanation": explanation,
                "lightning.rollout.id": rollout_id,
                "lightning.target.trace_id": _hex(trace_id, 32, "trace id"),
                "lightning.target.span_id": _hex(span_id, 16, "span id"),
                "lightning.target.choice": choice,
                "gen_ai.response.id": response_id,
                "session.id": session_id,
                "lightning.reward.source": source,
                "lightning.reward.identifier": identifier,
                "lightning.reward.version": version,
            },
        )

    @property
    def unsent(self) -> int:
        """Records that were emitted and not acknowledged."""
        with self._lock:
            return max(0, self._emitted - self._exporter.taken)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when everything emitted so far was acknowledged; EmitError in one line otherwise."""
        self._provider.force_flush(int(timeout_s * 1000))
        with self._lock:
            emitted = self._emitted
        taken = self._exporter.taken
        if taken < emitted:
            raise EmitError(
                f"{emitted - taken} of {emitted} records were not taken by {self.endpoint}; is lightning-collect running there?"
            )

    def close(self) -> None:
        """Flush and stop."""
        try:
            self.flush()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop without looking back: what was not flushed before may be lost."""
        self._provider.shutdown()

    def _emit(self, event_name: str, attributes: dict[str, Any]) -> None:
        given = {key: value for key, value in attributes.items() if value is not None}
        with self._lock:
            self._emitted += 1
        self._logger.emit(event_name=event_name, timestamp=time.time_ns(), attributes=given)


class _Counting(LogRecordExporter):
    """Counts what the collector acknowledged, so that a loss is never silent."""

    def __init__(self, make: Callable[[], LogRecordExporter]) -> None:
        self._make = make
        self._inner: LogRecordExporter | None = None
        self.taken = 0

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        if self._inner is None:
            self._inner = self._make()
        result = self._inner.export(batch)
        if result is LogRecordExportResult.SUCCESS:
            self.taken += len(batch)
        return result

    def shutdown(self) -> None:
        if self._inner is not None:
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _check(endpoint: str) -> None:
    if not endpoint.startswith(("http://", "https://")):
        raise EmitError(f"endpoint '{endpoint}' must begin with http:// or https://, e.g. http://127.0.0.1:4318")


def _hex(value: str | None, digits: int, what: str) -> str | None:
    if value is None:
        return None
    lowered = value.lower()
    if len(lowered) != digits or set(lowered) - set("0123456789abcdef"):
        raise EmitError(f"{what} '{value}' must be {digits} hex digits")
    return lowered
