"""The collector's own counters in Prometheus text form. Counts only, never content."""

from __future__ import annotations

from collections.abc import Mapping

from otel_lightning.collector.ingest import Ingest


def prometheus(ingest: Ingest, connections: int) -> str:
    """One scrape; `connections` are the HTTP ones open now."""
    counters = ingest.counters
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> None:
        lines.append(f"# HELP lightning_collect_{name} {text}")
        lines.append(f"# TYPE lightning_collect_{name} {kind}")
        lines.extend(f"lightning_collect_{name}{labels} {value}" for labels, value in values.items())

    def by(label: str, counts: Mapping[str, int]) -> dict[str, float]:
        return {f'{{{label}="{key}"}}': count for key, count in sorted(counts.items())}

    metric("acknowledged_total", "counter", "Rows acknowledged, durable in the log.", by("signal", counters.received))
    metric("stored_total", "counter", "Rows written to Parquet since start.", by("signal", counters.stored))
    metric("refused_total", "counter", "Requests refused, by reason.", by("reason", dict(counters.refused)))
    metric("rejected_rows_total", "counter", "Rows rejected for invalid ids.", {"": counters.rejected_rows})
    metric("queued_bytes", "gauge", "Accepted bytes that are not durable yet.", {"": counters.queued_bytes})
    metric("pending_bytes", "gauge", "Durable bytes that are not in Parquet yet.", {"": counters.pending_bytes})
    metric("set_aside_total", "counter", "Pieces that could not be read, in quarantine.", {"": counters.set_aside})
    metric("syncs_total", "counter", "Group commits.", {"": counters.syncs})
    metric("sync_seconds_total", "counter", "Seconds spent in group commits.", {"": round(counters.sync_s, 6)})
    metric("segments_total", "counter", "Log segments turned into Parquet.", {"": counters.segments})
    metric("convert_seconds_total", "counter", "Seconds spent on that.", {"": round(counters.convert_s, 6)})
    metric("http_connections", "gauge", "Open HTTP connections.", {"": connections})
    return "\n".join(lines) + "\n"
