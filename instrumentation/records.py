"""Log records on their way out, with the same rules as spans: masked, hidden or withheld before they are sent."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

from otel_lightning.instrumentation.privacy import Privacy


class RecordExporter(LogRecordExporter):
    """Made when it first sends; fails without raising."""

    def __init__(self, make: Callable[[], Any], privacy: Callable[[], Privacy]) -> None:
        self._make, self._privacy, self._inner = make, privacy, None

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Clean and send."""
        try:
            if self._inner is None:
                self._inner = self._make()
            return self._inner.export([self._cleaned(record) for record in batch] if self._privacy().active else batch)
        except Exception:
            return LogRecordExportResult.FAILURE

    def shutdown(self) -> None:
        """Stop the inner exporter, if there ever was one."""
        if self._inner is not None:
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return True

    def _cleaned(self, record: Any) -> Any:
        said = copy.copy(record.log_record)
        said.attributes = self._privacy().attributes(said.attributes or {})
        said.body = self._privacy().body(said.body)
        return dataclasses.replace(record, log_record=said)
