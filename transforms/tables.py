"""Every table of a lake as a view of one read-only DuckDB connection."""

from __future__ import annotations

from pathlib import Path

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.store.lake import SIGNALS, Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.store.tombstones import read_deleted
from otel_lightning.transforms import steps
from otel_lightning.transforms.derived import Manifest, define_deleted, define_live
from otel_lightning.transforms.guard import lock
from otel_lightning.transforms.shapes import empty_relation


def open_tables(
    lake: Path, *, threads: int | None = None, locked: bool = False, writable: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with a view for each table: spans, events, metrics; calls … funnel after the first transform.

    With `locked`, only files under the lake can be read (and under `writable` written) and no setting can be changed: for
    SQL that a user typed. LightningError when there is no lake.
    """
    home = Lake.existing(lake)
    connection = duckdb.connect()
    if threads is not None:
        connection.execute(f"set threads = {threads:d}")
    deleted = read_deleted(home)
    define_deleted(connection, deleted.traces)
    for signal in SIGNALS:
        paths = [str(path) for path in live_files(home, signal)]
        source = (
            f"select * from read_parquet({steps.path_list(paths)}, hive_partitioning = false, union_by_name = true)"
        )
        if deleted and signal != "metrics":
            source += " where coalesce(trace_id not in (select trace_id from deleted_traces), true)"
        connection.execute(f"create temp view {signal} as {source if paths else empty_relation(signal)}")
    manifest = Manifest.read(home)
    if manifest is not None:
        stale = bool(deleted) and manifest.deleted != deleted.sha256
        define_live(connection, home, manifest, hide_deleted=stale)
        for view in steps.views():
            connection.execute(f"create temp view {steps.quoted(view.table)} as {view.text}")
    if locked:
        lock(connection, *(folder for folder in (home.root, writable) if folder is not None))
    return connection


def require_derived(lake: Path) -> Manifest:
    """The manifest of the newest run; LightningError with the command to type when there is none."""
    manifest = Manifest.read(Lake.existing(lake))
    if manifest is None:
        raise LightningError(f"nothing is derived in {lake} yet; run: lightning-transform run --lake {lake}")
    return manifest
