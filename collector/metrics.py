"""The collector's own counters in Prometheus text form. Counts only, never content."""

from __future__ import annotations

from otel_lightning.collector.ingest import Ingest


def prometheus(ingest: Ingest) -> str:
    """One scrape."""
    counters = ingest.counters
    lines = [
        "# HELP lightning_collect_acknowledged_total Rows acknowledged, durable in the log.",
        "# TYPE lightning_collect_acknowledged_total counter",
        *(f'lightning_collect_acknowledged_total{{signal="{k}"}} {n}' for k, n in counters.received.items()),
        "# HELP lightning_collect_stored_total Rows written to Parquet since start.",
        "# TYPE lightning_collect_stored_total counter",
        *(f'lightning_collect_stored_total{{signal="{k}"}} {n}' for k, n in counters.stored.items()),
        "# HELP lightning_collect_refused_total Requests refused, by reason.",
        "# TYPE lightning_collect_refused_total counter",
        *(f'lightning_collect_refused_total{{reason="{k}"}} {n}' for k, n in sorted(counters.refused.items())),
        "# HELP lightning_collect_pending_bytes Acknowledged bytes that are not in Parquet yet.",
        "# TYPE lightning_collect_pending_bytes gauge",
        f"lightning_collect_pending_bytes {counters.pending_bytes}",
        "# HELP lightning_collect_quarantined_total Damaged log tails set aside at start.",
        "# TYPE lightning_collect_quarantined_total counter",
        f"lightning_collect_quarantined_total {counters.quarantined}",
    ]
    return "\n".join(lines) + "\n"
