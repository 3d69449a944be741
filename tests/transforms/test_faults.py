"""Faults of the matrix that are the transforms': what arrives late, never, in circles, in the wrong order, or as SQL."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from episodes import YEAR_2100, Episode, Target, Writer, requests
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Process
from sql_files import parameters, sql_files, worlds

from otel_lightning.app.errors import LightningError
from otel_lightning.training.config import TrainConfig
from otel_lightning.training.data import read_lake
from otel_lightning.training.run_folder import RunFolder
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

CONFIG: dict[str, Any] = {
    "settle_s": 1,
    "session_idle_s": 60,
    "rewards": {"train": {"reward": 1.0}},
    "split": {"eval_percent": 0},
}
AGENT = {"openinference.span.kind": "AGENT"}


class Lake:
    """A collector and what its lake becomes."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process, self.folder = process, folder

    def send(self, *episodes: Episode) -> None:
        for path, body in requests([parcel for episode in episodes for parcel in episode.parcels]):
            self.process.post(path, body, "application/x-protobuf")
        self.process.post("/flush")

    def transform(self, *, later_s: float = 10**7, **config: Any) -> Any:
        return run_transform(
            self.folder,
            TransformConfig.model_validate(CONFIG | config),
            now_unix_nano=time.time_ns() + int(later_s * 1e9),
        )

    def ask(self, query: str, **bound: Any) -> list[tuple[Any, ...]]:
        with open_tables(self.folder) as connection:
            return connection.execute(query, bound).fetchall()


def job(lake: Lake) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": {"policy": "current"}, "data": {"lake": lake.folder}, "algorithm": {"name": "grpo"},
            "optim": {"lr": 1e-3, "steps": 1}, "output": lake.folder.parent / "job", "tensorboard": False,
        }
    )  # fmt: skip


@pytest.fixture
def lake(collector: Process, tmp_path: Path) -> Lake:
    return Lake(collector, tmp_path / "lake")


def writer(number: int = 0, **more: Any) -> Writer:
    made = Writer("fault", number, random.Random(number))
    made.resource |= more
    return made


def credits(lake: Lake) -> dict[str, float | None]:
    return dict(lake.ask("select span_id, reward::double from credits"))


@pytest.mark.row(33)
def test_a_late_span_revises_its_episode_and_leaves_the_others(lake: Lake) -> None:
    late, other = writer(0), writer(1)
    for w in (late, other):
        root = w.new_span()
        w.call(root, w.ask())
        w.root(span_id=root)
        w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    # The second call of the first episode comes a run later.
    held = writer(0)
    held.clock, held.spans = late.clock, 10
    second = held.call("0000000100000001", "and then")
    lake.send(late.episode, other.episode)
    lake.transform()
    before = {row[0]: row[1:] for row in lake.ask("select span_id, sample_id, revision, n_steps from samples")}
    lake.send(held.episode)
    assert lake.transform().rollouts == 1
    after = {row[0]: row[1:] for row in lake.ask("select span_id, sample_id, revision, n_steps from samples")}
    assert credits(lake)[second] == 1.0
    for span, (sample, revision, steps_before) in before.items():
        # The name by which a training run knows it stays, so that it is not trained again; what changed has a new revision.
        assert after[span][0] == sample
        changed = span.startswith("00000001")
        assert after[span][1:] == ((revision + 1, steps_before + 1) if changed else (revision, steps_before))


def with_ids(prompt: list[int], answer: list[int]) -> dict[str, Any]:
    return {
        "lightning.prompt.token_ids": prompt, "lightning.choice.0.token_ids": answer, "lightning.tokenizer": "t",
        "lightning.choice.0.logprobs": [-0.5] * len(answer), "gen_ai.request.temperature": 1.0,
    }  # fmt: skip


@pytest.mark.row(33)
def test_an_online_job_trains_no_answer_twice_when_its_rollout_is_revised(lake: Lake) -> None:
    w, root, config = writer(), "0000000100000001", job(lake)
    w.spans = 1
    first = w.call(root, "hello", "hi", values=with_ids([1, 2], [3, 4]), convention="genai")
    late = writer()
    late.clock, late.spans = w.clock, 10
    w.root(span_id=root)
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    talk = [("user", "hello"), ("assistant", "hi"), ("user", "and then")]
    second = late.call(root, talk, "bye", values=with_ids([1, 2, 3, 4, 5], [6]), convention="genai")
    lake.send(w.episode)
    lake.transform()
    (rollout,) = lake.ask("select rollout_id from rollouts")[0]
    ids = dict(lake.ask("select span_id, sample_id from samples"))

    run = RunFolder(config, main=True)
    rows = read_lake(lake.folder, config, None, "t", [rollout]).rows
    assert [(row.sample_ids, row.mask.tolist()) for row in rows] == [((ids[first],), [0, 0, 1, 1])]
    run.trained(0, rows)
    lake.send(late.episode)
    lake.transform()
    ids = dict(lake.ask("select span_id, sample_id from samples"))
    before = run.go_on(1)
    assert before == {ids[first]}

    def masks(before: frozenset[str]) -> list[Any]:
        found = read_lake(lake.folder, config, None, "t", [rollout], before).rows
        return [(row.sample_ids, row.mask.tolist(), np.sign(row.advantages).tolist()) for row in found]

    assert masks(before) == [((ids[second],), [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1])]
    assert masks(frozenset())[0][:2] == ((ids[first], ids[second]), [0, 0, 1, 1, 0, 1])
    with pytest.raises(LightningError, match="trained_before"):
        masks(before | {ids[second]})
    # A step that the checkpoint does not hold was lost with its weights: what it trained may be trained. Half a line is none.
    run.trained(2, read_lake(lake.folder, config, None, "t", [rollout], before).rows)
    with open(run.path / "trained.jsonl", "a") as file:
        file.write('{"step": 2, "sam')
    assert run.go_on(2) == before == run.go_on(2)


@pytest.mark.row(33)
def test_an_answer_that_was_trained_under_its_double_is_known(lake: Lake) -> None:
    """Which of two spans of one call stands for it may change when the other one comes; it stays trained."""
    w, root, config = writer(), "0000000100000001", job(lake)
    w.spans = 1
    values = with_ids([1, 2], [3]) | {"gen_ai.response.id": "r1"}
    outer = w.call(root, "hello", "hi", values=values, convention="genai")
    inner = w.call(outer, "hello", "hi", values=values, convention="genai")
    w.root(span_id=root)
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    lake.send(w.episode)
    lake.transform()
    ((rollout, trace, span, sample),) = lake.ask("select rollout_id, trace_id, span_id, sample_id from samples")
    (other,) = {outer, inner} - {span}
    double = lake.ask("select sha256(to_json([$trace, $span, '0'])) as id", trace=trace, span=other)[0][0]
    assert [row.sample_ids for row in read_lake(lake.folder, config, None, "t", [rollout]).rows] == [(sample,)]
    with pytest.raises(LightningError, match="trained_before"):
        read_lake(lake.folder, config, None, "t", [rollout], frozenset({double}))


@pytest.mark.row(34)
def test_a_root_that_is_late_is_waited_for_and_one_that_never_comes_is_flagged(lake: Lake) -> None:
    w, root = writer(), "0000000100000001"
    w.spans = 1
    w.clock = time.time_ns()
    call = w.call(root, w.ask())
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    lake.send(w.episode)
    lake.transform(later_s=30)
    assert lake.ask("select complete, status_reason, flags from rollouts") == [(False, "incomplete", ["no_root"])]
    assert credits(lake) == {}
    assert ("member", "incomplete", 1) in lake.ask("select stage, reason, calls from funnel")
    assert lake.transform(later_s=40).rollouts == 0
    # It never comes: after session_idle_s the episode counts, and says what it lacks.
    assert lake.transform(later_s=90).rollouts == 1
    assert lake.transform(later_s=95).rollouts == 0
    assert lake.ask("select complete, flags from rollouts") == [(True, ["no_root"])]
    assert credits(lake) == {call: 1.0}
    # It comes after all.
    more = writer()
    more.root(span_id=root)
    lake.send(more.episode)
    lake.transform(later_s=96)
    assert lake.ask("select complete, flags from rollouts") == [(True, [])]


@pytest.mark.row(35)
def test_an_orphan_is_kept_and_a_count_says_that_something_is_missing(lake: Lake) -> None:
    w = writer()
    root, lost = w.new_span(), w.new_span()
    orphan = w.call(lost, w.ask())
    w.root({"lightning.span.count": 3}, span_id=root)
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    lake.send(w.episode)
    lake.transform()
    assert lake.ask("select span_id, flags from calls") == [(orphan, ["orphan"])]
    assert lake.ask("select complete, spans, spans_declared from rollouts") == [(False, 2, 3)]
    assert credits(lake) == {}
    # Nothing but the missing span can complete it: no later run touches it.
    assert lake.transform(later_s=10**8).rollouts == 0
    # Where nothing was counted, nothing is known to be missing: case 9 of the attribution cases.
    lake.transform(policy_for={"incomplete": "keep"})
    assert credits(lake) == {orphan: 1.0}


@pytest.mark.row(36)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 14), st.integers(0, 16), st.sampled_from(["llm", "agent", "chain", "judge"])),
        max_size=15,
    )
)
def test_any_graph_is_walked_once_and_what_hangs_on_no_root_is_a_cycle(graph: list[tuple[int, int, str]]) -> None:
    """Edges at random: self-parents, cycles of any length, lost parents. The walk ends and every span is in it once."""
    spans = {span: (parent, kind) for span, parent, kind in graph}
    rows = [
        {
            "trace_id": "t",
            "span_id": f"{span}",
            "parent_span_id": f"{parent}" if parent < 15 else None,
            "span_kind": kind,
        }
        for span, (parent, kind) in spans.items()
    ]
    walk = next(file for file in sql_files() if file.path == "14_walk.sql")
    world = worlds()["run"]
    world.fill(walk.step, {"span_kinds": rows}, parameters())
    walk.hold(world.connection)
    found = dict(world.connection.execute("select span_id, cycle from walk").fetchall())

    def rooted(span: int) -> bool:
        seen = set()
        while span in spans and span not in seen:
            seen.add(span)
            parent = spans[span][0]
            if parent >= 15 or parent not in spans:
                return True
            span = parent
        return False

    assert found == {f"{span}": not rooted(span) for span in spans}


@pytest.mark.row(36)
def test_calls_of_a_cycle_are_kept_flagged_and_credited(lake: Lake) -> None:
    w = writer()
    one, two = w.new_span(), w.new_span()
    w.span(one, two, AGENT)
    w.span(two, one, AGENT)
    call = w.call(two, w.ask())
    itself = w.call("0000000100000009", "my own parent", span_id="0000000100000009")
    w.reward(0.5, Target("trace"), trace=w.trace())
    lake.send(w.episode)
    lake.transform()
    assert sorted(lake.ask("select span_id, flags from calls")) == [(call, ["cycle"]), (itself, ["cycle"])]
    assert credits(lake) == {call: 0.5, itself: 0.5}


DEEP = 20_000


@pytest.mark.row(37)
@pytest.mark.parametrize("children", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_depth_and_width_are_no_trouble(lake: Lake, children: int) -> None:
    """A chain of 20,000 spans with a call at its end, and a root with as many children as asked beside its call."""
    deep, wide = writer(0), writer(1)
    root = above = deep.new_span()
    for _ in range(DEEP):
        above = deep.span(None, above, {"openinference.span.kind": "CHAIN"})
    below = deep.call(above, deep.ask())
    deep.root(span_id=root)
    deep.reward(1.0, Target("trace"), trace=deep.trace(), span=root)
    lake.send(deep.episode)

    broad = wide.new_span()
    call = wide.call(broad, wide.ask())
    wide.root(span_id=broad)
    wide.reward(0.5, Target("trace"), trace=wide.trace(), span=broad)
    lake.send(wide.episode)
    for begin in range(0, children, 20_000):
        wide.episode.parcels.clear()
        for _ in range(min(20_000, children - begin)):
            wide.span(None, broad, {"openinference.span.kind": "CHAIN"})
        lake.send(wide.episode)
    lake.transform()
    assert credits(lake) == {below: 1.0, call: 0.5}
    assert lake.ask("select spans from rollouts order by spans") == sorted([(DEEP + 2,), (children + 2,)])
    assert lake.ask("select count(*) from scopes") == [(DEEP + 2,)]


@pytest.mark.row(38)
def test_impossible_times_are_stored_raw_flagged_and_order_nothing(lake: Lake) -> None:
    w = writer()
    root, at = w.new_span(), w.tick()
    given_times = [
        (at, at + 10),
        (at + 1000, at + 500),
        (at + 2000, 0),
        (0, at + 3000),
        (5, 6),
        (YEAR_2100, YEAR_2100 + 1),
        (2**63 + 9, 2**64 - 1),
    ]
    calls = [w.call(root, f"call {n}", start=start, end=end) for n, (start, end) in enumerate(given_times)]
    w.root(span_id=root)
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root)
    lake.send(w.episode)
    lake.transform(policy_for={"incomplete": "keep"})
    assert dict(
        (span, (start, end))
        for span, start, end in lake.ask("select span_id, start_unix_nano, end_unix_nano from calls")
    ) == dict(zip(calls, given_times, strict=True))
    flags = dict(lake.ask("select span_id, flags from calls"))
    suspects = [bool({"clock_suspect", "no_start_time"} & set(flags[call])) for call in calls]
    assert suspects == [False, True, True, True, True, True, True]
    # By start, without one by end; what has no possible time is not put right, but it is kept and its place is the same each time.
    assert [span for (span,) in lake.ask("select span_id from calls order by step")] == [
        calls[n] for n in (4, 0, 1, 2, 3, 5, 6)
    ]
    assert set(credits(lake).values()) == {1.0} and len(credits(lake)) == 7


@pytest.mark.row(39)
@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_clocks_an_hour_apart_change_no_credit(collector: Process, tmp_path: Path, skew_s: int) -> None:
    """Turns of a conversation on two machines; the order is that of what was said, on whichever clock."""
    lake = Lake(collector, tmp_path / "lake")
    w, true = writer(), writer(0)
    root, other = w.new_span(), {"service.name": "other", "service.instance.id": "other"}
    talk: list[tuple[str, str]] = [("user", w.ask())]
    calls = []
    for turn in range(6):
        at = w.tick() + (skew_s * 10**9 if turn % 2 else 0)
        mine, w.resource = w.resource, (other if turn % 2 else w.resource)
        calls.append(w.call(root, list(talk), f"answer {turn}", start=at, end=at + 10**6, convention="openinference"))
        w.resource = mine
        talk += [("assistant", f"answer {turn}"), ("user", f"more {turn}")]
    w.root(span_id=root, start=true.tick())
    w.reward(1.0, Target("trace"), trace=w.trace(), span=root, at=w.clock - 7200 * 10**9)
    lake.send(w.episode)
    lake.transform(credit={"method": "discounted", "gamma": 0.5})
    assert lake.ask("select span_id, step from calls order by step") == [
        (call, step) for step, call in enumerate(calls)
    ]
    assert [credits(lake)[call] for call in calls] == [0.5 ** (5 - step) for step in range(6)]
    flagged = [
        call for call, flags in lake.ask("select span_id, flags from calls order by step") if "clock_suspect" in flags
    ]
    assert flagged == [call for turn, call in enumerate(calls) if turn % 2 == (1 if skew_s < 0 else 0) and turn]
    days = {path.parent.name for path in (tmp_path / "lake" / "spans").glob("day=*/*.parquet")}
    assert days <= {f"day={time.strftime('%Y-%m-%d', time.gmtime(t))}" for t in (time.time() - 86400, time.time())}


@pytest.mark.row(39)
def test_a_clock_that_is_set_back_changes_no_order_where_spans_are_counted(lake: Lake) -> None:
    w = writer()
    root = w.new_span()
    calls = []
    for number in range(4):
        at = w.tick() - (3600 * 10**9 if number >= 2 else 0)
        calls.append(
            w.call(root, f"call {number}", start=at, end=at + 10**6, values={"lightning.span.seq": number + 1})
        )
    w.root(span_id=root)
    lake.send(w.episode)
    lake.transform()
    assert lake.ask("select span_id from calls order by step") == [(call,) for call in calls]


ESCAPES = [
    "select * from read_text('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from read_csv('/etc/passwd')",
    "select * from glob('/etc/*')",
    "copy (select 1) to '{folder}/out.csv'",
    "attach '{folder}/out.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set allowed_directories = ['/']",
    "export database '{folder}/out'",
    "select 1; copy (select 1) to '{folder}/out.csv'",
    "create table x as select 1",
    "pragma database_list",
    "call pragma_version()",
    "select getenv('HOME')",
    "with x as (select * from read_text('/etc/passwd')) select * from x",
    "select (select content from read_text('/etc/passwd'))",
    "select * from query('select * from read_text(''/etc/passwd'')')",
]


@pytest.mark.row(57)
@pytest.mark.parametrize("query", ESCAPES)
def test_sql_that_was_typed_reaches_nothing_outside_the_lake(tmp_path: Path, query: str) -> None:
    from otel_lightning.transforms.ask import ask

    (tmp_path / "lake").mkdir()
    query = query.format(folder=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LightningError) as refused:
        ask(tmp_path / "lake", query, "json")
    assert len(str(refused.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    # The wall behind the first one: the connection itself refuses, or has nothing to tell.
    with open_tables(tmp_path / "lake", locked=True) as connection:
        try:
            told = str(connection.execute(query).fetchall())
        except duckdb.Error:
            told = ""
    assert "root:" not in told
    assert sorted(tmp_path.rglob("*")) == before
