"""Phoenix exports: pages of its REST API, saved as they come.

    GET /v1/projects/{project}/spans                  spans, OpenInference attributes and all
    GET /v1/projects/{project}/span_annotations       scores on spans, on traces, on sessions
    GET /v1/projects/{project}/trace_annotations
    GET /v1/projects/{project}/session_annotations

An annotation of a span names the span alone: its trace is looked up in the spans that are imported with it, then in the
lake. Written against a real Phoenix 20.26.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from otel_lightning.collector.imports.build import Piece, Requests, put_attributes, span_id, trace_id, unix_nano
from otel_lightning.collector.imports.source import Skipped, records

SCOPE = "phoenix"


def is_phoenix(record: Mapping[str, Any]) -> bool:
    """Whether a record is a span or an annotation of Phoenix."""
    return ("context" in record and "span_kind" in record) or ("annotator_kind" in record and "result" in record)


class Phoenix:
    """Reads several files that belong together; `known` gives the trace of a span that none of them holds."""

    def __init__(self, paths: Iterable[Path], known: Mapping[str, str], skipped: Skipped) -> None:
        self._known, self._skipped = known, skipped
        self._traces: dict[str, str] = {}
        for path in paths:
            for record in records(path, Skipped()):
                context = record.get("context")
                if isinstance(context, dict) and "span_id" in context and "trace_id" in context:
                    self._traces[str(context["span_id"])] = str(context["trace_id"])

    def pieces(self, path: Path) -> Iterator[Piece]:
        """One file's spans and annotations."""
        requests = Requests(SCOPE)
        for record in records(path, self._skipped):
            if isinstance(record.get("context"), dict):
                self._span(requests, record)
            elif "annotator_kind" in record:
                self._annotation(requests, record)
            else:
                self._skipped.count("records that are neither span nor annotation")
            yield from requests.take()
        yield from requests.take(last=True)

    def _span(self, requests: Requests, record: dict[str, Any]) -> None:
        context = record["context"]
        attributes = {"openinference.span.kind": record.get("span_kind"), **(record.get("attributes") or {})}
        parent = record.get("parent_id")
        failed = record.get("status_code") == "ERROR"
        span = requests.span(
            trace_id(str(context.get("trace_id"))),
            span_id(str(context.get("span_id"))),
            span_id(str(parent)) if parent else None,
            str(record.get("name") or ""),
            unix_nano(record.get("start_time")),
            unix_nano(record.get("end_time")),
            attributes,
            error=str(record.get("status_message") or "") if failed else None,
            ok=record.get("status_code") == "OK",
        )
        for event in record.get("events") or ():
            added = span.events.add(name=str(event.get("name") or ""), time_unix_nano=unix_nano(event.get("timestamp")))
            put_attributes(added.attributes, event.get("attributes") or {})

    def _annotation(self, requests: Requests, record: dict[str, Any]) -> None:
        result = record.get("result") or {}
        span, trace, session = (record.get(f"{what}_id") for what in ("span", "trace", "session"))
        if span:
            trace = self._traces.get(span) or self._known.get(span)
        if not trace and not session:
            self._skipped.count("annotations of spans that are neither in these files nor in the lake")
            return
        if result.get("score") is None and result.get("label") is None:
            self._skipped.count("annotations with neither score nor label")
            return
        requests.evaluation(
            str(record.get("name")),
            unix_nano(record.get("updated_at") or record.get("created_at")),
            value=result.get("score"),
            label=result.get("label"),
            explanation=result.get("explanation"),
            source=record.get("annotator_kind"),
            identifier=record.get("identifier"),
            trace_id=trace_id(trace) if trace else b"",
            span_id=span_id(span) if span else b"",
            session_id=session if not trace else None,
        )
