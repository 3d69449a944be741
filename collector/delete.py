"""lightning-collect delete TRACE_ID: afterwards its content, its ids and its feedback are in no file of the collector.

    settle       whatever is acknowledged is in Parquet
    look         the model server's records of the same calls, and the names that only these traces have: response ids,
                 sessions, rollouts
    bury         tombstones: readers leave the traces out at once, the collector refuses them
    settle       nothing of them is in the log or will get there
    rewrite      every data file that mentions them, without them; the old files go at once
    quarantine   every piece that mentions them goes

Interrupted anywhere, the same command again finishes. `derived/` is cleaned by the next lightning-transform run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from otel_lightning.app.errors import LightningError, UsageError
from otel_lightning.collector.erase import erase, mentions, names_of
from otel_lightning.collector.parquet import ParquetConverter, parquet_bytes, read_rows
from otel_lightning.collector.recovery import Content, Origin
from otel_lightning.collector.rewrite import (
    Make,
    drawers,
    maintenance,
    remove_replaced,
    remove_unfinished,
    replace_files,
)
from otel_lightning.collector.settle import settle
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.store.policies import Policies
from otel_lightning.store.tombstones import HEX, TRACE_ID_DIGITS, Deleted, bury, name_hash, read_deleted

NAMES = ["response_id", "tool_call_id", "rollout_id", "session_id", "conversation_id"]


@dataclass
class DeletedReport:
    """What a deletion did."""

    rows: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    traces: int = 0
    files: int = 0
    quarantined: int = 0
    unsearchable: int = 0  # pieces in quarantine that nobody can read
    policies: list[str] = field(default_factory=list)
    runs_unknown: list[str] = field(default_factory=list)  # policies whose run folder was not found


def delete(lake: Lake, given: Sequence[str], runs: Path) -> DeletedReport:
    """Delete traces by id (32 hex digits). UsageError for what is no id; BusyError when the collector does not settle."""
    traces = frozenset(_trace_id(text) for text in given)
    report = DeletedReport()
    try:
        settle(lake)
        traces = _with_token_records(lake, traces)
        report.traces = len(traces)
        names = _names(lake, traces)
        trained = _sample_ids(lake, traces)
        with maintenance(lake):
            bury(lake, traces, (name_hash(kind, name) for kind, name in names))
        settle(lake)
        with maintenance(lake):
            remove_unfinished(RealDisk(), lake, ParquetConverter())
            _rewrite(lake, read_deleted(lake), report)
        _clean_quarantine(lake, traces, report)
        report.policies, report.runs_unknown = _policies(lake, runs, trained)
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    return report


def _trace_id(text: str) -> str:
    cleaned = text.strip().lower().replace("-", "")
    if len(cleaned) != TRACE_ID_DIGITS or not set(cleaned) <= HEX:
        raise UsageError(
            f"'{text}' is no trace id; give its 32 hexadecimal digits (lightning-transform show lists them)"
        )
    return cleaned


def _with_token_records(lake: Lake, traces: frozenset[str]) -> frozenset[str]:
    """These traces, and those that are nothing but a model server's records of their calls: the same words again."""
    columns = ["trace_id", "response_id", "capture"]
    rows = [row for path in live_files(lake, "spans") for row in read_rows(path, columns).to_pylist()]
    responses = {row["response_id"] for row in rows if row["trace_id"] in traces and row["response_id"]}
    records = {row["trace_id"] for row in rows if row["capture"] is not None and row["response_id"] in responses}
    mixed = {row["trace_id"] for row in rows if row["trace_id"] in records and row["capture"] is None}
    return traces | (records - mixed)


def _names(lake: Lake, traces: frozenset[str]) -> set[tuple[str, str]]:
    """Names that rows of these traces have and no other trace in the lake has."""
    own: set[tuple[str, str]] = set()
    tables = [read_rows(path, ["trace_id", *NAMES]) for path in live_files(lake, "spans")]
    if tables:
        own = names_of(pa.concat_tables(tables), traces)
    return own


def _rewrite(lake: Lake, deleted: Deleted, report: DeletedReport) -> None:
    disk = RealDisk()
    for drawer, files in drawers(disk, lake).items():
        for entry, file in files:
            table = read_rows(lake.root / file.path)
            left = erase(table, drawer.signal, deleted)
            if left is table:
                continue
            replace_files(disk, lake, drawer, [(entry, file)], _instead(left), time.time_ns(), verify=False)
            report.files += 1
            report.rows[drawer.signal] += table.num_rows - left.num_rows
    # Also files that an earlier compaction replaced and whose grace is not over: they hold the same rows.
    remove_replaced(disk, lake, time.time_ns())
    for drawer, files in drawers(disk, lake).items():
        for _, file in files:
            if mentions(read_rows(lake.root / file.path), deleted):
                raise LightningError(f"{file.path} still mentions a deleted trace in {drawer.signal}; report this")


def _instead(table: pa.Table) -> Make:
    def make(contents: Sequence[bytes], origin: Origin) -> Content | None:
        return Content(parquet_bytes(table, origin, compression_level=3), table.num_rows) if table.num_rows else None

    return make


def _clean_quarantine(lake: Lake, traces: frozenset[str], report: DeletedReport) -> None:
    needles = [needle for trace in traces for needle in (bytes.fromhex(trace), trace.encode())]
    for path in sorted(lake.quarantine.glob("*")):
        if path.name.endswith((".reason.json", ".tmp")):
            continue
        data = path.read_bytes()
        if any(needle in data or needle in data.lower() for needle in needles):
            path.unlink()
            path.with_name(f"{path.name}.reason.json").unlink(missing_ok=True)
            report.quarantined += 1
        elif path.suffix in (".parquet", ".frame", ".wal"):
            report.unsearchable += 1


# Which policies saw it


def _sample_ids(lake: Lake, traces: frozenset[str]) -> set[str]:
    """Ids of the samples that calls of these traces may have become: what a training run notes down."""
    calls: set[tuple[str, str, int]] = set()
    for path in sorted((lake.derived / "calls").glob("run=*/*.parquet")):
        table = read_rows(path, ["trace_id", "span_id", "choices", "merged_span_ids"])
        for row in table.to_pylist():
            merged = [other.partition(":")[0] for other in row["merged_span_ids"] or ()]
            if row["trace_id"] in traces or traces.intersection(merged):
                calls.update((row["trace_id"], row["span_id"], choice) for choice in range(len(row["choices"] or [0])))
    return {
        hashlib.sha256(json.dumps([trace, span, str(choice)], separators=(",", ":")).encode()).hexdigest()
        for trace, span, choice in calls
    }


def _policies(lake: Lake, runs: Path, samples: set[str]) -> tuple[list[str], list[str]]:
    """Policies of runs that trained one of the samples before they were published, and all that came from those."""
    policies = Policies(lake.policies)
    infos = [(version, policies.get(version).info) for version in policies.versions()]
    folders = {path.parent.name: path for path in sorted(runs.rglob("trained.jsonl"))} if runs.is_dir() else {}
    first_step = {name: _first_step(path, samples) for name, path in folders.items()}
    touched: list[str] = []
    unknown: list[str] = []
    for version, info in infos:
        step = first_step.get(str(info.get("run")))
        if (step is not None and int(info.get("step", 0)) >= step) or info.get("parent") in touched:
            touched.append(version)
        elif info.get("run") is not None and info["run"] not in folders and int(info.get("step", 0)) > 0:
            unknown.append(version)
    return touched, unknown


def _first_step(path: Path, samples: set[str]) -> int | None:
    return min((step for step, trained in _trained(path) if samples.intersection(trained)), default=None)


def _trained(path: Path) -> Iterator[tuple[int, Iterable[str]]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
            yield int(record["step"]), record["samples"]
        except (ValueError, KeyError, TypeError):
            continue  # a torn last line
