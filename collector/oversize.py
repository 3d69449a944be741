"""Sizes within a row: what is larger is cut, counted where OTLP counts what was dropped, and so never trained on.

    a text or bytes value, a span's name      2 MiB, cut at a character
    attributes of one thing                   100,000
    events or links of a span                 100,000

Bodies up to 2 MiB are not looked at: what is in them is bounded well enough by their own size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from otel_lightning.collector.check import REQUESTS, Accepted

MAX_VALUE_BYTES = 2 << 20  # the longest real prompts are a few hundred kilobytes
MAX_ITEMS = 100_000


@dataclass
class Counts:
    """What was cut since start."""

    values: int = 0
    items: int = 0


def cut(accepted: Accepted, counts: Counts) -> Accepted:
    """`accepted` within the limits; the same object when it was."""
    body = accepted.body
    if len(body) <= MAX_VALUE_BYTES or accepted.signal == "metrics":
        return accepted
    request = REQUESTS[accepted.signal].FromString(body)
    values, items = counts.values, counts.items
    groups = request.resource_spans if accepted.signal == "spans" else request.resource_logs
    for of in groups:
        _cut_attributes(of.resource, counts)
        for scope in of.scope_spans if accepted.signal == "spans" else of.scope_logs:
            for row in scope.spans if accepted.signal == "spans" else scope.log_records:
                _cut_row(accepted.signal, row, counts)
    if (values, items) == (counts.values, counts.items):
        return accepted
    return replace(accepted, body=request.SerializeToString())


def _cut_row(signal: str, row: Any, counts: Counts) -> None:
    _cut_attributes(row, counts)
    if signal == "events":
        if row.HasField("body") and (cut := _cut_value(row.body)):
            row.dropped_attributes_count += cut
            counts.values += cut
        return
    if _is_long(row.name):
        row.name = _prefix(row.name)
        row.dropped_attributes_count += 1
        counts.values += 1
    for items, dropped in ((row.events, "dropped_events_count"), (row.links, "dropped_links_count")):
        over = len(items) - MAX_ITEMS
        if over > 0:
            del items[MAX_ITEMS:]
            setattr(row, dropped, getattr(row, dropped) + over)
            # A call whose events are missing lost data like one whose attributes are.
            row.dropped_attributes_count += 1
            counts.items += over
        for item in items:
            _cut_attributes(item, counts)


def _cut_attributes(owner: Any, counts: Counts) -> None:
    over = len(owner.attributes) - MAX_ITEMS
    if over > 0:
        del owner.attributes[MAX_ITEMS:]
        owner.dropped_attributes_count += over
        counts.items += over
    cut = sum(_cut_value(item.value) for item in owner.attributes)
    if cut:
        owner.dropped_attributes_count += cut
        counts.values += cut


def _cut_value(value: Any) -> int:
    """How many texts within `value` were cut."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        if _is_long(value.string_value):
            value.string_value = _prefix(value.string_value)
            return 1
    elif kind == "bytes_value":
        if len(value.bytes_value) > MAX_VALUE_BYTES:
            value.bytes_value = value.bytes_value[:MAX_VALUE_BYTES]
            return 1
    elif kind == "array_value":
        return sum(map(_cut_value, value.array_value.values))
    elif kind == "kvlist_value":
        return sum(_cut_value(item.value) for item in value.kvlist_value.values)
    return 0


def _is_long(text: str) -> bool:
    return len(text) * 4 > MAX_VALUE_BYTES and len(text.encode()) > MAX_VALUE_BYTES


def _prefix(text: str) -> str:
    return text.encode()[:MAX_VALUE_BYTES].decode("utf-8", "ignore")
