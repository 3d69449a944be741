"""The collector's own counters in Prometheus text form. Counts only, never content."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from otel_lightning.collector.forward import Forwarder
from otel_lightning.collector.ingest import Ingest

PREFIX = "lightning_collect_"


class Page:
    """Metrics in the order in which they are added."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, values: Mapping[str, float] | float) -> None:
        """One metric; `values` by its labels in braces."""
        self._lines += (f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}")
        found = values if isinstance(values, Mapping) else {"": values}
        self._lines += [f"{PREFIX}{name}{labels} {value}" for labels, value in found.items()]

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


def prometheus(ingest: Ingest, connections: int, forwarders: Sequence[Forwarder] = ()) -> str:
    """One scrape; `connections` are the HTTP ones open now."""
    counters, accepted, page = ingest.counters, ingest.acceptance, Page()
    add = page.add
    add("received_requests_total", "counter", "Requests received whole.", _by("signal", accepted.requests))
    add("received_bytes_total", "counter", "Their bytes, inflated.", _by("signal", accepted.bytes))
    add("acknowledged_total", "counter", "Rows acknowledged, durable in the log.", _by("signal", counters.received))
    add("stored_total", "counter", "Rows written to Parquet since start.", _by("signal", counters.stored))
    add("refused_total", "counter", "Requests refused, by reason.", _by("reason", dict(counters.refused)))
    add("rejected_rows_total", "counter", "Rows rejected out of accepted requests.", counters.rejected_rows)
    add("cut_values_total", "counter", "Texts cut because they were too long.", accepted.counts.values)
    add(
        "cut_items_total",
        "counter",
        "Attributes, events and links beyond what one thing may have.",
        accepted.counts.items,
    )
    add("queued_bytes", "gauge", "Accepted bytes that are not durable yet.", counters.queued_bytes)
    add("pending_bytes", "gauge", "Durable bytes that are not in Parquet yet.", counters.pending_bytes)
    add("wal_bytes", "gauge", "Bytes of the log on disk.", _bytes_in(ingest.lake.wal))
    add("lag_seconds", "gauge", "Age of the oldest row that is not in Parquet yet.", round(ingest.lag_s, 3))
    add("disk_free_bytes", "gauge", "Disk that is left.", ingest.free_bytes)
    add("set_aside_total", "counter", "Pieces that could not be read, in quarantine.", counters.set_aside)
    add("syncs_total", "counter", "Group commits.", counters.syncs)
    add("sync_seconds_total", "counter", "Seconds spent in group commits.", round(counters.sync_s, 6))
    add("segments_total", "counter", "Log segments turned into Parquet.", counters.segments)
    add("convert_seconds_total", "counter", "Seconds spent on that.", round(counters.convert_s, 6))
    add("http_connections", "gauge", "Open HTTP connections.", connections)
    if accepted.rules is not None:
        done = accepted.rules.counts
        add("redacted_rows_total", "counter", "Rows that redaction changed.", done.rows_changed)
        add("hidden_rows_total", "counter", "Rows stored without content.", done.rows_hidden)
        add("no_consent_rows_total", "counter", "Rows not stored for want of consent.", done.rows_dropped)
        add(
            "redaction_failures_total",
            "counter",
            "Requests whose content was hidden since a rule failed.",
            done.failures,
        )
    if forwarders:
        named = {f'{{target="{_label(one.target.name)}"}}': one for one in forwarders}
        sent = {
            _join(labels, "signal", signal): count
            for labels, one in named.items()
            for signal, count in one.counters.sent.items()
        }
        refused = {
            _join(labels, "reason", why): count
            for labels, one in named.items()
            for why, count in one.counters.refused.items()
        }
        add("forwarded_total", "counter", "Rows that a target took.", sent)
        add("forward_refused_total", "counter", "Rows that a target would not take.", refused)
        add(
            "forward_retries_total",
            "counter",
            "Attempts that failed.",
            {k: one.counters.retries for k, one in named.items()},
        )
        add(
            "forward_backlog_bytes",
            "gauge",
            "Log that a target does not have yet.",
            {k: one.waiting_bytes for k, one in named.items()},
        )
        given_up = ingest.backlog.given_up if ingest.backlog else {}
        add(
            "forward_given_up_total",
            "counter",
            "Segments beyond the backlog's limit.",
            {k: given_up.get(one.target.name, 0) for k, one in named.items()},
        )
    return str(page)


def _by(label: str, counts: Mapping[str, int]) -> dict[str, float]:
    return {f'{{{label}="{_label(key)}"}}': count for key, count in sorted(counts.items())}


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _join(labels: str, name: str, value: str) -> str:
    return f'{labels[:-1]},{name}="{_label(value)}"}}'


def _bytes_in(folder: os.PathLike[str]) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".wal"):
                    try:
                        total += entry.stat().st_size
                    except FileNotFoundError:
                        continue
    except FileNotFoundError:
        return 0
    return total
