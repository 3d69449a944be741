"""What the `.yml` beside each SQL file says, run: tables of a few rows in, the file's own select, rows out.

    grain: one row per (trace_id, span_id)     # as the file's header begins; what stands in brackets are the keys
    kind: bucket                               # as the header says: map, bucket or reduce
    keys: [trace_id, span_id]                  # unique in whatever the select returns
    covers: select trace_id, span_id from …    # optional: exactly these keys come out, each once
    checks: [select … from …, …]               # each must return no row; the output has the file's own table name
    defaults: {calls: {judge: false}}          # columns of given tables that a case leaves out (else NULL)
    cases:
      - name: a sentence
        config: {credit: {gamma: 0.5}}         # optional, what transform.yaml would say; `now` in unix nanoseconds
        given: {calls: [{trace_id: t, …}]}     # any table upstream; what is not given is made of it by its own file
        expected: [{trace_id: t, step: 0}]     # every row, in any order; only the columns named are compared
                                               # a given row with `times: 50` stands 50 times, `#` being the count

Rows of `spans` and `events` are bare unless something is said, as the collector writes them, and `attributes` are
sorted into columns and maps as it would. Lists and mappings stand for JSON where a column is text.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import duckdb
import yaml

from otel_lightning.collector.schema import MOVED
from otel_lightning.transforms import run, steps
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.derived import KEYED, REDUCED, STORED_NAME
from otel_lightning.transforms.own_sql import COMPUTED
from otel_lightning.transforms.shapes import CONFIGURED, empty_relation
from otel_lightning.transforms.steps import Step, create, quoted, reads

SIGNALS = ("spans", "events")
# What the engine makes before the first file runs.
ENGINE_TABLES = {
    **CONFIGURED,
    # What the user's own SQL fills while a run works.
    "populations": "rollout_id varchar, population varchar",
    "unwanted": "rollout_id varchar",
    "computed_rewards": ", ".join(f"{name} {kind}" for name, kind in COMPUTED.items()),
}
NOW = 10**18
NUMBERED = re.compile(r"\d\d_")


class Mistake(AssertionError):
    """A `.yml` that says something impossible, or that does not hold."""


@dataclass
class World:
    """The tables that a kind of file can read, in the order in which they are made, all of them empty at first."""

    connection: duckdb.DuckDBPyConnection
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    makers: dict[str, Step] = field(default_factory=dict)

    def declare(self, table: str, definition: str) -> None:
        self._forget(table)
        self.connection.execute(f"create temp table {quoted(table)} {definition}")
        self._note(table)

    def add(self, step: Step, parameters: dict[str, Any]) -> None:
        self.needs[step.path] = reads(step.text) & self.columns.keys()
        create(self.connection, step, parameters)
        self._note(step.table)
        self.makers[step.table] = step

    def _note(self, table: str) -> None:
        described = self.connection.execute(f"describe {quoted(table)}").fetchall()
        self.columns[table] = {row[0]: row[1] for row in described}

    def upstream(self, step: Step, given: Iterable[str]) -> list[str]:
        """The tables that `step` reads, and what those are made of as far as nothing is given, in order."""
        found: set[str] = set()
        open_tables = list(self.needs[step.path])
        while open_tables:
            table = open_tables.pop()
            if table in found:
                continue
            found.add(table)
            maker = self.makers.get(table)
            if maker is not None and table not in given and maker.path != step.path:
                open_tables += self.needs[maker.path]
        return [table for table in self.columns if table in found]

    def fill(self, step: Step, given: dict[str, list[dict[str, Any]]], parameters: dict[str, Any]) -> None:
        """Make every table upstream of `step` of what is given, then `step`'s own."""
        upstream = self.upstream(step, given)
        if strangers := sorted(given.keys() - set(upstream)):
            raise Mistake(f"{step.path} does not read {strangers[0]}; it reads {', '.join(upstream)}")
        live = set(given)
        for table in upstream:
            maker = self.makers.get(table)
            if table not in given and maker is not None and self.needs[maker.path] & live:
                self._forget(table)
                create(self.connection, maker, parameters)
                live.add(table)
                continue
            definition = ", ".join(f"{quoted(name)} {kind}" for name, kind in self.columns[table].items())
            self.declare(table, f"({definition})")
            for number, row in enumerate(given.get(table, ())):
                self._insert(table, _as_collected(table, row, number))
        self._forget(step.table)
        create(self.connection, step, parameters)

    def _forget(self, table: str) -> None:
        """A step is a table or a view, and neither replaces the other."""
        for kind in ("table", "view"):
            with contextlib.suppress(duckdb.CatalogException):
                self.connection.execute(f"drop {kind} if exists {quoted(table)}")

    def _insert(self, table: str, row: dict[str, Any]) -> None:
        types = self.columns[table]
        if unknown := sorted(row.keys() - types.keys()):
            raise Mistake(f"{table} has no column {unknown[0]}; it has {', '.join(types)}")
        names = ", ".join(map(quoted, row))
        places = ", ".join(
            f"cast(${n}::json as {types[name]})" if isinstance(value, list | dict) and types[name] != "VARCHAR"
            else f"cast(${n} as {types[name]})"
            for n, (name, value) in enumerate(row.items(), 1)
        )  # fmt: skip
        values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
        self.connection.execute(f"insert into {quoted(table)} ({names}) values ({places})", values)


def _repeated(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows with `times: n` so often, with the count in place of each `#` of a text."""
    for row in rows:
        times = row.get("times", 1)
        row = {name: value for name, value in row.items() if name != "times"}
        for n in range(times):
            yield {
                name: value.replace("#", f"{n:02}") if isinstance(value, str) and times > 1 else value
                for name, value in row.items()
            }


def _as_collected(table: str, row: dict[str, Any], number: int) -> dict[str, Any]:
    if table not in SIGNALS:
        return row
    row = dict(row)
    bare: dict[str, Any] = {
        "collector_id": "c", "seq": number, "received_unix_nano": number, "resource_attributes": "{}", "scope_attributes": "{}",
        "dropped_attributes_count": 0, **{f"attributes_{kind}": {} for kind in ("str", "int", "dbl", "bool", "json")},
    }  # fmt: skip
    if table == "spans":
        bare |= {"name": "span", "status_code": 0, "events": [], "links": [], "start_unix_nano": 1, "end_unix_nano": 2}
    else:
        bare |= {"time_unix_nano": 0, "observed_unix_nano": 0, "content_sha256": f"{number:064x}"}
    for key, value in row.pop("attributes", {}).items():
        kind = {str: "str", bool: "bool", int: "int", float: "dbl"}.get(type(value), "json")
        column, moves = MOVED.get(key, (None, None))
        if table == "spans" and column is not None and kind == moves:
            row.setdefault(column, value)
        else:
            bare[f"attributes_{kind}"][key] = json.dumps(value) if kind == "json" else value
    whole = {
        "events": {"time_unix_nano": 0, "name": "", "attributes": "{}", "dropped_attributes_count": 0},
        "links": {"trace_id": "", "span_id": "", "trace_state": "", "flags": 0, "attributes": "{}", "dropped_attributes_count": 0},
    }  # fmt: skip
    for key in whole.keys() & row.keys():
        row[key] = [whole[key] | item for item in row[key]]
    return bare | row


def parameters(config: dict[str, Any] | None = None, now: int = NOW) -> dict[str, Any]:
    return run._parameters(TransformConfig.model_validate(config or {}), now, "recipe")


@cache
def worlds() -> dict[str, World]:
    """One world for the steps of a run, one for the views over what a run stored."""
    run_world, view_world = World(_connection()), World(_connection())
    for signal in SIGNALS:
        # `file` is known to the index (keys/), which reads rows with it.
        run_world.declare(signal, f"as select *, null::varchar as file from ({empty_relation(signal)})")
    for table, columns in ENGINE_TABLES.items():
        run_world.declare(table, f"({columns})")
    bound = parameters()
    for step in (*steps.steps("broadcast"), steps.baselines(), steps.pairs(), *steps.conventions()):
        run_world.add(step, bound)
    for folder in ("credit", "keys", "rewards"):
        for step in steps_in(folder):
            run_world.add(step, bound)
    for table in (*KEYED, *REDUCED):
        columns = dict(run_world.columns[table])
        if table != "baselines":
            columns["revision"] = "INTEGER"
        definition = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
        view_world.declare((STORED_NAME | REDUCED).get(table, table), f"({definition})")
    for step in (*steps.views(), *steps_in("signals")):
        view_world.add(step, bound)
    return {"run": run_world, "views": view_world}


def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set threads = 1")
    return connection


def paths() -> list[str]:
    """Every SQL file, as its path below `transforms/sql`."""
    root = steps.SQL
    folders = [item.name for item in root.iterdir() if item.is_dir()]
    found = [item.name for item in root.iterdir() if item.name.endswith(".sql")]
    found += [
        f"{name}/{item.name}" for name in folders for item in (root / name).iterdir() if item.name.endswith(".sql")
    ]
    return sorted(found)


def steps_in(folder: str) -> list[Step]:
    """The files of a folder, each as the step that it is."""
    named = [path for path in paths() if path.startswith(f"{folder}/")]
    return [Step(table_of(path), path, (steps.SQL / path).read_text(encoding="utf-8")) for path in named]


def table_of(path: str) -> str:
    """The table that a file's select becomes."""
    name = re.sub(NUMBERED, "", path.rsplit("/", 1)[-1].removesuffix(".sql"), count=1)
    return {"credit": "assigned", "keys": "new_keys"}.get(path.split("/")[0], name)


@dataclass(frozen=True)
class SqlFile:
    """A SQL file with what its `.yml` says of it."""

    path: str
    text: str
    said: dict[str, Any]

    @cached_property
    def world(self) -> World:
        return worlds()["views" if self.path.startswith(("views/", "signals/")) else "run"]

    @cached_property
    def step(self) -> Step:
        return Step(table_of(self.path), self.path, self.text)

    def header(self, name: str) -> str:
        """What the file's own header says after `-- name:`."""
        found = re.search(rf"^-- {name}: (.*)$", self.text, re.MULTILINE)
        return found[1].strip() if found else ""

    def case(self, case: dict[str, Any]) -> None:
        """Run one case; Mistake with both tables when something is not as said."""
        given = {
            table: list(_repeated(dict(self.said.get("defaults", {}).get(table, {})) | row for row in rows))
            for table, rows in case["given"].items()
        }
        bound = parameters(case.get("config"), case.get("now", NOW))
        self.world.fill(self.step, given, bound)
        self.hold(self.world.connection)
        cursor = self.world.connection.execute(f"select * from {quoted(self.step.table)}")
        names = [column[0] for column in cursor.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        if unknown := sorted({name for row in case["expected"] for name in row} - set(names)):
            raise Mistake(f"{self.step.table} has no column {unknown[0]}; it has {', '.join(names)}")
        left = list(rows)
        missing = []
        for expected in case["expected"]:
            found = next((row for row in left if all(equal(row[k], v) for k, v in expected.items())), None)
            if found is None:
                missing.append(expected)
            else:
                left = [row for row in left if row is not found]
        if missing or left:
            shown = sorted({name for row in case["expected"] for name in row} | set(self.said["keys"]))
            raise Mistake(
                "\n".join(
                    [f"{self.path}: {case['name']}"]
                    + [f"  no such row: {row}" for row in missing]
                    + [f"  not expected: { ({name: row[name] for name in shown}) }" for row in left]
                )
            )

    def hold(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Keys, grain and checks of the table as it is now in `connection`, whatever made it."""
        table, keys = quoted(self.step.table), ", ".join(map(quoted, self.said["keys"]))
        twice = connection.execute(f"select {keys} from {table} group by all having count(*) > 1 limit 3").fetchall()
        if twice:
            raise Mistake(f"{self.path}: several rows for {keys} = {twice[0]}")
        if covers := self.said.get("covers"):
            for one, other, what in ((f"select {keys} from {table}", covers, "no row covers"), (covers, f"select {keys} from {table}", "no row for")):  # fmt: skip
                odd = connection.execute(f"({one}) except all ({other}) limit 3").fetchall()
                if odd:
                    raise Mistake(f"{self.path}: {what} {odd[0]}")
        for check in self.said.get("checks", ()):
            if found := connection.execute(check).fetchall():
                raise Mistake(f"{self.path}: {check}\n  returned {found[:3]}")


def equal(found: Any, expected: Any) -> bool:
    """Whether a value of DuckDB's is what the YAML says; numbers by value, JSON text by content."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None or found is None:
        return found is expected
    if isinstance(expected, int | float):
        if isinstance(found, str):
            return False
        return (math.isnan(expected) and math.isnan(found)) or math.isclose(
            found, expected, rel_tol=1e-12, abs_tol=1e-15
        )
    if isinstance(expected, list | dict) and isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return False
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(equal, found, expected))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(equal(found[k], v) for k, v in expected.items())
        )
    return found == expected


@cache
def sql_files() -> tuple[SqlFile, ...]:
    """Every SQL file that has a `.yml`."""
    found = []
    for path in paths():
        beside = steps.SQL / path.replace(".sql", ".yml")
        if beside.is_file():
            text = (steps.SQL / path).read_text(encoding="utf-8")
            found.append(SqlFile(path, text, yaml.safe_load(beside.read_text(encoding="utf-8"))))
    return tuple(found)
