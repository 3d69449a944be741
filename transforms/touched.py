"""What belongs together: a narrow index of every trace and record, what an arrival touches in it, and its parts.

A node is a trace or a log record; nodes that hold one key (a session, a rollout, a response id, …: sql/keys) may decide
about one another and form a component. A run recomputes whole components, so any sequence of runs ends where one
full run would. Everything here is linear in the index, which holds no content.

derived/keys/run=000042/part-0000.parquet    node, kind, key, signal, file, rows: what the raw files say
derived/keys/run=000042/found.parquet        the same without file: what only the steps could read
"""

from __future__ import annotations

import duckdb

from otel_lightning.store.lake import Lake
from otel_lightning.transforms import steps
from otel_lightning.transforms.derived import write_parquet

# Kinds of keys that join only what asks for them; which, is said in sql/keys/found.sql.
ASKED, ASKING = "('k', 'd', 'h')", "('q', 'b', 'g')"
INDEX = "node varchar, kind varchar, key ubigint, signal varchar, file varchar, rows bigint"


def index_files(connection: duckdb.DuckDBPyConnection, lake: Lake, new: dict[str, list[str]], run: int) -> list[str]:
    """Write the index of the files in `new` (paths relative to the lake, by signal); the index files written."""
    connection.execute(f"create or replace temp table indexed ({INDEX})")
    for signal, paths in new.items():
        if not paths:
            continue
        connection.execute(f"create or replace temp view {signal} as {raw_rows(lake, signal, paths)}")
        indexes = [signal]
        if signal == "spans" and count(connection, "select count(*) from spans where capture is not null"):
            indexes.append("outputs")
        for name in indexes:
            steps.create(connection, steps.keys(name), {})
            connection.execute(f"insert into indexed select node, kind, key, '{signal}', file, rows from new_keys")
        connection.execute(f"drop view {signal}")
    if not any(new.values()):
        return []
    path = f"derived/keys/run={run:06d}/part-0000.parquet"
    return [write_parquet(connection, lake, "select * from indexed order by node, kind, key", path)]


def define_keys(
    connection: duckdb.DuckDBPyConnection, lake: Lake, key_files: list[str], live: dict[str, list[str]]
) -> None:
    """`keys`: the index without what is no longer in a live file; `joining`: those of its rows that join."""
    connection.execute("create or replace temp table live_paths (file varchar)")
    live_paths = [path for paths in live.values() for path in paths]
    if live_paths:
        connection.execute("insert into live_paths select unnest($paths)", {"paths": live_paths})
    if not key_files:
        connection.execute(f"create or replace temp table keys ({INDEX})")
    else:
        paths = steps.path_list([str(lake.root / path) for path in key_files])
        connection.execute(
            f"create or replace temp table keys as select * from read_parquet({paths}, hive_partitioning = false, "
            "union_by_name = true) where file is null or file in (select file from live_paths)"
        )
    _define_joining(connection)


def _define_joining(connection: duckdb.DuckDBPyConnection) -> None:
    # A process ties bare calls together only while nothing names their rollout: a service that runs for months must
    # not be recomputed with each call.
    connection.execute(
        f"""
        create or replace temp table named as
        select distinct node
        from keys
        semi join (
            select distinct key from keys
            semi join (select distinct node from keys where kind = 'r') using (node)
            where kind not in ('i', 'k', 'd', 'h')
        ) as of_named using (key)
        where exists (select * from keys where kind = 'i');
        create or replace temp table asked as select distinct key from keys where kind in {ASKING};
        create or replace temp view joining as
        select node, key from keys
        where case
            when kind = 'i' then node not in (select node from named)
            when kind in {ASKED} then key in (select key from asked)
            else true
        end
        """
    )


def find_touched(connection: duckdb.DuckDBPyConnection, lake: Lake, fresh: list[str], *, everything: bool) -> None:
    """`touched`: nodes to recompute. What is new or was incomplete, grown along keys and old rollouts until nothing is added.

    Needs `keys`, `joining` and the views `old_rollouts` …; `fresh` names the files whose rows are new. `causes` is what began
    it, evaluations aside.
    """
    if everything:
        connection.execute(
            "create or replace temp table touched as select distinct node from keys; "
            "create or replace temp table causes as select node from touched"
        )
        return
    connection.execute("create or replace temp table touched (node varchar)")
    connection.execute(
        "insert into touched select distinct node from keys where list_contains($fresh::varchar[], file) "
        "union select distinct unnest(trace_ids) from old_rollouts where not complete "
        "union select keys.node from keys "
        "join (select md5_number_lower('r' || base_rollout_id) as key from old_rollouts where not complete) using (key)",
        {"fresh": fresh},
    )
    note_causes(connection)
    grow(connection)


def note_causes(connection: duckdb.DuckDBPyConnection) -> None:
    """`causes`: what `touched` is before it grows, less evaluations."""
    connection.execute(
        "create or replace temp table evaluations as select distinct node from keys where kind = 'v'; "
        "create or replace temp table causes as select distinct node from touched anti join evaluations using (node)"
    )


def grow(connection: duckdb.DuckDBPyConnection) -> None:
    """Add to `touched` whatever holds a key of it, or was of one rollout with it, until nothing is added."""
    connection.execute(
        "create or replace temp table shared_rollouts as "
        "select rollout_id, unnest(trace_ids) as node from old_rollouts where len(trace_ids) > 1; "
        "create or replace temp table frontier as select distinct node from touched"
    )
    while count(connection, "select count(*) from frontier"):
        connection.execute(
            """
            create or replace temp table reached as
            select distinct key from joining semi join frontier using (node);
            create or replace temp table neighbours as
            select distinct joining.node from joining semi join reached using (key)
            union
            select node from shared_rollouts
            semi join (select rollout_id from shared_rollouts semi join frontier using (node)) as shared using (rollout_id);
            create or replace temp table frontier as select node from neighbours anti join touched using (node);
            insert into touched select node from frontier
            """
        )


def find_parts(connection: duckdb.DuckDBPyConnection) -> None:
    """`parts` (node, part): the components of `touched`, each named by its first node."""
    connection.execute(
        """
        create or replace temp table numbered as
        select node, row_number() over (order by node) as id from (select distinct node from touched);
        create or replace temp table edges as
        with held as (
            select distinct numbered.id, joining.key from joining join numbered using (node)
        )
        select id, key from held semi join (select key from held group by key having count(*) > 1) as shared using (key);
        create or replace temp table labels as select distinct id, id as label from edges
        """
    )
    # The least label spreads over each key, then every label takes its own label's: a long chain halves with each pass.
    while True:
        connection.execute(
            """
            create or replace temp table spread as
            with of_key as (
                select key, min(label) as label from edges join labels using (id) group by key
            )
            select edges.id, least(min(of_key.label), any_value(labels.label order by labels.label)) as label
            from edges
            join of_key using (key)
            join labels using (id)
            group by edges.id;
            create or replace temp table jumped as
            select spread.id, least(spread.label, coalesce(further.label, spread.label)) as label
            from spread
            left join spread as further on further.id = spread.label
            """
        )
        moved = count(
            connection,
            "select count(*) from jumped join labels using (id) where jumped.label <> labels.label",
        )
        connection.execute("create or replace temp table labels as select id, label from jumped")
        if not moved:
            break
    connection.execute(
        """
        create or replace temp table parts as
        select numbered.node, coalesce(firsts.node, numbered.node) as part
        from numbered
        left join labels using (id)
        left join numbered as firsts on firsts.id = labels.label
        """
    )


def note_found(connection: duckdb.DuckDBPyConnection, lake: Lake, run: int) -> list[str]:
    """Write `found_keys`, as far as the index lacks them; `touched` becomes what turned out to belong to several parts.

    The index files written; `touched` is empty when the parts were right.
    """
    connection.execute(
        "create or replace temp table lacking as "
        "select distinct node, kind, key from found_keys anti join keys using (node, kind, key)"
    )
    if not count(connection, "select count(*) from lacking"):
        connection.execute("create or replace temp table touched (node varchar)")
        return []
    path = f"derived/keys/run={run:06d}/found.parquet"
    query = "select node, kind, key, null::varchar as signal, null::varchar as file, 0::bigint as rows from lacking"
    written = write_parquet(connection, lake, f"{query} order by node, kind, key", path)
    connection.execute(f"insert into keys {query}")
    _define_joining(connection)
    connection.execute(
        """
        create or replace temp table touched as
        with held as (
            select joining.node, joining.key, coalesce(parts.part, joining.node) as part
            from joining
            semi join (select distinct key from lacking) as new using (key)
            left join parts using (node)
        )
        select distinct node from held
        semi join (select key from held group by key having min(part) <> max(part)) as torn using (key)
        """
    )
    return [written]


def raw_rows(lake: Lake, signal: str, paths: list[str]) -> str:
    """A select of the rows of files of the lake, deleted traces left out, with `file` as the index names it."""
    if not paths:
        from otel_lightning.transforms.shapes import empty_relation

        return f"select *, null::varchar as file from ({empty_relation(signal)})"
    source = steps.path_list([str(lake.root / path) for path in paths])
    return (
        f"select * replace (substr(file, {len(str(lake.root)) + 2}) as file) from read_parquet({source}, "
        "hive_partitioning = false, union_by_name = true, filename = 'file') "
        "where coalesce(trace_id not in (select trace_id from deleted_traces), true)"
    )


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one number that a query returns."""
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
