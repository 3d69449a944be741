"""The SQL steps in reading order, and how one is run: one select a file becomes one temporary table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb

SQL = files("otel_lightning.transforms") / "sql"
PARAMETER = re.compile(r"\$([a-z_]+)\b")
# What conventions say of spans comes before what a span is; credit between choices and credits.
CONVENTIONS_BEFORE, CREDIT_BEFORE = "12_", "80_"
# What is reduced over the live rows of every run, once the rows of this one are stored.
REDUCES = ("90_baselines.sql", "92_pairs.sql")


@dataclass(frozen=True)
class Step:
    """One SQL file and the table that its select becomes; a view, if its header says `-- stored: view`."""

    table: str
    path: str
    text: str

    @property
    def view(self) -> bool:
        return "\n-- stored: view\n" in self.text


@cache
def steps(method: str) -> tuple[Step, ...]:
    """Every step up to credits and trajectories, with the credit method's file in its place.

    A method that is no file of ours is the user's own; it is run behind `choices`.
    """
    numbered = sorted(item.name for item in SQL.iterdir() if re.match(r"\d\d_.*\.sql$", item.name))
    found: list[Step] = []
    for name in numbered:
        if name.startswith(CONVENTIONS_BEFORE):
            found.extend((*conventions(), recognised()))
        if name.startswith(CREDIT_BEFORE) and (SQL / "credit" / f"{method}.sql").is_file():
            found.append(Step("assigned", f"credit/{method}.sql", _read(f"credit/{method}.sql")))
        if name not in REDUCES:
            found.append(_step(name))
    return tuple(found)


@cache
def conventions() -> tuple[Step, ...]:
    """Each convention by itself: the spans that it recognises. A new one is a file in the folder, named nowhere."""
    names = sorted(item.name for item in (SQL / "conventions").iterdir() if item.name.endswith(".sql"))
    return tuple(_step(f"conventions/{name}") for name in names)


@cache
def recognised() -> Step:
    """All conventions together, a view over the table of each: one row for each span and convention that claims it.

    Each has a table of its own: one statement over all of them costs twice as much, rows added to one table half as much again.
    """
    selects = [f"select * from {step.table}" for step in conventions()]
    header = "-- What each convention recognises, one after the other.\n-- stored: view\n"
    return Step("recognised", "conventions/", header + "\nunion all by name\n".join(selects))


def baselines() -> Step:
    """The reduce that is run over all live returns."""
    return _step("90_baselines.sql")


def pairs() -> Step:
    """The reduce that is run over the live answers, credits, returns and rollouts of tasks."""
    return _step("92_pairs.sql")


def signal_names() -> list[str]:
    """What the signals are called: each is a file of that name."""
    return sorted(item.name.removesuffix(".sql") for item in (SQL / "signals").iterdir() if item.name.endswith(".sql"))


def signals() -> Step:
    """All signals as one view: what each file finds, one after the other."""
    text = "\nunion all\n".join(f"select * from (\n{_read(f'signals/{name}.sql')}\n)" for name in signal_names())
    return Step("signals", "signals", text)


def keys(signal: str) -> Step:
    """The narrow index of one signal, or (found) what the steps add to it."""
    return Step("new_keys", f"keys/{signal}.sql", _read(f"keys/{signal}.sql"))


def views() -> tuple[Step, ...]:
    """Views over stored tables, in the order in which they build on one another."""
    names = ("credits", "samples", "trajectories", "pairs", "funnel")
    return (*(_step(f"views/{name}.sql") for name in names), signals())


@cache
def sql_sha256(method: str) -> str:
    """Identity of all SQL that a run depends on."""
    more = (baselines(), pairs(), keys("spans"), keys("events"), keys("outputs"), keys("found"), keys("names"))
    texts = [step.text for step in (*steps(method), *more)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def create(connection: duckdb.DuckDBPyConnection, step: Step, parameters: Mapping[str, Any]) -> None:
    """Run one step; it binds only the parameters that its text uses. A view binds none: its switches are written into it."""
    if step.view:
        text = PARAMETER.sub(lambda found: str(bool(parameters[found[1]])), step.text)
        connection.execute(f"create or replace temp view {quoted(step.table)} as {text}")
        return
    used = {name: parameters[name] for name in dict.fromkeys(PARAMETER.findall(step.text)) if name in parameters}
    connection.execute(_parsed(f"create or replace temp table {quoted(step.table)} as {step.text}"), used)


@cache
def _parsed(text: str) -> duckdb.Statement:
    """One statement, parsed once a process: a sixth of what a small bucket costs is reading the SQL."""
    return duckdb.extract_statements(text)[0]


@cache
def last_uses(method: str, kept: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """For each step (by path): the tables that no later one reads, `kept` aside, so that their memory can be given back."""
    ordered = steps(method)
    last: dict[str, str] = {}
    views: dict[str, set[str]] = {}
    for step in ordered:
        if step.view:
            read = reads(step.text)
            views[step.table] = read.union(*(views[name] for name in views.keys() & read))
    tables = {"spans", "events", *(step.table for step in ordered)} - views.keys()
    for step in ordered:
        read = reads(step.text)
        # Who reads a view reads what it is a view of.
        read = read.union(*(views[name] for name in views.keys() & read))
        for table in sorted(tables & (read | {step.table})):
            last[table] = step.path
    found: dict[str, tuple[str, ...]] = {}
    for table, path in last.items():
        if table not in kept:
            found[path] = (*found.get(path, ()), table)
    return found


def reads(text: str) -> set[str]:
    """The tables that a select names, less its own CTEs."""
    code = re.sub(r"--.*", "", text)
    return set(re.findall(r"\b(?:from|join)\s+([a-z_]\w*)", code)) - set(
        re.findall(r"^([a-z_]\w*) as \(", code, re.MULTILINE)
    )


def quoted(identifier: str) -> str:
    """An identifier, quoted: the one place where names enter SQL text."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal, for the few statements that take no parameters (views, COPY)."""
    return "'" + text.replace("'", "''") + "'"


def path_list(paths: list[str]) -> str:
    """A list of file names as SQL."""
    return "[" + ", ".join(map(literal, paths)) + "]"


def _step(path: str) -> Step:
    table = re.sub(r"^\d\d_", "", path.rsplit("/", 1)[-1].removesuffix(".sql"))
    return Step(table, path, _read(path))


def _read(path: str) -> str:
    return (SQL / path).read_text(encoding="utf-8")
