"""Late feedback: where nothing but evaluations arrived, calls and episodes stay as they are and only rewards and credit are redone.

What the steps behind `rollouts` read of calls, tools, scopes, episodes and spans is narrow and stored, so that feedback on old
episodes costs what those rows weigh and no raw span is read again. The same steps run over the same rows as ever: a run
over everything ends in equal tables.
"""

from __future__ import annotations

from typing import Any

import duckdb

from otel_lightning.store.lake import Lake
from otel_lightning.transforms import steps
from otel_lightning.transforms.own_sql import OwnSql
from otel_lightning.transforms.touched import count, raw_rows

# What late feedback can change; the rest of an episode's rows stay live.
TABLES = ("rewards", "returns", "credits", "records")
# Of a call, what no step behind `rollouts` reads: what was said.
WIDE = ("prompt_messages", "response_messages", "tools", "prompt_ids", "response_ids", "response_logprobs")
BEGINS, LEFT_OUT = "58_", ("trajectories",)


def late_steps(method: str) -> tuple[steps.Step, ...]:
    """The steps that feedback alone has to be taken through."""
    ordered = steps.steps(method)
    begin = next(place for place, step in enumerate(ordered) if step.path[:3] >= BEGINS and step.path[:1].isdigit())
    return tuple(step for step in ordered[begin:] if step.table not in LEFT_OUT)


def find_late(connection: duckdb.DuckDBPyConnection, *, allowed: bool) -> int:
    """`late`: nodes of the components that only evaluations touched; `working` the other rows of `parts`. How many nodes.

    Needs `parts`, `causes` (what else was touched) and `old_records`. A reward that looks for an attribute of any span needs
    the spans themselves.
    """
    connection.execute("create or replace temp table late (node varchar)")
    if allowed:
        connection.execute(
            """
            insert into late
            select node
            from parts
            anti join (
                select distinct part from parts semi join causes using (node)
                union
                select distinct part from parts
                semi join (select node from old_records where target_attribute is not null) as seeking using (node)
            ) as others using (part)
            """
        )
    connection.execute("create or replace temp table working as select * from parts anti join late using (node)")
    return count(connection, "select count(*) from late")


def load_late(
    connection: duckdb.DuckDBPyConnection, lake: Lake, fresh_events: list[str], own: OwnSql, parameters: dict[str, Any]
) -> None:
    """Everything that `late_steps` read, for the nodes in `late`: stored rows, and the records that are new."""
    wide = ", ".join(WIDE)
    connection.execute(
        f"""
        create or replace temp table calls as
            select * exclude (revision, {wide}) from old_calls semi join late on late.node = old_calls.trace_id;
        create or replace temp table tools as
            select * exclude (revision) from old_tools semi join late on late.node = old_tools.trace_id;
        create or replace temp table scopes as
            select * exclude (revision) from old_scopes semi join late on late.node = old_scopes.trace_id;
        create or replace temp table span_kinds as
            select * exclude (revision), false as carries_evaluation  -- what they carry is stored
            from old_places semi join late on late.node = old_places.trace_id;
        create or replace temp table rollouts as
            select * exclude (revision)
            from old_rollouts
            where rollout_id in (
                select rollout_id from (select rollout_id, unnest(trace_ids) as node from old_rollouts) semi join late using (node)
            )
            or md5_number_lower('r' || base_rollout_id) in (select key from keys semi join late using (node))
        """
    )
    records = raw_rows(lake, "events", fresh_events)
    connection.execute(
        f"create or replace temp table spans as select * exclude (file) from ({raw_rows(lake, 'spans', [])}); "
        f"create or replace temp table events as select * exclude (file) from ({records}) "
        "where 'e:' || content_sha256 in (select node from late)"
    )
    for name in ("span_copies", "spans_unique"):
        steps.create(connection, next(step for step in steps.steps("broadcast") if step.table == name), parameters)
    own.after(connection, "rollouts")


def add_old_records(connection: duckdb.DuckDBPyConnection) -> None:
    """The records that were there before, beside the new ones in `reward_records`."""
    connection.execute(
        "insert into reward_records by name select * exclude (revision) from old_records "
        "semi join late on late.node = old_records.node anti join reward_records using (reward_id)"
    )
