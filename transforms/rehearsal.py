"""The user's SQL, run once over tables without rows before any work: a wrong name costs a second, not what came before it.

Parsing (guard.py) finds what is forbidden; what a column is called and of which type it is, only the tables know. So the steps
are taken with nothing in them, up to where the last of the user's texts runs, and each text runs in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from otel_lightning.transforms import steps
from otel_lightning.transforms.guard import lock
from otel_lightning.transforms.own_sql import OwnSql
from otel_lightning.transforms.shapes import CONFIGURED, empty_relation

# A process that keeps `derived/` up to date rehearses what it was given once.
_rehearsed: set[OwnSql] = set()


def rehearse(own: OwnSql, method: str, parameters: Mapping[str, Any]) -> None:
    """ConfigError in the one line that the run itself would end with, if `own` does not fit the tables. Nothing without own SQL."""
    last = _last_needed(own)
    if last is None or own in _rehearsed:
        return
    connection = duckdb.connect()
    try:
        connection.execute("set threads = 1")
        lock(connection)
        for signal in ("spans", "events"):
            connection.execute(f"create temp table {signal} as {empty_relation(signal)}")
        for table, columns in CONFIGURED.items():
            connection.execute(f"create temp table {table} ({columns})")
        for step in steps.steps(method):
            steps.create(connection, step, parameters)
            own.after(connection, step.table, rehearsal=True)
            if step.table == last:
                break
    finally:
        connection.close()
    _rehearsed.add(own)


def _last_needed(own: OwnSql) -> str | None:
    """The table behind which the last text runs."""
    if own.credit is not None:
        return "choices"
    if own.rewards:
        return "sent_rewards"
    return "rollouts" if own.within is not None or own.where is not None else None
