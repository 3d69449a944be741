"""What a run leaves in `derived/`: append-only Parquet by run, a list of live revisions, a manifest replaced by rename.

derived/calls/run=000042/part-0000.parquet    rows of the keys that run 42 (re)computed; the newest run of a key wins
derived/live/run=000042.parquet               (table_name, key, run, gone): run 42 recomputed a key's rows, or took them away
derived/manifest.json                         the run, its inputs, its configuration, `now`, the files of each table
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.store.files import disk_problem, sync_folder, write_json
from otel_lightning.store.lake import Lake
from otel_lightning.transforms.steps import literal, path_list, quoted

# Tables stored by key; credits and trajectories are stored narrow and shown through views.
KEYED = ("calls", "scopes", "tools", "rollouts", "answers", "rewards", "returns", "credits", "trajectories")
# Where a table's rows come from, if from no table of its name.
SOURCES = {"calls": "select * from whole_calls"}
# What only runs read: evaluations as they were sent, and where each span stands.
INTERNAL = {
    "records": "select * from reward_records",
    "places": "select trace_id, span_id, parent_span_id, rollout_id, resource_rollout_id from span_kinds",
}
STORED = (*KEYED, *INTERNAL)
# What is reduced over the live rows and written anew by each run; pairs are shown through a view.
REDUCED = {"baselines": "baselines", "pairs": "stored_pairs"}
# What was said is written a tenth cheaper in smaller portions, for 0.2% more on disk.
ROW_GROUP_ROWS, WIDE_ROW_GROUP_ROWS = 65_536, 8192
# Where a row outside any rollout says whose it is.
TRACE_COLUMN = {
    "calls": "trace_id", "scopes": "trace_id", "tools": "trace_id", "answers": "trace_id", "rewards": "target_trace_id",
}  # fmt: skip
STORED_NAME = {"credits": "stored_credits", "trajectories": "stored_trajectories"}


@dataclass
class Manifest:
    """derived/manifest.json."""

    run: int = 0
    now_unix_nano: int = 0
    sql_sha256: str = ""
    config_sha256: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    inputs: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    touched_rollouts: int = 0
    deleted: str = ""  # which deletions every derived file reflects

    @classmethod
    def read(cls, lake: Lake) -> Manifest | None:
        """The newest manifest, or None before the first run; LightningError when it is damaged."""
        path = lake.derived / "manifest.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise LightningError(
                f"{path} is damaged; remove {lake.derived} and run lightning-transform again"
            ) from None

    def write(self, lake: Lake) -> None:
        """Make this the manifest that readers follow; a copy stays under its run's number."""
        write_json(lake.derived / "manifests" / f"run={self.run:06d}.json", self.__dict__)
        write_json(lake.derived / "manifest.json", self.__dict__)


def arrived_since(paths: Iterable[Path], since: date | str | None) -> list[Path]:
    """Of the lake's files those whose folder is `day=…` from `since` on."""
    return [path for path in paths if since is None or path.parent.name.removeprefix("day=") >= str(since)]


def write_parquet(
    connection: duckdb.DuckDBPyConnection, lake: Lake, query: str, relative: str, compression_level: int = 1
) -> str:
    """Write a query's rows as one Parquet file that appears whole; returns its path relative to the lake."""
    rows = WIDE_ROW_GROUP_ROWS if relative.startswith("derived/calls/") else ROW_GROUP_ROWS
    path = lake.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        connection.execute(
            f"copy ({query}) to {literal(str(temporary))} (format parquet, compression zstd, "
            f"compression_level {compression_level}, row_group_size {rows:d})"
        )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
    except OSError as error:
        raise disk_problem(path, error) from None
    except duckdb.IOException as error:
        raise LightningError(
            f"{path} cannot be written ({str(error).splitlines()[0]}); free space or check the folder"
        ) from None
    return relative


def define_deleted(connection: duckdb.DuckDBPyConnection, deleted: Iterable[str]) -> None:
    """The table `deleted_traces`, which every reader leaves out."""
    connection.execute("create or replace temp table deleted_traces (trace_id varchar)")
    ids = [[trace] for trace in sorted(deleted)]
    if ids:
        connection.executemany("insert into deleted_traces values (?)", ids)


def define_live(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    prefix: str = "",
    *,
    hide_deleted: bool = False,
) -> None:
    """Views over the live rows of every stored table, plus `live_keys` (table_name, key, revision).

    A run sets `prefix`, since its steps make tables of the plain names. With `hide_deleted` rows of `deleted_traces`
    that are not removed yet are left out, and so are the rollouts that a deleted trace was part of. LightningError when
    a file that the manifest names is missing or damaged: nothing is answered from half a table.
    """
    if lacking := sorted({*STORED, *REDUCED, "live"} - manifest.files.keys()):
        raise LightningError(
            f"{lake.derived} was made by an older version and has no {lacking[0]}; run: lightning-transform run --lake {lake.root}"
        )
    for path in (path for paths in manifest.files.values() for path in paths):
        if not (lake.root / path).is_file():
            raise LightningError(_again(lake, path, "is missing"))
    try:
        _define_live(connection, lake, manifest, prefix, hide_deleted)
    except duckdb.Error as error:
        named = next((p for ps in manifest.files.values() for p in ps if p in str(error)), lake.derived)
        raise LightningError(_again(lake, named, "is damaged")) from None


def _again(lake: Lake, path: str | Path, what: str) -> str:
    return (
        f"{lake.root / path} {what}; everything derived can be made again: remove {lake.derived} and run "
        f"lightning-transform run --lake {lake.root}"
    )


def _define_live(
    connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, prefix: str, hide_deleted: bool
) -> None:
    if hide_deleted:
        rollouts = path_list(_absolute(lake, manifest.files["rollouts"]))
        connection.execute(
            f"create temp table deleted_rollouts as select distinct rollout_id from read_parquet({rollouts}, "
            "hive_partitioning = false, union_by_name = true) "
            "where list_has_any(trace_ids, (select list(trace_id) from deleted_traces))"
        )
    connection.execute(f"create or replace temp view {prefix}live_keys as {live_keys(lake, manifest)}")
    for table in STORED if prefix else KEYED:
        where = ""
        if hide_deleted:
            where = " where coalesce(rollout_id not in (select rollout_id from deleted_rollouts), true)"
            if column := TRACE_COLUMN.get(table):
                where += f" and coalesce({quoted(column)} not in (select trace_id from deleted_traces), true)"
        connection.execute(
            f"create or replace temp view {quoted(prefix + STORED_NAME.get(table, table))} as "
            f"select * exclude (live_key) from ({live_rows(lake, manifest, table)}) as data{where}"
        )
    for table, name in REDUCED.items():
        files = path_list(_absolute(lake, manifest.files[table]))
        where = ""
        if hide_deleted and table == "pairs":
            gone = "(select trace_id from deleted_traces)"
            where = f" where chosen_trace_id not in {gone} and rejected_trace_id not in {gone}"
        connection.execute(
            f"create or replace temp view {prefix}{name} as "
            f"select * from read_parquet({files}, hive_partitioning = false){where}"
        )


def live_keys(lake: Lake, manifest: Manifest) -> str:
    """A select of (table_name, key, revision): whose rows are live. The newest run of a key wins, and it may be gone."""
    files = path_list(_absolute(lake, manifest.files["live"]))
    return (
        "select table_name, key, run as revision from (select table_name, key, max(run) as run, arg_max(gone, run) as gone "
        f"from read_parquet({files}) group by table_name, key) where not gone"
    )


def live_rows(lake: Lake, manifest: Manifest, table: str) -> str:
    """A select of the live rows of a stored table, with `live_key` and `revision`."""
    files = path_list(_absolute(lake, manifest.files[table]))
    # union_by_name: columns may be added from one run to the next, never renamed.
    return (
        f"select data.* from read_parquet({files}, hive_partitioning = false, union_by_name = true) as data "
        f"semi join (select * from ({live_keys(lake, manifest)}) where table_name = {literal(table)}) as live "
        "on live.key = data.live_key and live.revision = data.revision"
    )


def _absolute(lake: Lake, relative: list[str]) -> list[str]:
    return [str(lake.root / path) for path in relative]


def make_folders(lake: Lake) -> None:
    """The folders of `derived/`; StorageError when the disk refuses."""
    try:
        for folder in (lake.derived, lake.derived / "manifests"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_problem(lake.derived, error) from None


def purge(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, deleted: Iterable[str]) -> int:
    """Take deleted traces out of every derived file of earlier runs; how many files were rewritten.

    A row goes when any of its values mentions a deleted trace, or when it belongs to a rollout, is a reward or a record of one
    that existed through such traces alone. Indexes of earlier runs go as they are: only the newest is ever read.
    """
    kept = {path for paths in manifest.files.values() for path in paths}
    mention = literal("(?i)" + "|".join(sorted(deleted)))
    rows = f"regexp_matches(to_json(data)::varchar, {mention})"
    old = [path for path in sorted(lake.derived.glob("*/run=*/*.parquet")) if _relative(lake, path) not in kept]
    old += [path for path in sorted(lake.derived.glob("live/run=*.parquet")) if _relative(lake, path) not in kept]
    now = {table: path_list(_absolute(lake, manifest.files[table])) for table in ("rollouts", "rewards", "records")}
    before = path_list([str(path) for path in old if path.parts[-3] == "rollouts"])
    connection.execute("create or replace temp table gone_rollouts (rollout_id varchar)")
    if before != "[]":
        connection.execute(
            f"insert into gone_rollouts select distinct rollout_id from read_parquet({before}, hive_partitioning = false, "
            f"union_by_name = true) as data where {rows} and rollout_id not in (select rollout_id from "
            f"read_parquet({now['rollouts']}, hive_partitioning = false))"
        )
    rewritten = 0
    for path in old:
        table = path.parts[-3] if path.parent.name.startswith("run=") else "live"
        if table == "keys":
            path.unlink()
            rewritten += 1
            continue
        goes = rows
        if table == "rewards":
            goes += f" or reward_id not in (select reward_id from read_parquet({now['rewards']}, hive_partitioning = false))"
        if table == "records":
            goes += f" or node not in (select node from read_parquet({now['records']}, hive_partitioning = false))"
        if table in KEYED:
            goes += " or coalesce(rollout_id in (select rollout_id from gone_rollouts), false)"
        elif table == "live":
            goes += " or key in (select rollout_id from gone_rollouts)"
        source = f"read_parquet({literal(str(path))}, hive_partitioning = false) as data"
        found = connection.execute(f"select count(*) from {source} where {goes}").fetchone()
        if found and found[0]:
            write_parquet(connection, lake, f"select * from {source} where not ({goes})", _relative(lake, path))
            rewritten += 1
    return rewritten


def _relative(lake: Lake, path: Path) -> str:
    return path.relative_to(lake.root).as_posix()
