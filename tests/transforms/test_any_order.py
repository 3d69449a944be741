"""Nothing about how data arrives or is worked on changes a value: the same episodes, delivered and derived in many ways.

What real frameworks sent and what a hostile generator writes goes through real collectors in random order, cut, sent twice and
with the collector killed on the way; runs follow each portion. The hash of every table must be that of one full run over
another delivery, whatever the threads, the buckets and the version of DuckDB. What the generator knows of its rewards and
credits is checked as well. `make property` draws two hundred episodes; `make test` some dozens.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from delivery import Delivery, agree, hashes, tables
from episodes import KINDS, Episode, captured, generated, plain, tiny_rewards
from running import ROOT, Starter

from otel_lightning.transforms import steps
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

NOW = time.time_ns() + 10**16
REWARDS = {
    "train": {"reward": 1.0, "tone": 0.0, "many": 1.0},
    "combine": {"tone": "sum", "many": "sum"},
    "outcome": "reward",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "broadcast": {"credit": {"method": "broadcast", "baseline": "group", "scale": "std"}},
    "discounted": {"credit": {"method": "discounted", "gamma": 0.9, "baseline": "rloo"}},
    "agent": {"credit": {"method": "agent", "baseline": "group"}},
    "branch": {"credit": {"method": "branch", "baseline": "branch"}},
}
# Environments with one version of DuckDB each, made by `make property`.
VERSIONS = ("1.5", "2.0")
ENVIRONMENTS = ROOT / ".duckdb"


def config(name: str, **more: Any) -> TransformConfig:
    return TransformConfig.model_validate({"settle_s": 1, "rewards": REWARDS, **CONFIGS[name], **more})


@dataclass
class Lakes:
    """One lake that was derived step by step while it was delivered, one that was delivered otherwise and not derived."""

    episodes: list[Episode]
    stepwise: Path
    other: Path
    killed: int


def deliver(start: Starter, folder: Path, episodes: list[Episode], seed: str, *, portions: int, kills: int) -> Lakes:
    parcels = [parcel for episode in episodes for parcel in episode.parcels]
    stepwise, other = folder / "stepwise", folder / "other"

    def run(portion: int) -> None:
        # Time goes on from run to run, and many episodes are not over at first.
        now = NOW if portion == portions - 1 else time.time_ns() + portion * 10**12
        run_transform(stepwise, config("broadcast", threads=1 + portion % 2), now_unix_nano=now)

    one = Delivery(start, stepwise, f"{seed}/one", kills=kills)
    one.send(parcels, portions, run)
    two = Delivery(start, other, f"{seed}/two", kills=1)
    two.send(parcels, 2, lambda _: None)
    return Lakes(episodes, stepwise, other, one.killed + two.killed)


def draw(count: int, captures: int, seed: int) -> list[Episode]:
    """`captures` recorded episodes, drawn, and generated ones up to `count`."""
    return random.Random(seed).sample(captured(), captures) + generated(count - captures, seed)


@pytest.fixture(scope="module")
def lakes(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakes]:
    """Each kind of generated episode once, and some of the recorded ones."""
    yield deliver(
        start_for_module, tmp_path_factory.mktemp("some"), draw(len(KINDS) + 6, 6, 1), "some", portions=3, kills=2
    )


@pytest.fixture(scope="module")
def expected(lakes: Lakes) -> dict[str, list[tuple[Any, ...]]]:
    """What one full run makes of the other delivery."""
    return whole(lakes.other, "broadcast")


def whole(lake: Path, name: str, **more: Any) -> dict[str, list[tuple[Any, ...]]]:
    """All tables after one full run."""
    shutil.rmtree(lake / "derived", ignore_errors=True)
    run_transform(lake, config(name, **more), now_unix_nano=NOW)
    return tables(lake)


@pytest.mark.row(41)
def test_any_sequence_of_runs_and_kills_ends_where_one_full_run_does(
    lakes: Lakes, expected: dict[str, list[tuple[Any, ...]]]
) -> None:
    assert lakes.killed == 3
    agree(tables(lakes.stepwise), expected)
    assert all(
        len(expected[table]) > 10 for table in ("calls", "rollouts", "rewards", "credits", "tools", "scopes", "samples")
    )
    assert len(expected["trajectories"]) > 1


def test_threads_and_buckets_change_nothing(lakes: Lakes, expected: dict[str, list[tuple[Any, ...]]]) -> None:
    agree(whole(lakes.other, "broadcast", threads=2, buckets=2), expected)


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"broadcast"}))
def test_every_way_to_assign_credit_agrees_on_two_deliveries(lakes: Lakes, name: str, tmp_path: Path) -> None:
    for lake in ("stepwise", "other"):
        shutil.copytree(getattr(lakes, lake), tmp_path / lake, ignore=shutil.ignore_patterns("derived", "wal"))
    one = whole(tmp_path / "stepwise", name)
    assert len(one["credits"]) > 10
    agree(one, whole(tmp_path / "other", name, threads=2, buckets=3))


def test_rewards_stand_where_the_generator_says(lakes: Lakes, expected: dict[str, list[tuple[Any, ...]]]) -> None:
    del expected
    stand(lakes.episodes, lakes.other)


def stand(episodes: list[Episode], lake: Path) -> None:
    """Each generated reward on its target, each generated call with its credit; everything else is an error."""
    with open_tables(lake) as connection:
        found: dict[str, set[Any]] = {}
        for marker, *rest in connection.execute(
            "select explanation, target_kind, target_trace_id, target_span_id, target_choice, unresolved_reason, rollout_id from rewards"
        ).fetchall():
            found.setdefault(marker, set()).add(tuple(rest))
        credits = {
            row[:3]: row[3]
            for row in connection.execute("select trace_id, span_id, choice, reward::double from credits").fetchall()
        }
    wrong = []
    for episode in episodes:
        for marker, target in episode.targets.items():
            rows = found.get(marker, set())
            if not rows:
                wrong.append(f"{marker} is not in rewards")
            for kind, trace, span, choice, reason, rollout in rows:
                right = reason == target.reason
                if target.kind is not None:
                    right &= kind == target.kind
                    right &= target.trace is None or trace == target.trace
                    right &= target.span is None or (span, choice if target.choice is not None else None) == (
                        target.span,
                        target.choice,
                    )
                    right &= (rollout is not None) or target.reason is not None
                if not right:
                    wrong.append(f"{marker}: {kind, trace, span, choice, reason, rollout}, not {target}")
        for key, credit in episode.credits.items():
            if credits.get(key) != credit:
                wrong.append(f"{episode.name}: {key} is credited {credits.get(key)}, not {credit}")
    assert wrong == []


PLANTED = {
    # Each is written as someone might write it, in a file where it looks harmless.
    "an unordered sum(double)": (
        "90_baselines.sql",
        "sum(credit_mean) as total",
        "sum(credit_mean::double)::decimal(38, 12) as total",
    ),
    "any_value without an order": (
        "51_first_users.sql",
        "arg_min((facts.user_trace_id, facts.user_span_id), steps.step)",
        "any_value((facts.user_trace_id, facts.user_span_id))",
    ),
    "now()": ("60_reward_records.sql", "else observed_unix_nano end", "else epoch_ns(now())::ubigint end"),
}


@pytest.fixture(scope="module")
def few(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Lakes:
    """Some episodes in two orders, neither derived."""
    folder, episodes = tmp_path_factory.mktemp("few"), generated(len(KINDS), 3)
    episodes += generated(4, 3, (tiny_rewards, plain), first=900)
    parcels = [parcel for episode in episodes for parcel in episode.parcels if len(episode.parcels) < 50]
    for name in ("stepwise", "other"):
        Delivery(start_for_module, folder / name, f"few/{name}").send(parcels, 3, lambda _: None)
    return Lakes(episodes, folder / "stepwise", folder / "other", 0)


@pytest.mark.parametrize("what", [pytest.param(None, marks=pytest.mark.slow), *PLANTED])
def test_what_depends_on_order_or_time_is_found(few: Lakes, what: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such use anywhere in the SQL, and two ways of working no longer agree."""
    if what is None:
        everything_agrees(few)
        return
    path, was, planted = PLANTED[what]
    read = steps._read
    assert was in read(path)
    try:
        monkeypatch.setattr(
            steps, "_read", lambda name: read(name).replace(was, planted) if name == path else read(name)
        )
        forget_sql()
        with pytest.raises(AssertionError, match="tables differ"):
            everything_agrees(few)
    finally:
        monkeypatch.undo()
        forget_sql()


def everything_agrees(few: Lakes) -> None:
    one = whole(few.stepwise, "broadcast")
    for buckets in (2, 3, 5, 7):
        agree(one, whole(few.other, "broadcast", buckets=buckets))


def forget_sql() -> None:
    for function in vars(steps).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_hundred_episodes_in_every_way(start_for_module: Starter, tmp_path: Path) -> None:
    seed = int(os.environ.get("PROPERTY_SEED", "0"))
    lakes = deliver(start_for_module, tmp_path, draw(200, 30, seed), f"property/{seed}", portions=12, kills=6)
    assert lakes.killed == 7
    one = whole(lakes.other, "broadcast", threads=1)
    agree(tables(lakes.stepwise), one)
    stand(lakes.episodes, lakes.other)
    for threads, count in ((2, 1), (1, 16), (2, 61)):
        agree(whole(lakes.other, "broadcast", threads=threads, buckets=count), one)
    for name in CONFIGS:
        ours = hashes(whole(lakes.other, name, threads=1))
        assert ours == hashes(whole(lakes.stepwise, name, threads=2)), name
        for version in VERSIONS:
            assert with_duckdb(version, lakes.other, name, tmp_path) == ours, (version, name)


def with_duckdb(version: str, lake: Path, name: str, folder: Path) -> dict[str, str]:
    """The hashes of a full run by the DuckDB of another environment."""
    python = ENVIRONMENTS / version / "bin" / "python"
    assert python.exists(), "make property sets it up"
    shutil.rmtree(lake / "derived")
    said = folder / "config.json"
    said.write_text(config(name).model_dump_json())
    program = Path(__file__).parents[1] / "worlds" / "delivery.py"
    done = subprocess.run(
        [python, program, lake, str(NOW), said], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["duckdb"].startswith(version)
    return answer["hashes"]
