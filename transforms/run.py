"""One transform run: find what arrivals touched, recompute just that from spans to credits, append, point to it.

A run first indexes new files narrowly (which traces and records share a session, a rollout, a link, a response id),
grows the touched traces along shared keys until nothing is added, and then runs every SQL step over that closure.
What belongs together is always recomputed together, so any sequence of runs ends where one full run would.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files, read_entries, sources
from otel_lightning.store.tombstones import read_deleted
from otel_lightning.transforms import steps
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.derived import (
    KEYED,
    Manifest,
    define_deleted,
    define_live,
    make_folders,
    purge,
    write_parquet,
)
from otel_lightning.transforms.guard import lock
from otel_lightning.transforms.own_sql import OwnSql

# The rows of a table that belong to one key are replaced together. Calls outside any rollout hang on their trace,
# rewards that found no rollout on themselves.
LIVE_KEY = {
    "calls": "coalesce(rollout_id, 'trace:' || trace_id)",
    "scopes": "coalesce(rollout_id, 'trace:' || trace_id)",
    "tools": "coalesce(rollout_id, 'trace:' || trace_id)",
    "rewards": "coalesce(rollout_id, 'reward:' || reward_id)",
}
MEMORY_LIMIT = "2GB"
READ_ATTEMPTS = 5


@dataclass(frozen=True)
class TransformReport:
    """What a run did: its number, how much it touched, and the manifest that readers follow from now on."""

    run: int
    manifest: Path
    new_files: int
    traces: int
    rollouts: int
    seconds: float
    full: bool


def run_transform(lake: Path, config: TransformConfig, *, now_unix_nano: int | None = None) -> TransformReport:
    """Bring `derived/` up to date with the lake; work is proportional to what was touched since the last run.

    `now_unix_nano` is what "quiet for" is measured against; it is recorded. LightningError when there is no lake, when
    no reward is configured and several names could be meant, or when another run holds the lake.
    """
    began = time.monotonic()
    home = Lake.existing(lake)
    make_folders(home)
    now = time.time_ns() if now_unix_nano is None else now_unix_nano
    own = OwnSql.read(config)
    with _only_run(home):
        for _ in range(READ_ATTEMPTS - 1):
            files = _live(home)
            try:
                with _connect(home, config, own) as connection:
                    return _run(connection, home, config, own, now, began)
            except (duckdb.Error, LightningError):
                # A file that a deletion, or a compaction whose grace is over, took away: begin again with what is live.
                if _live(home) == files:
                    raise
        with _connect(home, config, own) as connection:
            return _run(connection, home, config, own, now, began)


def _run(
    connection: duckdb.DuckDBPyConnection, lake: Lake, config: TransformConfig, own: OwnSql, now: int, began: float
) -> TransformReport:
    previous = Manifest.read(lake)
    config_sha = _identity(config, own)
    sql_sha = steps.sql_sha256(own.method(config))
    deleted = read_deleted(lake)
    define_deleted(connection, deleted.traces)
    purges = previous is not None and previous.deleted != (deleted.sha256 if deleted else "")
    # What was deleted may have been anywhere, in rollouts with other traces and in baselines: begin from the raw rows.
    full = previous is None or previous.sql_sha256 != sql_sha or previous.config_sha256 != config_sha or purges
    run = (previous.run if previous else 0) + 1
    known = set() if full or previous is None else set(previous.inputs)

    made_of = sources(read_entries(RealDisk(), lake))

    def moved(path: str) -> bool:
        """A file whose rows were known under other names: a compaction brings nothing new."""
        return path in known or (path in made_of and all(map(moved, made_of[path])))

    inputs = {signal: [_relative(lake, p) for p in live_files(lake, signal)] for signal in ("spans", "events")}
    new = {signal: [path for path in paths if path not in known] for signal, paths in inputs.items()}
    fresh = {signal: [path for path in paths if not moved(path)] for signal, paths in new.items()}
    key_files = [] if full or previous is None else list(previous.files["keys"])
    key_files.append(_index(connection, lake, new, run))

    if not full and previous is not None:
        define_live(connection, lake, previous, "old_")
    else:
        _define_nothing_live(connection)
    _find_touched(connection, lake, key_files, fresh)
    live_paths = [[path] for paths in inputs.values() for path in paths]
    connection.execute("create or replace temp table live_paths (file varchar)")
    if live_paths:
        connection.executemany("insert into live_paths values (?)", live_paths)
    connection.execute("delete from keys where file not in (select file from live_paths)")
    _load(connection, lake)
    reward = _define_rewards(connection, config, lake, inputs["events"])
    _define_prices(connection, config)
    recipe = _recipe(config, own, reward)
    parameters = _parameters(config, now, recipe) | {"method": own.method(config)}
    for step in steps.steps(own.method(config)):
        steps.create(connection, step, parameters)
        own.after(connection, step.table)

    manifest = Manifest(
        run=run,
        now_unix_nano=now,
        sql_sha256=sql_sha,
        config_sha256=config_sha,
        config=config.model_dump(mode="json"),
        reward=reward,
        recipe=recipe,
        inputs=sorted(path for paths in inputs.values() for path in paths),
        files={"keys": key_files},
    )
    _store(connection, lake, manifest, None if full else previous)
    traces = _count(connection, "select count(*) from touched_traces")
    manifest.touched_rollouts = _count(connection, "select count(*) from rollouts")
    manifest.deleted = previous.deleted if previous is not None else ""
    manifest.write(lake)
    if deleted and manifest.deleted != deleted.sha256:
        # Readers have moved on; a crash from here on repeats all of it.
        if previous is not None:
            purge(connection, lake, manifest, deleted.traces)
        manifest.deleted = deleted.sha256
        manifest.write(lake)
    return TransformReport(
        run=run,
        manifest=lake.derived / "manifest.json",
        new_files=sum(map(len, fresh.values())),
        traces=traces,
        rollouts=manifest.touched_rollouts,
        seconds=time.monotonic() - began,
        full=full,
    )


def _index(connection: duckdb.DuckDBPyConnection, lake: Lake, fresh: dict[str, list[str]], run: int) -> str:
    """Write the keys of what is new, each with the file that its node lies in; returns the index file."""
    connection.execute("create or replace temp table indexed (node varchar, key varchar, signal varchar, file varchar)")
    for signal, paths in fresh.items():
        for path in paths:
            _view_files(connection, lake, signal, [path])
            steps.create(connection, steps.keys(signal), {})
            connection.execute(
                "insert into indexed select node, key, $signal, $path from new_keys", {"signal": signal, "path": path}
            )
        connection.execute(f"drop view if exists {signal}")
    return write_parquet(
        connection, lake, "select * from indexed order by node, key", f"derived/keys/run={run:06d}/part.parquet"
    )


def _find_touched(
    connection: duckdb.DuckDBPyConnection, lake: Lake, key_files: list[str], fresh: dict[str, list[str]]
) -> None:
    """`touched`: nodes to recompute. What is new or was incomplete, grown along shared keys until nothing is added."""
    paths = steps.path_list([str(lake.root / path) for path in key_files])
    connection.execute(
        f"create or replace temp table keys as select * from read_parquet({paths}, hive_partitioning = false)"
    )
    # A process ties bare calls together only while nothing names their rollout: a service that runs for months must
    # not be recomputed with each call.
    connection.execute(
        """
        create or replace temp table joining as
        with named as (
            select distinct holder.node
            from keys as holder
            join keys as same using (key)
            join keys as name on name.node = same.node and name.key like 'r:%'
            where holder.key not like 'i:%'
        )
        select distinct keys.node, keys.key
        from keys
        left join named using (node)
        where keys.key not like 'i:%' or named.node is null
        """
    )
    connection.execute(
        "create or replace temp table touched as select distinct node from indexed where list_contains($fresh, file)",
        {"fresh": [path for paths in fresh.values() for path in paths]},
    )
    connection.execute(
        "insert into touched select distinct unnest(trace_ids) from old_rollouts where not complete "
        "union select distinct joining.node from joining "
        "join (select 'r:' || base_rollout_id as key from old_rollouts where not complete) using (key)"
    )
    while True:
        before = _count(connection, "select count(*) from touched")
        connection.execute(
            """
            create or replace temp table touched as
            select node from touched
            union
            select joining.node
            from joining
            semi join (select distinct key from joining semi join touched using (node)) as reached using (key)
            """
        )
        if _count(connection, "select count(*) from touched") == before:
            return


def _load(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """`spans` and `events`: the raw rows of what is touched, from just the files that hold them."""
    connection.execute(
        "create or replace temp table touched_traces as select distinct node as trace_id from touched where node not like 'e:%'"
    )
    for signal in ("spans", "events"):
        rows = connection.execute(
            "select distinct file from keys semi join touched using (node) where signal = $signal order by file",
            {"signal": signal},
        ).fetchall()
        _view_files(connection, lake, signal, [row[0] for row in rows])
        condition = (
            "trace_id in (select trace_id from touched_traces)"
            if signal == "spans"
            else "'e:' || content_sha256 in (select node from touched)"
        )
        connection.execute(f"create or replace temp table loaded as select * from {signal} where {condition}")
        connection.execute(f"drop view {signal}")
        connection.execute(f"alter table loaded rename to {signal}")


def _view_files(connection: duckdb.DuckDBPyConnection, lake: Lake, signal: str, paths: list[str]) -> None:
    """`spans` or `events` as a view over the given files; with none, an empty relation of the right shape."""
    source = steps.path_list([str(lake.root / path) for path in paths])
    if not paths:
        anywhere = live_files(lake, signal)
        if not anywhere:
            from otel_lightning.transforms.shapes import empty_relation

            connection.execute(f"create or replace temp view {signal} as {empty_relation(signal)}")
            return
        source = steps.path_list([str(anywhere[0])])
    where = "" if paths else " where false"
    if paths:
        where = " where coalesce(trace_id not in (select trace_id from deleted_traces), true)"
    connection.execute(
        f"create or replace temp view {signal} as select * from read_parquet({source}, hive_partitioning = false, "
        f"union_by_name = true){where}"
    )


def _define_prices(connection: duckdb.DuckDBPyConnection, config: TransformConfig) -> None:
    """`prices` per million tokens; what ends in * is for every model whose name begins so, the longest first."""
    connection.execute(
        "create or replace temp table prices (model varchar, starts boolean, input decimal(18, 9), output decimal(18, 9))"
    )
    for name, price in sorted(config.prices.items()):
        connection.execute(
            "insert into prices values ($model, $starts, $input, $output)",
            {
                "model": name.removesuffix("*"), "starts": name.endswith("*"),
                "input": Decimal(repr(price.input)), "output": Decimal(repr(price.output)),
            },
        )  # fmt: skip


def _define_rewards(
    connection: duckdb.DuckDBPyConnection, config: TransformConfig, lake: Lake, event_files: list[str]
) -> dict[str, Any]:
    """`reward_names` and `reward_labels` from the configuration, or from the names in the lake when it has none."""
    weights = dict(config.rewards.train)
    if not weights:
        weights = {name: 1.0 for name in _only_reward_name(connection, lake, event_files)}
    outcome = config.rewards.outcome or (next(iter(weights)) if len(weights) == 1 else None)
    connection.execute(
        "create or replace temp table reward_names (name varchar, weight double, combine varchar, is_outcome boolean)"
    )
    connection.execute("create or replace temp table reward_labels (name varchar, label varchar, value double)")
    for name in sorted(set(weights) | ({outcome} if outcome else set())):
        connection.execute(
            "insert into reward_names values ($name, $weight, $combine, $outcome)",
            {
                "name": name,
                "weight": weights.get(name),
                "combine": config.rewards.combine.get(name, "last"),
                "outcome": name == outcome,
            },
        )
    for name, labels in config.rewards.labels.items():
        for label, value in labels.items():
            connection.execute(
                "insert into reward_labels values ($name, $label, $value)",
                {"name": name, "label": label, "value": value},
            )
    return {"train": weights, "outcome": outcome}


def _only_reward_name(connection: duckdb.DuckDBPyConnection, lake: Lake, event_files: list[str]) -> list[str]:
    """The name that counts when none is configured: `reward`, else `primary`, else the only one there is."""
    names: set[str] = set()
    if event_files:
        source = steps.path_list([str(lake.root / path) for path in event_files])
        names = {
            row[0]
            for row in connection.execute(
                f"select distinct attributes_str['gen_ai.evaluation.name'] from read_parquet({source}, "
                "hive_partitioning = false, union_by_name = true) where event_name = 'gen_ai.evaluation.result' "
                "and attributes_str['gen_ai.evaluation.name'] is not null"
            ).fetchall()
        }
    names |= {
        row[0] for row in connection.execute("select distinct name from old_rewards where name is not null").fetchall()
    }
    for preferred in ("reward", "primary"):
        if preferred in names:
            return [preferred]
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise LightningError(
            f"several rewards were sent ({listed}) and none is configured; say which count in rewards.train, "
            f"e.g. rewards: {{train: {{{sorted(names)[0]}: 1.0}}}}"
        )
    return sorted(names) or ["reward"]


def _identity(config: TransformConfig, own: OwnSql) -> str:
    """What a configuration means, wherever its files lie and however many threads work."""
    said = config.model_dump(mode="json", exclude={"threads": True, "rewards": {"sql"}, "credit": {"sql", "within"}})
    return hashlib.sha256(json.dumps([said, own.identity], sort_keys=True).encode()).hexdigest()


def _recipe(config: TransformConfig, own: OwnSql, reward: dict[str, Any]) -> str:
    """Identity of how rewards became credits; different recipes never meet."""
    parts = {
        "credit": config.credit.model_dump(mode="json", exclude={"sql", "within"}),
        "sql": own.identity,
        "match": config.rewards.match,
        "reward": reward,
        "labels": config.rewards.labels,
        "combine": config.rewards.combine,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _parameters(config: TransformConfig, now: int, recipe: str) -> dict[str, Any]:
    return {
        "now": now,
        "recipe": recipe,
        "settle_s": config.settle_s,
        "session_idle_s": config.session_idle_s,
        "by": config.rollouts.by,
        "attempts": config.rollouts.attempts,
        "salt": config.split.salt,
        "eval_percent": config.split.eval_percent,
        "incomplete": config.policy_for.incomplete,
        "error": config.policy_for.error,
        "timeout": config.policy_for.timeout,
        "truncated": config.policy_for.truncated,
        "method": config.credit.method,
        "baseline": config.credit.baseline,
        "scale": config.credit.scale,
        "gamma": config.credit.gamma,
        "reward_attributes": list(config.rewards.attributes),
        "match": config.rewards.match,
        "kto_threshold": config.kto.threshold,
    }


def _store(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, previous: Manifest | None) -> None:
    """Append the recomputed rows, list what is live now, reduce baselines over it."""
    run = manifest.run
    connection.execute("create or replace temp table new_live (table_name varchar, key varchar, revision integer)")
    for table in KEYED:
        key = LIVE_KEY.get(table, "rollout_id")
        connection.execute(
            f"insert into new_live select distinct {steps.literal(table)}, {key}, {run} from {steps.quoted(table)}"
        )
        files = [] if previous is None else list(previous.files[table])
        if previous is None or _count(connection, f"select count(*) from {steps.quoted(table)}"):
            order = "trajectory_id" if table == "trajectories" else "reward_id" if table == "rewards" else "all"
            columns = f"select *, {key} as live_key, {run}::integer as revision from {steps.quoted(table)} order by "
            query = columns + ("live_key" if order == "all" else f"live_key, {order}")
            files.append(write_parquet(connection, lake, query, f"derived/{table}/run={run:06d}/part.parquet"))
        manifest.files[table] = files
    # Whatever the touched traces and records held before and do not hold now is gone.
    live = "select table_name, key, revision from new_live"
    if previous is not None:
        live += (
            " union all select table_name, key, revision from old_live_keys "
            "anti join new_live using (table_name, key) anti join revoked using (table_name, key)"
        )
        connection.execute(
            """
            create or replace temp table revoked as
            select distinct 'calls' as table_name, coalesce(rollout_id, 'trace:' || trace_id) as key
            from old_calls
            where trace_id in (select trace_id from touched_traces)
            union
            select 'rewards', 'reward:' || reward_id from rewards
            """
        )
        connection.execute(
            "insert into revoked select distinct tables.table_name, revoked.key from revoked "
            "cross join (select unnest($tables) as table_name) as tables where revoked.table_name = 'calls'",
            {"tables": list(KEYED)},
        )
    manifest.files["live"] = [
        write_parquet(
            connection, lake, f"select * from ({live}) order by table_name, key", f"derived/live/run={run:06d}.parquet"
        )
    ]
    _reduce_baselines(connection, lake, manifest)


def _reduce_baselines(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest) -> None:
    returns = steps.path_list([str(lake.root / path) for path in manifest.files["returns"]])
    live = steps.literal(str(lake.root / manifest.files["live"][0]))
    connection.execute("drop table returns")
    connection.execute(
        f"create temp view returns as select data.* from read_parquet({returns}, hive_partitioning = false) "
        f"as data semi join (select * from read_parquet({live}) where table_name = 'returns') as live "
        "on live.key = data.live_key and live.revision = data.revision"
    )
    steps.create(connection, steps.baselines(), {})
    manifest.files["baselines"] = [
        write_parquet(
            connection,
            lake,
            "select * from baselines order by recipe, kind, key, agent",
            f"derived/baselines/run={manifest.run:06d}/part.parquet",
        )
    ]


def _define_nothing_live(connection: duckdb.DuckDBPyConnection) -> None:
    """What a first run finds of earlier ones."""
    connection.execute("create temp table old_calls (rollout_id varchar, trace_id varchar)")
    connection.execute("create temp table old_rewards (name varchar)")
    connection.execute(
        "create temp table old_rollouts (rollout_id varchar, base_rollout_id varchar, trace_ids varchar[], complete boolean)"
    )


@contextmanager
def _only_run(lake: Lake) -> Iterator[None]:
    """Hold `derived/`; LightningError when another run holds it."""
    try:
        handle = os.open(lake.derived / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_problem(lake.derived, error) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise LightningError(f"another lightning-transform is working on {lake.root}; wait for it to end") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _connect(lake: Lake, config: TransformConfig, own: OwnSql) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reaches nothing but the lake: the user's SQL runs in it too."""
    connection = duckdb.connect()
    try:
        connection.execute(f"set memory_limit = {steps.literal(MEMORY_LIMIT)}")
        if config.threads is not None:
            connection.execute(f"set threads = {config.threads:d}")
        connection.execute(f"set temp_directory = {steps.literal(str(lake.derived / 'tmp'))}")
        lock(connection, lake.root)
        own.check(connection)
        yield connection
    finally:
        connection.close()


def _live(lake: Lake) -> list[list[Path]]:
    return [live_files(lake, signal) for signal in ("spans", "events")]


def _relative(lake: Lake, path: Path) -> str:
    return path.relative_to(lake.root).as_posix()


def _count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
