"""What a deletion takes out: the rows of a trace, what was said about them, and every mention of the id.

The same rules in two forms. `Refusal` applies them to requests before they are stored, so that a resend stays out;
`erase` applies them to rows that are stored. A row goes when it belongs to a deleted trace, when it is feedback that
names such a trace, or a response, tool call, rollout, session or conversation that only such traces had. Rows of other
traces stay: their links to a deleted trace go, and its id in their texts becomes `[deleted]`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute
import re2

from otel_lightning.collector.check import REQUESTS, Accepted
from otel_lightning.collector.config import RedactConfig
from otel_lightning.collector.messages import add_reason, keep
from otel_lightning.collector.native import Bytes
from otel_lightning.collector.redact import Rules
from otel_lightning.collector.wal import Frame
from otel_lightning.store.tombstones import Deleted, name_hash

pc: Any = pyarrow.compute  # makes its functions when imported: type checkers see none
MARK = "[deleted]"
# column of `spans`, attribute key of events -> kind of name
NAME_COLUMNS = {
    "response_id": "response",
    "tool_call_id": "tool_call",
    "rollout_id": "rollout",
    "session_id": "session",
    "conversation_id": "conversation",
}
NAME_KEYS = {
    "gen_ai.response.id": "response",
    "lightning.target.response_id": "response",
    "gen_ai.tool.call.id": "tool_call",
    "lightning.target.tool_call_id": "tool_call",
    "lightning.rollout.id": "rollout",
    "session.id": "session",
    "gen_ai.conversation.id": "conversation",
}
TARGET_TRACE = "lightning.target.trace_id"
FEEDBACK_PREFIXES = (
    "evaluations.",
    "annotations.",
    "trace.evaluations.",
    "trace.annotations.",
    "session.evaluations.",
    "session.annotations.",
)
SEARCH_MEMORY_BYTES = 256 << 20  # of the automaton over all deleted ids


class Refusal:
    """Takes deleted traces out of requests. A request that mentions none costs one search over its bytes."""

    def __init__(self, deleted: Deleted) -> None:
        self.deleted = deleted
        self._ids = frozenset(bytes.fromhex(trace) for trace in deleted.traces)
        self._mentions = _search(deleted.traces, raw=True)
        self._in_text = _search(deleted.traces, raw=False)

    def apply(self, accepted: Accepted) -> Accepted:
        """What may be stored of `accepted`; rows taken out are counted as rejected."""
        body, gone = self._body(accepted.signal, accepted.body)
        if body is accepted.body:
            return accepted
        why = f"{gone} rows belong to deleted traces" if gone else ""
        return replace(
            accepted,
            body=body,
            rows=accepted.rows - gone,
            rejected=accepted.rejected + gone,
            reason=add_reason(accepted.reason, why),
        )

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """What may stay of a log."""
        for frame in frames:
            body, gone = self._body(frame.signal, frame.body)
            if frame.rows > gone:
                yield frame if body is frame.body else replace(frame, body=body, rows=frame.rows - gone)

    def _body(self, signal: str, body: Bytes) -> tuple[Bytes, int]:
        named = signal == "events" and bool(self.deleted.names)
        if not named and self._mentions is not None and self._mentions.search(bytes(body)) is None:
            return body, 0
        request = REQUESTS[signal].FromString(bytes(body))
        gone, changed = getattr(self, f"_{signal}")(request)
        left = request.SerializeToString() if gone or changed else body
        if self._in_text is None or self._in_text.search(bytes(left)) is not None:
            left = self._in_texts.apply(Accepted(signal, left, rows=1)).body
        return left, gone

    @cached_property
    def _in_texts(self) -> Rules:
        """The editor that replaces the ids in whatever text of other traces mentions them."""
        return Rules(RedactConfig(patterns={MARK.strip("[]"): _any_of(self.deleted.traces)}))

    def _spans(self, request: Any) -> tuple[int, bool]:
        gone, changed = 0, False
        for scope in (scope for of in request.resource_spans for scope in of.scope_spans):
            before = len(scope.spans)
            keep(scope.spans, lambda span: not self._goes(span))
            gone += before - len(scope.spans)
            for span in scope.spans:
                changed |= keep(span.links, lambda link: link.trace_id not in self._ids)
        return gone, changed

    def _goes(self, span: Any) -> bool:
        if span.trace_id in self._ids:
            return True
        links = any(link.trace_id in self._ids for link in span.links)
        return any(
            (item.key == TARGET_TRACE and item.value.string_value.lower() in self.deleted.traces)
            or (links and item.key.startswith(FEEDBACK_PREFIXES))
            for item in span.attributes
        )

    def _events(self, request: Any) -> tuple[int, bool]:
        gone = 0
        for of in request.resource_logs:
            rollout = [item.value.string_value for item in of.resource.attributes if item.key == "lightning.rollout.id"]
            whole = any(name_hash("rollout", name) in self.deleted.names for name in rollout)
            for scope in of.scope_logs:
                before = len(scope.log_records)
                keep(scope.log_records, lambda record, whole=whole: not (whole or self._names(record)))
                gone += before - len(scope.log_records)
        return gone, False

    def _names(self, record: Any) -> bool:
        return record.trace_id in self._ids or any(
            (item.key == TARGET_TRACE and item.value.string_value.lower() in self.deleted.traces)
            or (item.key in NAME_KEYS and name_hash(NAME_KEYS[item.key], item.value.string_value) in self.deleted.names)
            for item in record.attributes
        )

    def _metrics(self, request: Any) -> tuple[int, bool]:
        changed = False
        for metric in (m for of in request.resource_metrics for scope in of.scope_metrics for m in scope.metrics):
            kind = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points if kind else ():
                if kind != "summary":
                    changed |= keep(point.exemplars, lambda exemplar: exemplar.trace_id not in self._ids)
        return 0, changed


def erase(table: pa.Table, signal: str, deleted: Deleted) -> pa.Table:
    """`table` without what a deletion takes out; the same object when it held nothing of that."""
    if not deleted or not table.num_rows:
        return table
    if signal in ("spans", "events"):
        table = _filter(table, pc.invert(pc.fill_null(pc.is_in(table["trace_id"], pa.array(deleted.traces)), False)))
    if signal == "spans":
        table = _without_feedback_and_links(table, deleted)
    elif signal == "events":
        table = _filter(table, pa.array([not _event_goes(row, deleted) for row in _event_names(table)], pa.bool_()))
    else:
        table = _without_exemplars(table, deleted)
    return _without_mentions(table, deleted)


def mentions(table: pa.Table, deleted: Deleted) -> bool:
    """Whether any text of `table` holds the id of a deleted trace."""
    needle = _any_of(deleted.traces)
    return any(_contains(column, needle) for column in table.columns)


def names_of(spans: pa.Table, traces: frozenset[str]) -> set[tuple[str, str]]:
    """The names (kind, name) that rows of these traces have, and no row of another trace in this table."""
    own, others = set[tuple[str, str]](), set[tuple[str, str]]()
    columns = spans.select(["trace_id", *NAME_COLUMNS]).to_pydict()
    for index, trace in enumerate(columns["trace_id"]):
        found = own if trace in traces else others
        for column, kind in NAME_COLUMNS.items():
            if columns[column][index]:
                found.add((kind, columns[column][index]))
    return own - others


def _any_of(traces: frozenset[str]) -> str:
    return f"(?i:{'|'.join(sorted(traces))})"


def _search(traces: frozenset[str], *, raw: bool) -> Any:
    """A pattern over bytes for the ids as text and, `raw`, as OTLP carries them; None when they are too many for one."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = SEARCH_MEMORY_BYTES
    options.encoding = re2.Options.Encoding.LATIN1
    forms = [_any_of(traces)] if traces else []
    if raw:
        forms += ["".join(f"\\x{byte:02x}" for byte in bytes.fromhex(trace)) for trace in sorted(traces)]
    try:
        return re2.compile("|".join(forms).encode(), options) if forms else None
    except re2.error:
        return None


def _filter(table: pa.Table, kept: Any) -> pa.Table:
    return table if pc.all(kept).as_py() is not False else table.filter(kept)


def _without_feedback_and_links(table: pa.Table, deleted: Deleted) -> pa.Table:
    links = table["links"].to_pylist()
    linked = [any(link["trace_id"] in deleted.traces for link in row or ()) for row in links]
    targets = table["target_trace_id"].to_pylist()
    if not any(linked) and not any(target in deleted.traces for target in targets):
        return table
    keys = [
        {key for column in ("attributes_str", "attributes_int", "attributes_dbl") for key, _ in table[column][index].as_py() or ()}
        if linked[index] else set()
        for index in range(table.num_rows)
    ]  # fmt: skip
    stays = [
        targets[index] not in deleted.traces
        and not (linked[index] and any(key.startswith(FEEDBACK_PREFIXES) for key in keys[index]))
        for index in range(table.num_rows)
    ]
    kept = [[link for link in row or () if link["trace_id"] not in deleted.traces] for row in links]
    position = table.column_names.index("links")
    field = table.schema.field(position)
    return table.set_column(position, field, pa.array(kept, field.type)).filter(pa.array(stays, pa.bool_()))


def _event_names(table: pa.Table) -> Iterator[tuple[dict[str, str], str]]:
    for attributes, resource in zip(
        table["attributes_str"].to_pylist(), table["resource_attributes"].to_pylist(), strict=True
    ):
        yield dict(attributes or ()), resource or "{}"


def _event_goes(row: tuple[dict[str, str], str], deleted: Deleted) -> bool:
    attributes, resource = row
    if attributes.get(TARGET_TRACE, "").lower() in deleted.traces:
        return True
    if any(key in attributes and name_hash(kind, attributes[key]) in deleted.names for key, kind in NAME_KEYS.items()):
        return True
    if "lightning.rollout.id" not in resource:
        return False
    return name_hash("rollout", str(json.loads(resource).get("lightning.rollout.id"))) in deleted.names


def _without_exemplars(table: pa.Table, deleted: Deleted) -> pa.Table:
    ids = {base64.b64encode(bytes.fromhex(trace)).decode() for trace in deleted.traces}
    points = table["point"].to_pylist()
    if not any(point and any(one in point for one in ids) for point in points):
        return table
    cleaned: list[str | None] = []
    for point in points:
        if point and any(one in point for one in ids):
            value = json.loads(point)
            value["exemplars"] = [item for item in value.get("exemplars", ()) if item.get("traceId") not in ids]
            point = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        cleaned.append(point)
    position = table.column_names.index("point")
    return table.set_column(position, table.schema.field(position), pa.array(cleaned, pa.string()))


def _without_mentions(table: pa.Table, deleted: Deleted) -> pa.Table:
    needle = _any_of(deleted.traces)
    pattern = re2.compile(needle)
    for position, field in enumerate(table.schema):
        if _contains(table.column(position), needle):
            cleaned = [_replaced(value, pattern) for value in table.column(position).to_pylist()]
            table = table.set_column(position, field, pa.array(cleaned, field.type))
    return table


def _replaced(value: Any, pattern: Any) -> Any:
    if isinstance(value, str):
        return pattern.sub(MARK, value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, pattern) for item in value)
    if isinstance(value, dict):
        return {_replaced(key, pattern): _replaced(item, pattern) for key, item in value.items()}
    return value


def _contains(column: Any, needle: str) -> bool:
    """Whether a column, however nested, holds a text that matches."""
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        kind = chunk.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found = pc.any(pc.match_substring_regex(chunk, needle)).as_py() is True
        elif pa.types.is_map(kind):
            found = _contains(chunk.keys, needle) or _contains(chunk.items, needle)
        elif pa.types.is_list(kind):
            found = _contains(chunk.values, needle)
        elif pa.types.is_struct(kind):
            found = any(_contains(chunk.field(index), needle) for index in range(kind.num_fields))
        else:
            found = False
        if found:
            return True
    return False
