"""Samples, trajectories and pairs as a folder that `datasets.load_dataset` reads, or as JSON lines; nothing else is copied.

DIR/README.md                      the data card: what is in it, from which run, under which recipe
DIR/samples/train/part-0.parquet   one folder a table, one a split; with --jsonl DIR/samples/train.jsonl
DIR/manifest.json                  the run it was made from

Messages leave in the trainers' form (`prompt`, `completion`, `chosen`, `rejected`: lists of role and content), numbers as
doubles. The folder appears whole under its name; one that is there is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import printable
from otel_lightning.store.files import disk_problem, sync_folder
from otel_lightning.transforms.derived import Manifest
from otel_lightning.transforms.guard import check_expression, first_line
from otel_lightning.transforms.steps import literal, quoted
from otel_lightning.transforms.tables import open_tables, require_derived

TABLES = ("samples", "trajectories", "pairs")
MESSAGE = {
    "role": "VARCHAR",
    "content": "VARCHAR",
    "tool_calls": [{"id": "VARCHAR", "type": "VARCHAR", "function": {"name": "VARCHAR", "arguments": "VARCHAR"}}],
    "tool_call_id": "VARCHAR",
}
# Column of a table -> what trainers call it; the messages are parsed, a single one becomes a list.
RENAMED = {
    "prompt_messages": "prompt",
    "response_message": "completion",
    "chosen": "chosen",
    "rejected": "rejected",
}


@dataclass(frozen=True)
class Exported:
    """A split of a table: how many rows went where."""

    table: str
    split: str
    rows: int
    path: str


def export(
    lake: Path, folder: Path, *, tables: Sequence[str] = ("samples",), jsonl: bool = False, where: str | None = None
) -> list[Exported]:
    """Write `tables` into the new `folder`; what was written, split by split.

    `where` is an SQL condition over the columns of each table. It runs where only the lake can be read and nothing but
    `folder` written. LightningError when the folder is there, a table is unknown, the condition is not right or leaves nothing.
    """
    manifest = require_derived(lake)
    if unknown := [name for name in tables if name not in TABLES]:
        raise LightningError(f"no table '{unknown[0]}' to export; tables are {', '.join(TABLES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LightningError(f"{folder} is there already and is not overwritten; give another name or remove it")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        done = _write(lake, temporary, list(dict.fromkeys(tables)), jsonl, where)
        if not done:
            raise LightningError(
                f"nothing to export from {', '.join(tables)}; lightning-transform explain --lake {lake} says why"
            )
        _describe(temporary, manifest, done, jsonl, where, folder.name)
        if folder.is_dir():
            folder.rmdir()
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise disk_problem(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def _write(lake: Path, folder: Path, tables: list[str], jsonl: bool, where: str | None) -> list[Exported]:
    done = []
    with open_tables(lake, locked=True, writable=folder) as connection:
        for table in tables:
            if where is not None:
                _check_condition(connection, table, where)
            # The condition stands last and on a line of its own: it may end in a comment.
            rows = f"select {_columns(connection, table, jsonl)} from {quoted(table)}" + (
                f" where (\n{where}\n)" if where else ""
            )
            try:
                splits = connection.execute(
                    f"select split, count(*) from ({rows}) group by split order by split"
                ).fetchall()
                for split, count in splits:
                    done.append(_copy(connection, folder, table, rows, split, count, jsonl))
            except duckdb.Error as error:
                raise LightningError(f"{table} cannot be exported: {str(error).splitlines()[0]}") from None
    return done


def _copy(
    connection: duckdb.DuckDBPyConnection, folder: Path, table: str, rows: str, split: str, count: int, jsonl: bool
) -> Exported:
    relative = f"{table}/{split}.jsonl" if jsonl else f"{table}/{split}/part-0.parquet"
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    order = (
        "pair_id"
        if table == "pairs"
        else "trajectory_id"
        if table == "trajectories"
        else "rollout_id, step, trace_id, span_id, choice"
    )
    form = "format json, array false" if jsonl else "format parquet, compression zstd"
    connection.execute(
        f"copy (select * exclude (split) from ({rows}) where split = {literal(split)} order by {order}) to {literal(str(path))} ({form})"
    )
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return Exported(table, split, count, relative)


def _check_condition(connection: duckdb.DuckDBPyConnection, table: str, where: str) -> None:
    check_expression(connection, where, f"--where for {table}", table, row_by_row=True)
    try:
        connection.execute(f"explain select * from {quoted(table)} where (\n{where}\n)")
    except duckdb.Error as error:
        raise LightningError(f"--where for {table}: {first_line(error)}") from None


def _columns(connection: duckdb.DuckDBPyConnection, table: str, jsonl: bool) -> str:
    """The columns of a table as trainers want them."""
    found = []
    for name, kind in ((row[0], row[1]) for row in connection.execute(f"describe {quoted(table)}").fetchall()):
        column = quoted(name)
        if name in RENAMED:
            text = (
                f"case when json_type({column}::json) = 'ARRAY' then {column}::json else json_array({column}::json) end"
            )
            shape = "" if jsonl else literal(json.dumps([MESSAGE]))
            found.append(f"{text} as {RENAMED[name]}" if jsonl else f"from_json({text}, {shape}) as {RENAMED[name]}")
        elif kind.startswith("DECIMAL"):
            found.append(f"{column}::double as {column}")
        elif kind == "JSON" and not jsonl:
            found.append(f"{column}::varchar as {column}")
        else:
            found.append(column)
    return ", ".join(found)


def _describe(
    folder: Path, manifest: Manifest, done: list[Exported], jsonl: bool, where: str | None, name: str
) -> None:
    """The data card and the manifest of the run."""
    tables = list(dict.fromkeys(item.table for item in done))
    head: list[dict[str, Any]] = []
    for table in tables:
        files = [
            {"split": i.split, "path": i.path if jsonl else f"{i.table}/{i.split}/*.parquet"}
            for i in done
            if i.table == table
        ]
        head.append({"config_name": table, "data_files": files} | ({"default": True} if table == tables[0] else {}))
    import yaml

    credit = manifest.config["credit"]
    rewards = ", ".join(f"{reward} × {weight:g}" for reward, weight in manifest.reward["train"].items())
    lines = [
        "---", yaml.safe_dump({"configs": head}, sort_keys=False).rstrip(), "---", "",
        f"# {name}", "",
        "What agents did, with the credit that each of their answers earned; made by `lightning-transform export`.", "",
        "| table | split | rows |", "|---|---|---|",
        *(f"| {item.table} | {item.split} | {item.rows} |" for item in done), "",
        f"* run {manifest.run} of the transform, recipe `{manifest.recipe}`, now {manifest.now_unix_nano} (unix nanoseconds)",
        f"* reward: {rewards}; outcome: {manifest.reward.get('outcome') or 'none'}",
        f"* credit: {credit['method']}, baseline {credit['baseline']}",
        *([f"* only rows where `{' '.join(where.split())}`"] if where else []),
        "* `manifest.json` holds the whole configuration and the files of the lake that it was made from", "",
        "```python", "from datasets import load_dataset", "",
        *(f'{table} = load_dataset("{name}", "{table}")' for table in tables), "```", "",
        "A missing reward is null, never 0. `split` is by task; what is `eval` or `test` must not be trained on.", "",
    ]  # fmt: skip
    (folder / "README.md").write_text(printable("\n".join(lines)), encoding="utf-8")
    kept = {key: value for key, value in manifest.__dict__.items() if key != "files"}
    (folder / "manifest.json").write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
