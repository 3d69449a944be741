"""Preference pairs: a reduce over the narrow live rows of those tasks in which anything changed."""

from __future__ import annotations

import duckdb

from otel_lightning.store.lake import Lake
from otel_lightning.transforms import steps
from otel_lightning.transforms.derived import Manifest, live_rows, write_parquet

READS = ("answers", "credits", "returns", "rollouts")


def reduce_pairs(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    previous: Manifest | None,
    parameters: dict[str, object],
) -> str:
    """Write the pairs of all tasks; those of tasks without a changed rollout are the previous run's. The file written.

    Pairs of different tasks never meet, so a task is recomputed when one of its rollouts is new, changed or gone.
    """
    run = manifest.run
    connection.execute(
        f"create or replace temp table live_rollouts as select * from ({live_rows(lake, manifest, 'rollouts')})"
    )
    if previous is None:
        connection.execute("create or replace temp table changed_tasks as select distinct task_id from live_rollouts")
    else:
        connection.execute(
            f"""
            create or replace temp table changed_tasks as
            select task_id from live_rollouts where revision = {run:d}
            union
            -- Late feedback changes the credit of an episode and not the episode.
            select task_id from live_rollouts
            semi join (select rollout_id from ({live_rows(lake, manifest, "returns")}) where revision = {run:d}) as returned
                using (rollout_id)
            union
            select task_id from old_rollouts
            anti join live_rollouts on live_rollouts.rollout_id = old_rollouts.rollout_id
                and live_rollouts.revision = old_rollouts.revision
            """
        )
    of_tasks = (
        "semi join (select rollout_id from live_rollouts semi join changed_tasks using (task_id)) using (rollout_id)"
    )
    for table in READS:
        connection.execute(
            f"create or replace temp table {steps.quoted(table)} as "
            f"select * from ({live_rows(lake, manifest, table)}) as data {of_tasks}"
        )
    steps.create(connection, steps.pairs(), parameters)
    query = f"select *, {run:d}::integer as revision from pairs"
    if previous is not None:
        query += " union all by name select * from old_stored_pairs anti join changed_tasks using (task_id)"
    written = write_parquet(
        connection, lake, f"{query} order by kind, task_id, pair_id", f"derived/pairs/run={run:06d}/part.parquet"
    )
    for table in (*READS, "live_rollouts", "changed_tasks", "pairs"):
        connection.execute(f"drop table {steps.quoted(table)}")
    return written
