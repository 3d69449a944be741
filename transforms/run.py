"""One transform run: find what arrivals touched, recompute just that from spans to credits, append, point to it.

A run first indexes new files narrowly (touched.py), grows the touched traces along shared keys until nothing is added, and
then runs every SQL step over them, bucket by bucket (buckets.py). What belongs together is always recomputed together, so any
sequence of runs, and any number of buckets, ends where one full run would. Killed anywhere, the next run does it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
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
from otel_lightning.transforms import buckets, compaction, late, steps, touched
from otel_lightning.transforms.buckets import Bucket
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.derived import (
    INTERNAL,
    KEYED,
    SOURCES,
    STORED,
    Manifest,
    arrived_since,
    define_deleted,
    define_live,
    live_rows,
    make_folders,
    purge,
    write_parquet,
)
from otel_lightning.transforms.guard import lock
from otel_lightning.transforms.own_sql import OwnSql
from otel_lightning.transforms.preferences import reduce_pairs
from otel_lightning.transforms.rehearsal import rehearse
from otel_lightning.transforms.shapes import CONFIGURED
from otel_lightning.transforms.telling import Telling
from otel_lightning.transforms.touched import count as _count

# The rows of a table that belong to one key are replaced together. Calls outside any rollout hang on their trace,
# rewards that found no rollout on themselves.
LIVE_KEY = {
    "calls": "coalesce(rollout_id, 'trace:' || trace_id)",
    "scopes": "coalesce(rollout_id, 'trace:' || trace_id)",
    "tools": "coalesce(rollout_id, 'trace:' || trace_id)",
    "rewards": "coalesce(rollout_id, 'reward:' || reward_id)",
    "records": "node",
    "places": "trace_id",
}
# What the steps leave for found.sql; every other table is given back once no later step reads it.
KEPT = (*KEYED, "span_kinds", "llm_spans", "tool_facts", "reward_records", "capture_joins")
# Of the memory of a run: what DuckDB may use. The rest is Python's, the libraries' and what lies between allocations.
DUCKDB_SHARE = 0.75
# A bucket is what fits the memory, and a small one is dearer by more threads than one (a fifth of the CPU time), and no sooner done.
MB_A_THREAD = 2048
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

    @property
    def summary(self) -> str:
        """One line for people."""
        what = "everything" if self.full else f"{self.new_files} new files"
        return (
            f"run {self.run}: {what}; {self.rollouts} rollouts over {self.traces} traces recomputed "
            f"in {self.seconds:.1f} s"
        )


def run_transform(
    lake: Path, config: TransformConfig, *, now_unix_nano: int | None = None, progress: bool = False
) -> TransformReport:
    """Bring `derived/` up to date with the lake; work is proportional to what was touched since the last run.

    `now_unix_nano` is what "quiet for" is measured against; it is recorded. `progress` tells on stderr how far a long run
    is. LightningError when there is no lake, when no reward is configured and several names could be meant, or when
    another run holds the lake.
    """
    began = time.monotonic()
    home = Lake.existing(lake)
    make_folders(home)
    now = time.time_ns() if now_unix_nano is None else now_unix_nano
    own = OwnSql.read(config)
    with _only_run(home), Telling(progress) as telling:
        for _ in range(READ_ATTEMPTS - 1):
            files = _live(home)
            try:
                with _connect(config, own, home) as connection:
                    return _run(connection, home, config, own, now, began, telling)
            except (duckdb.Error, LightningError):
                # A file that a deletion, or a compaction whose grace is over, took away: begin again with what is live.
                if _live(home) == files:
                    raise
        with _connect(config, own, home) as connection:
            return _run(connection, home, config, own, now, began, telling)


def _run(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    config: TransformConfig,
    own: OwnSql,
    now: int,
    began: float,
    telling: Telling,
    *,
    everything: bool = False,
) -> TransformReport:
    previous = Manifest.read(lake)
    config_sha = _identity(config, own)
    sql_sha = steps.sql_sha256(own.method(config))
    deleted = read_deleted(lake)
    define_deleted(connection, deleted.traces)
    purges = previous is not None and previous.deleted != (deleted.sha256 if deleted else "")
    # What was deleted may have been anywhere, in rollouts with other traces and in baselines: begin from the raw rows.
    full = (
        everything
        or previous is None
        or previous.sql_sha256 != sql_sha
        or previous.config_sha256 != config_sha
        or purges
    )
    run = (previous.run if previous else 0) + 1
    if full or previous is None:
        base, known, key_files = None, set[str](), list[str]()
        _define_nothing_live(connection)
    else:
        base, known, key_files = previous, set(previous.inputs), list(previous.files["keys"])
        define_live(connection, lake, previous, "old_")

    made_of = sources(read_entries(RealDisk(), lake))

    def moved(path: str) -> bool:
        """A file whose rows were known under other names: a compaction brings nothing new."""
        return path in known or (path in made_of and all(map(moved, made_of[path])))

    inputs = {
        signal: [_relative(lake, p) for p in arrived_since(live_files(lake, signal), config.since)]
        for signal in ("spans", "events")
    }
    new = {signal: [path for path in paths if path not in known] for signal, paths in inputs.items()}
    fresh = [path for paths in new.values() for path in paths if not moved(path)]
    telling.begin("index", sum(map(len, new.values())))
    key_files += touched.index_files(connection, lake, new, run)
    touched.define_keys(connection, lake, key_files, inputs)
    reward = _define_rewards(connection, config, own, lake, new)
    if base is not None and reward != base.reward:
        # What counts without being configured depends on which names there are: a new one may change all credit.
        return _run(connection, lake, config, own, now, began, telling, everything=True)
    _define_prices(connection, config)
    recipe = _recipe(config, own, reward)
    parameters = _parameters(config, now, recipe)
    touched.find_touched(connection, lake, fresh, now, everything=base is None)

    traces = rollouts = 0
    while True:
        manifest = Manifest(
            run=run,
            now_unix_nano=now,
            sql_sha256=sql_sha,
            config_sha256=config_sha,
            config=config.model_dump(mode="json"),
            reward=reward,
            recipe=recipe,
            inputs=sorted(path for paths in inputs.values() for path in paths),
        )
        touched.find_parts(connection)
        traces += _count(connection, "select count(*) from parts where node not like 'e:%'")
        _begin_store(connection, lake, manifest, base)
        if late.find_late(connection, allowed=base is not None and not own.rewards and own.credit is None):
            rollouts += _work_late(connection, lake, manifest, new["events"], config, own, parameters, telling)
        planned = buckets.plan(connection, lake, _scratch(lake), config.memory_mb, config.buckets)
        for bucket in planned or ([Bucket(0, [], None, None)] if base is None else []):
            rollouts += _work(connection, lake, manifest, bucket, config, own, parameters, telling)
        _end_store(connection, lake, manifest, base, parameters)
        key_files += touched.note_found(connection, lake, run)
        manifest.files["keys"] = key_files
        if not _count(connection, "select count(*) from touched"):
            break
        # Only the steps could see that these belong together: once more, and nobody has seen what was written.
        base, run = manifest, run + 1
        define_live(connection, lake, base, "old_")
        touched.note_causes(connection)
        touched.grow(connection)

    telling.begin("merging", 1)
    compaction.merge_files(connection, lake, manifest)
    manifest.touched_rollouts = rollouts
    manifest.deleted = previous.deleted if previous is not None else ""
    manifest.write(lake)
    if deleted and manifest.deleted != deleted.sha256:
        # Readers have moved on; a crash from here on repeats all of it.
        if previous is not None:
            purge(connection, lake, manifest, deleted.traces)
        manifest.deleted = deleted.sha256
        manifest.write(lake)
    compaction.remove_unnamed(lake)
    return TransformReport(
        run=run,
        manifest=lake.derived / "manifest.json",
        new_files=len(fresh),
        traces=traces,
        rollouts=manifest.touched_rollouts,
        seconds=time.monotonic() - began,
        full=full,
    )


def _work(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    bucket: Bucket,
    config: TransformConfig,
    own: OwnSql,
    parameters: dict[str, Any],
    telling: Telling,
) -> int:
    """Every step over one bucket, its rows appended; how many rollouts it held."""
    method = own.method(config)
    given_back = steps.last_uses(method, (*KEPT, *own.reads))
    buckets.load(connection, lake, bucket)
    todo = steps.steps(method)
    telling.begin(f"bucket {bucket.number}", len(todo), _count(connection, "select count(*) from spans"))
    for step in todo:
        telling.step(step.path)
        steps.create(connection, step, parameters)
        own.after(connection, step.table)
        if step.table == "whole_calls":  # before its text is given back
            telling.step("writing calls")
            _store(connection, lake, manifest, bucket.number, ("calls",))
        for table in given_back.get(step.path, ()):
            connection.execute(f"drop table {steps.quoted(table)}")
    telling.step("writing")
    _store(connection, lake, manifest, bucket.number, tuple(table for table in STORED if table != "calls"))
    found = steps.keys("found")
    steps.create(connection, found, parameters)
    connection.execute("insert into found_keys select node, kind, key from new_keys")
    return _count(connection, "select count(*) from rollouts")


def _work_late(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    new_events: list[str],
    config: TransformConfig,
    own: OwnSql,
    parameters: dict[str, Any],
    telling: Telling,
) -> int:
    """What only evaluations touched; how many rollouts it was."""
    todo = late.late_steps(own.method(config))
    telling.begin("late feedback", len(todo))
    late.load_late(connection, lake, new_events, own, parameters)
    for step in todo:
        telling.step(step.path)
        steps.create(connection, step, parameters)
        if step.table == "reward_records":
            late.add_old_records(connection)
        own.after(connection, step.table)
    _store(connection, lake, manifest, 0, late.TABLES)
    return _count(connection, "select count(*) from rollouts")


def _define_prices(connection: duckdb.DuckDBPyConnection, config: TransformConfig) -> None:
    """`prices` per million tokens; a name that ends in * is for every model whose name begins so."""
    connection.execute(f"create or replace temp table prices ({CONFIGURED['prices']})")
    for name, price in sorted(config.prices.items()):
        connection.execute(
            "insert into prices values ($model, $starts, $input, $output)",
            {
                "model": name.removesuffix("*"), "starts": name.endswith("*"),
                "input": Decimal(repr(price.input)), "output": Decimal(repr(price.output)),
            },
        )  # fmt: skip


def _define_rewards(
    connection: duckdb.DuckDBPyConnection, config: TransformConfig, own: OwnSql, lake: Lake, new: dict[str, list[str]]
) -> dict[str, Any]:
    """`reward_names` and `reward_labels` from the configuration, or from the names in the lake when it has none."""
    weights = dict(config.rewards.train)
    if not weights:
        known = {*own.names, *config.rewards.attributes}
        weights = {name: 1.0 for name in _only_reward_name(connection, lake, new, known)}
    outcome = config.rewards.outcome or (next(iter(weights)) if len(weights) == 1 else None)
    for table in ("reward_names", "reward_labels"):
        connection.execute(f"create or replace temp table {table} ({CONFIGURED[table]})")
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


def _only_reward_name(
    connection: duckdb.DuckDBPyConnection, lake: Lake, new: dict[str, list[str]], known: set[str]
) -> list[str]:
    """The name that counts when none is configured: `reward`, else `primary`, else the only one there is."""
    names = set(known)
    for signal in ("spans", "events"):
        query = touched.raw_rows(lake, signal, new.get(signal, []))
        connection.execute(f"create or replace temp view {signal} as {query}")
    steps.create(connection, steps.keys("names"), {})
    names |= {row[0] for row in connection.execute("select name from new_keys").fetchall()}
    connection.execute("drop view spans; drop view events; drop table new_keys")
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
    """What a configuration means, wherever its files lie and however it is worked on."""
    how = {"threads": True, "memory_mb": True, "buckets": True, "rewards": {"sql"}, "credit": {"sql", "within"}}
    said = config.model_dump(mode="json", exclude=how)
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
        "method": (config.credit.sql and Path(config.credit.sql).name) or config.credit.method,
        "baseline": config.credit.baseline,
        "scale": config.credit.scale,
        "gamma": config.credit.gamma,
        "messages": config.messages,
        "reward_attributes": list(config.rewards.attributes),
        "match": config.rewards.match,
        "kto_threshold": config.kto.threshold,
        "min_margin": config.pairs.min_margin,
        "k": config.pairs.k,
    }


def _begin_store(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest, base: Manifest | None) -> None:
    """Nothing stored yet: the tables hold what they held in `base`."""
    connection.execute(
        "create or replace temp table new_live (table_name varchar, key varchar);"
        "create or replace temp table found_keys (node varchar, kind varchar, key ubigint);"
        "create or replace temp table new_rewards (key varchar)"
    )
    for table in STORED:
        manifest.files[table] = [] if base is None else list(base.files[table])
        shutil.rmtree(_run_folder(lake, table, manifest.run), ignore_errors=True)  # of a run that was killed


def _store(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    bucket: int,
    tables: tuple[str, ...],
) -> None:
    """Append the rows of some tables of one bucket."""
    for table in tables:
        key = LIVE_KEY.get(table, "rollout_id")
        rows = INTERNAL.get(table, f"select * from {steps.quoted(table)}")
        connection.execute(
            f"insert into new_live select distinct {steps.literal(table)}, {key} from ({rows}) where {key} is not null"
        )
        # A table without any file would have no columns.
        if manifest.files[table] and not _count(connection, f"select count(*) from ({rows})"):
            continue
        query = f"select *, {key} as live_key, {manifest.run}::integer as revision from ({SOURCES.get(table, rows)})"
        if table != "calls":  # whose rows are too wide to be sorted before a compaction does it
            query += " order by live_key"
        path = f"derived/{table}/run={manifest.run:06d}/part-{bucket:04d}.parquet"
        manifest.files[table].append(write_parquet(connection, lake, query, path))
    if "rewards" in tables:
        connection.execute("insert into new_rewards select distinct 'reward:' || reward_id from rewards")


def _end_store(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    manifest: Manifest,
    base: Manifest | None,
    parameters: dict[str, Any],
) -> None:
    """List what this run recomputed and what is gone; reduce baselines over all that is live then."""
    query = f"select distinct table_name, key, {manifest.run}::integer as run, false as gone from new_live"
    manifest.files["live"] = []
    if base is not None:
        # Whatever the touched traces and records held before and do not hold now is gone; after late feedback, only of the
        # tables that it can change.
        connection.execute(
            """
            create or replace temp table held as
            with nodes as (
                select parts.node, late.node is not null as late from parts left join late using (node)
            )
            select node as key, late from nodes
            union
            select 'trace:' || node, late from nodes where node not like 'e:%'
            union
            select rollout_id, late
            from (select rollout_id, unnest(trace_ids) as node from old_rollouts)
            join nodes using (node)
            union
            select rollout_id, late
            from (select rollout_id, md5_number_lower('r' || base_rollout_id) as key from old_rollouts)
            join (select distinct key, late from keys join nodes using (node) where kind = 'r') as named using (key)
            union
            select key, false from new_rewards
            """
        )
        connection.execute(
            "create or replace temp table gone as select table_name, key from old_live_keys as live "
            "semi join (select * from held where not late) as held using (key) "
            "union select table_name, key from old_live_keys as live "
            "semi join (select * from held where late) as held using (key) where list_contains($tables, table_name)",
            {"tables": list(late.TABLES)},
        )
        query += f" union all select table_name, key, {manifest.run}, true from gone anti join new_live using (table_name, key)"
        manifest.files["live"] = list(base.files["live"])
    manifest.files["live"].append(
        write_parquet(
            connection,
            lake,
            f"select * from ({query}) order by key, table_name",
            f"derived/live/run={manifest.run:06d}.parquet",
        )
    )
    _reduce_baselines(connection, lake, manifest)
    manifest.files["pairs"] = [reduce_pairs(connection, lake, manifest, base, parameters)]


def _run_folder(lake: Lake, table: str, run: int) -> Path:
    return lake.derived / table / f"run={run:06d}"


def _reduce_baselines(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest) -> None:
    connection.execute(f"create or replace temp table returns as {live_rows(lake, manifest, 'returns')}")
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
    for name, columns in {
        "live_keys": "null::varchar as table_name, null::varchar as key, null::integer as revision",
        "rewards": "null::varchar as name",
        "rollouts": "null::varchar as rollout_id, null::varchar as base_rollout_id, null::varchar[] as trace_ids, null::ubigint as due_unix_nano",
    }.items():
        connection.execute(f"create or replace temp view old_{name} as select {columns} where false")


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
def _connect(config: TransformConfig, own: OwnSql, lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    scratch = _scratch(lake)
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed: nobody else works here
    scratch.mkdir()
    connection = duckdb.connect()
    try:
        connection.execute(f"set memory_limit = '{int(config.memory_mb * DUCKDB_SHARE)}MiB'")
        connection.execute(f"set temp_directory = {steps.literal(str(scratch / 'spill'))}")
        connection.execute("set preserve_insertion_order = false")
        # Few rows are expected on one side of an asof join where there are many; a nested loop is then quadratic.
        connection.execute("set asof_loop_join_threshold = 0")
        threads = config.threads or max(1, min(os.cpu_count() or 1, config.memory_mb // MB_A_THREAD))
        connection.execute(f"set threads = {threads:d}")
        lock(connection, lake.root)  # the user's SQL runs in it too
        own.check(connection)
        rehearse(own, own.method(config), _parameters(config, 0, ""))
        yield connection
    finally:
        connection.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(lake: Lake) -> Path:
    """What waits on disk while a run works."""
    return lake.derived / "tmp"


def _live(lake: Lake) -> list[list[Path]]:
    return [live_files(lake, signal) for signal in ("spans", "events")]


def _relative(lake: Lake, path: Path) -> str:
    return path.relative_to(lake.root).as_posix()
