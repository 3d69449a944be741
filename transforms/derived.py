"""What a run leaves in `derived/`: append-only Parquet by run, a list of live revisions, a manifest replaced by rename.

derived/calls/run=000042/part.parquet     rows of the keys that run 42 (re)computed; the newest run of a key wins
derived/live/run=000042.parquet           (table, key, revision): which run's rows of a key are live
derived/manifest.json                     the run, its inputs, its configuration, `now`, the files of each table
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.store.files import disk_problem, sync_folder, write_json
from otel_lightning.store.lake import Lake
from otel_lightning.transforms.steps import literal, path_list, quoted

# Tables stored by key; credits and trajectories are stored narrow and shown through views.
KEYED = ("calls", "scopes", "tools", "rollouts", "rewards", "returns", "credits", "trajectories")
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


def write_parquet(connection: duckdb.DuckDBPyConnection, lake: Lake, query: str, relative: str) -> str:
    """Write a query's rows as one Parquet file that appears whole; returns its path relative to the lake."""
    path = lake.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        connection.execute(
            f"copy ({query}) to {literal(str(temporary))} (format parquet, compression zstd, row_group_size 65536)"
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


def define_live(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, prefix: str = "") -> None:
    """Views over the live rows of every stored table, plus `live_keys` (table_name, key, revision).

    A run sets `prefix`, since its steps make tables of the plain names. LightningError when a file that the manifest
    names is missing or damaged: nothing is answered from half a table.
    """
    for path in (path for paths in manifest.files.values() for path in paths):
        if not (lake.root / path).is_file():
            raise LightningError(_again(lake, path, "is missing"))
    try:
        _define_live(connection, lake, manifest, prefix)
    except duckdb.Error as error:
        named = next((p for ps in manifest.files.values() for p in ps if p in str(error)), lake.derived)
        raise LightningError(_again(lake, named, "is damaged")) from None


def _again(lake: Lake, path: str | Path, what: str) -> str:
    return (
        f"{lake.root / path} {what}; everything derived can be made again: remove {lake.derived} and run "
        f"lightning-transform run --lake {lake.root}"
    )


def _define_live(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, prefix: str) -> None:
    live = path_list(_absolute(lake, manifest.files["live"]))
    connection.execute(f"create temp view {prefix}live_keys as select * from read_parquet({live})")
    for table in KEYED:
        files = path_list(_absolute(lake, manifest.files[table]))
        # union_by_name: columns may be added from one run to the next, never renamed.
        connection.execute(
            f"create temp view {quoted(prefix + STORED_NAME.get(table, table))} as "
            f"select data.* exclude (live_key) "
            f"from read_parquet({files}, hive_partitioning = false, union_by_name = true) as data "
            f"semi join (select * from {prefix}live_keys where table_name = {literal(table)}) as live "
            f"on live.key = data.live_key and live.revision = data.revision"
        )
    baselines = path_list(_absolute(lake, manifest.files["baselines"]))
    connection.execute(
        f"create temp view {prefix}baselines as select * from read_parquet({baselines}, hive_partitioning = false)"
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
