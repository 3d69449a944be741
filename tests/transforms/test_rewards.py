"""Every form in which a reward travels, through the real collector: what it stands on, and what the user's SQL adds to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from running import Otlp, Starter, attributes

from otel_lightning.app.errors import LightningError
from otel_lightning.store.lake import Lake
from otel_lightning.transforms import steps
from otel_lightning.transforms.config import TransformConfig, read_config
from otel_lightning.transforms.derived import make_folders
from otel_lightning.transforms.explain import explain
from otel_lightning.transforms.own_sql import OwnSql, Statement
from otel_lightning.transforms.rehearsal import rehearse
from otel_lightning.transforms.run import (
    TransformReport,
    _connect,
    _define_prices,
    _define_rewards,
    _parameters,
    run_transform,
)
from otel_lightning.transforms.tables import open_tables

NOW = time.time_ns() + 10**13
HOSTILE = "a'); drop table calls; --\"$now"


class Episodes:
    """Episodes of one shape: a root, an agent below it, two calls and a tool below that. Each in a trace of its own."""

    def __init__(self, otlp: Otlp) -> None:
        self.otlp, self.spans, self.records, self.count = otlp, [], [], 0

    def span(self, trace: str, span: str, parent: str | None, values: dict[str, Any], **more: Any) -> None:
        made = {
            "traceId": trace, "spanId": span, "name": "s", "startTimeUnixNano": str(self.otlp.tick()),
            "endTimeUnixNano": str(self.otlp.tick()), "attributes": attributes(values), **more,
        }  # fmt: skip
        self.spans.append({**made, "parentSpanId": parent} if parent else made)

    def episode(self, *, session: str | None = None, task: str = "same", **more: dict[str, Any]) -> str:
        """The trace id of a new episode; `a`, `b`, `root` … take further attributes, its first letter names the span."""
        self.count += 1
        trace, at = f"{self.count:032x}", lambda letter: letter * 15 + "0"
        chat = {"session.id": session} if session else {}
        self.span(trace, at("e"), None, {"openinference.span.kind": "CHAIN", **chat, **more.get("root", {})})
        self.span(
            trace,
            at("f"),
            at("e"),
            {"openinference.span.kind": "AGENT", "agent.name": "helper", **more.get("agent", {})},
        )
        for letter, text in (("a", f"{task}?"), ("b", f"{task}!")):
            self.span(
                trace, at(letter), at("f"), {
                    "openinference.span.kind": "LLM", "llm.model_name": "m-1", "gen_ai.response.id": f"resp-{self.count}-{letter}",
                    "llm.token_count.prompt": 1000, "llm.token_count.completion": 100, **chat,
                    "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": text,
                    "llm.output_messages.0.message.role": "assistant",
                    "llm.output_messages.0.message.content": f"answer {self.count} {letter}", **more.get(letter, {}),
                },
            )  # fmt: skip
        self.span(trace, at("d"), at("f"), {
            "openinference.span.kind": "TOOL", "gen_ai.tool.call.id": f"tool-{self.count}", "tool.name": "w", **more.get("tool", {}),
        })  # fmt: skip
        return trace

    def record(self, value: float | None, *, name: str = "reward", at: int | None = None, trace: str | None = None, span: str | None = None, **values: Any) -> dict[str, Any]:  # fmt: skip
        score = {} if value is None else {"gen_ai.evaluation.score.value": value}
        made = {
            "eventName": "gen_ai.evaluation.result", "timeUnixNano": str(at or self.otlp.tick()),
            "attributes": attributes({"gen_ai.evaluation.name": name, **score, **values}),
        }  # fmt: skip
        made |= {"traceId": trace} if trace else {}
        self.records.append(made | ({"spanId": span} if span else {}))
        return self.records[-1]


def at(letter: str) -> str:
    return letter * 15 + "0"


def every_form(told: Episodes) -> dict[str, tuple[str, Any]]:
    """Every form once: what it is called, and (kind, span, value or label, why not) of what becomes of it."""
    expected: dict[str, tuple[str, Any]] = {}
    inline = {
        f"evaluations.0.evaluation.{key}": value
        for key, value in (("name", "inline"), ("score", 1), ("annotator_kind", "HUMAN"))
    }
    inline |= {f"annotations.0.annotation.{key}": value for key, value in (("name", "inline"), ("score", 1.0))}
    inline |= {"trace.annotations.0.annotation.name": "of trace", "trace.annotations.0.annotation.score": 0.5}
    inline |= {"session.annotations.0.annotation.name": "of session", "session.annotations.0.annotation.label": "good"}
    one = told.episode(session="chat-1", a=inline)
    expected |= {
        "inline": ("call", "a", 1.0, None),
        "of trace": ("trace", None, 0.5, None),
        "of session": ("session", None, "good", None),
    }
    link = {"links": [{"traceId": one, "spanId": at("f")}]}
    carried = {
        "openinference.span.kind": "EVALUATOR",
        "evaluations.0.evaluation.name": "linked",
        "evaluations.0.evaluation.score": 2.0,
    }
    told.span("9" * 32, at("1"), None, carried, **link)
    expected["linked"] = ("span", "f", 2.0, None)
    below = {
        "openinference.span.kind": "EVALUATOR",
        "evaluations.0.evaluation.name": "judged",
        "evaluations.0.evaluation.score": 3.0,
    }
    told.span(one, at("1"), at("f"), below)
    told.span(one, at("2"), at("1"), {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user",
                                      "llm.input_messages.0.message.content": "grade", "llm.output_messages.0.message.content": "3"})  # fmt: skip
    expected["judged"] = ("span", "f", 3.0, None)
    told.record(1.0, name="of the judge's call", trace=one, span=at("2"))
    expected["of the judge's call"] = ("call", "2", 1.0, "target_is_judge")
    event = {"name": "gen_ai.evaluation.result", "timeUnixNano": str(told.otlp.tick()),
             "attributes": attributes({"gen_ai.evaluation.name": "span event", "gen_ai.evaluation.score.value": 4.0})}  # fmt: skip
    told.span(one, at("3"), at("a"), {"openinference.span.kind": "CHAIN"}, events=[event])
    expected["span event"] = ("call", "a", 4.0, None)
    lightning = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 5.0}
    told.span(one, at("4"), at("f"), lightning)
    expected["primary"] = ("span", "f", 5.0, None)
    for n, (key, value, kind, span) in enumerate((
        ("gen_ai.response.id", "resp-1-b", "call", "b"), ("span_id", at("b"), "call", "b"), ("tool.name", "w", "tool", "d"),
        ("gen_ai.tool.call.id", "tool-1", "tool", "d"), ("session.id", "chat-1", "session", None), ("tool.name", "nobody", None, None),
    )):  # fmt: skip
        name = f"link {n}"
        told.span(one, f"{n}{at('5')[1:]}", at("e"), {
            "agentlightning.reward.0.name": name, "agentlightning.reward.0.value": 6.0, "agentlightning.link.0.key_match": key,
            "agentlightning.link.0.value_match": value,
        })  # fmt: skip
        expected[name] = (kind, span, 6.0, None if kind else "target_not_found")
    told.record(7.0, name="by response", trace="8" * 32, span=at("1"), **{"gen_ai.response.id": "resp-1-a"})
    told.record(7.0, name="by tool call", **{"gen_ai.tool.call.id": "tool-1"})
    told.record(7.0, name="by nobody's response", trace=one, span=at("a"), **{"gen_ai.response.id": "gone"})
    told.record(7.0, name="by a lost context", trace=one, span=at("9"))
    told.record(7.0, name="by a lost span", **{"lightning.target.trace_id": one, "lightning.target.span_id": at("9")})
    told.record(float("nan"), name="no number", trace=one, span=at("a"))
    told.record(2e8, name="too large", trace=one, span=at("a"))
    told.record(None, name="nothing", trace=one, span=at("a"))
    told.record(None, name=HOSTILE, trace=one, span=at("a"), **{"gen_ai.evaluation.score.label": HOSTILE})
    expected |= {
        "by response": ("call", "a", 7.0, None), "by tool call": ("tool", "d", 7.0, None),
        "by nobody's response": (None, None, 7.0, "target_not_found"), "by a lost context": ("trace", None, 7.0, None),
        "by a lost span": (None, None, 7.0, "target_not_found"), "too large": (None, None, 2e8, "refused_value"),
        "nothing": (None, None, None, "no_value"), HOSTILE: ("call", "a", HOSTILE, None),
    }  # fmt: skip
    return expected


@pytest.fixture(scope="module")
def told(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A lake in which every form was sent once, and eight resolved or unresolved episodes of two tasks beside it."""
    lake = tmp_path_factory.mktemp("rewards") / "lake"
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    story = Episodes(Otlp(collector.url))
    expected = every_form(story)
    for number in range(8):
        trace = story.episode(task=f"task {number % 2}")
        story.record(float(number % 3 > 0), name="resolved", trace=trace, span=at("e"))
        if number == 5:  # the correction of an opinion, and its resend
            story.record(0.25, name="resolved", trace=trace, span=at("e"))
            story.records.append(story.records[-1])
    story.record(1.0, name="resolved", trace=f"{1:032x}", span=at("e"))
    for _ in range(2):  # nobody ever said how these went
        story.episode(task="other")
    story.otlp.send(story.spans, story.records)
    story.otlp.flush()
    yield lake, expected


def derived(told: tuple[Path, Any], tmp_path: Path, config: str, **files: str) -> tuple[Path, TransformReport]:
    """The lake again, transformed as `config` (YAML beside `files`) says."""
    lake = tmp_path / "lake"
    if not lake.exists():
        shutil.copytree(told[0], lake, ignore=shutil.ignore_patterns("wal"))
    for name, text in files.items():
        (tmp_path / f"{name}.sql").write_text(text)
    (tmp_path / "transform.yaml").write_text(config)
    return lake, run_transform(lake, read_config(tmp_path / "transform.yaml"), now_unix_nano=NOW)


def asked(lake: Path, query: str) -> list[Any]:
    with open_tables(lake, threads=1) as tables:
        return tables.execute(query).fetchall()


PLAIN = "rewards: {train: {resolved: 1.0}}\nsettle_s: 1\n"


def test_every_form_of_a_reward_finds_what_it_is_of(told: tuple[Path, Any], tmp_path: Path) -> None:
    lake, _ = derived(told, tmp_path, PLAIN)
    found = {
        name: (kind, span and span[0], label if value is None else value, reason)
        for name, kind, span, value, label, reason in asked(
            lake, "select name, target_kind, target_span_id, value, label, unresolved_reason from rewards where name not in ('resolved', 'no number')"
        )
    }  # fmt: skip
    assert found == told[1]
    assert asked(lake, "select unresolved_reason, flags from rewards where name = 'no number'") == [
        ("refused_value", ["refused_value"])
    ]
    corrections = "select value, superseded_by is null from rewards where name = 'resolved' and rollout_id = format('{:032x}', 7) order by 1"
    assert asked(lake, corrections) == [(0.25, True), (1.0, False)]


@pytest.fixture(scope="module")
def halfway(told: tuple[Path, Any]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A run over the lake that stopped where the user's SQL has everything that it may read."""
    config = TransformConfig.model_validate({"rewards": {"train": {"resolved": 1.0}}, "settle_s": 1})
    make_folders(Lake(told[0]))
    with open_tables(told[0]) as lake, _connect(config, OwnSql(), Lake(told[0])) as connection:
        for signal in ("spans", "events"):
            connection.register("rows", lake.sql(f"select * from {signal}").to_arrow_table())
            connection.execute(f"create temp table {signal} as select * from rows")
            connection.unregister("rows")
        _define_prices(connection, config)
        _define_rewards(connection, config, OwnSql(), Lake(told[0]), {})
        for step in steps.steps("broadcast"):
            steps.create(connection, step, _parameters(config, NOW, "recipe"))
            OwnSql().after(connection, step.table)
        yield connection


@pytest.fixture
def said(halfway: duckdb.DuckDBPyConnection, tmp_path: Path) -> Callable[..., str]:
    """The one line that a reward file, or a credit file, costs."""

    def words(text: str, key: str = "rewards") -> str:
        mine = tmp_path / "mine.sql"
        mine.write_text(text)
        config = {"rewards": {"sql": [str(mine)]}} if key == "rewards" else {"credit": {"sql": str(mine)}}
        with pytest.raises(LightningError) as caught:
            own = OwnSql.read(TransformConfig.model_validate(config))
            own.check(halfway)
            own.after(halfway, "sent_rewards" if key == "rewards" else "choices")
        line = str(caught.value)
        assert "\n" not in line and line.startswith(str(mine))
        return line

    return words


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        (
            "rewards",
            "-- name: x\nselect rollout_id, valeu as value from rollouts",
            "mine.sql: statement 'x': Binder Error",
        ),
        (
            "rewards",
            "-- name: x\nselect rollout_id from rollouts",
            "mine.sql: statement 'x': returns neither value nor label",
        ),
        ("credit", "select trace_id, span_id, onw_score as credit from choices", "mine.sql: Binder Error"),
        ("credit", "select trace_id, span_id from choices", "mine.sql: returns no column 'credit'"),
        ("within", "service_nam", "credit.within: Binder Error"),
        ("where", "rewrad > 0.5", "where: Binder Error"),
    ],
)
def test_what_does_not_fit_the_tables_is_found_before_any_work(told: tuple[Path, Any], tmp_path: Path, key: str, text: str, words: str) -> None:  # fmt: skip
    def config(text: str) -> TransformConfig:
        mine = tmp_path / "mine.sql"
        mine.write_text(text)
        more = {
            "rewards": {"rewards": {"sql": [str(mine)]}},
            "credit": {"credit": {"sql": str(mine)}},
            "within": {"credit": {"baseline": "population", "within": text}},
            "where": {"where": text},
        }
        return TransformConfig.model_validate({"rewards": {"train": {"resolved": 1.0}}, "settle_s": 1} | more[key])

    # No span of this lake can be read: whoever comes to that ends with another message.
    broken = tmp_path / "broken"
    shutil.copytree(told[0], broken)
    for path in broken.glob("spans/*/*.parquet"):
        path.write_bytes(b"no parquet")
    with pytest.raises(LightningError) as caught:
        run_transform(broken, config(text), now_unix_nano=NOW)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (broken / "derived" / "keys").exists() or not any((broken / "derived" / "keys").rglob("*.parquet"))
    right = {"rewards": "-- name: x\nselect rollout_id, 1 as value from rollouts", "within": "service_name", "where": "true",
             "credit": "select trace_id, span_id, own_score as credit from choices"}  # fmt: skip
    with pytest.raises((duckdb.Error, LightningError), match=r"(?i)parquet"):
        run_transform(broken, config(right[key]), now_unix_nano=NOW)


def test_an_aggregate_over_nothing_is_no_mistake() -> None:
    """What a statement says of no rollout is not judged before the run: there is a row of it, and none of its target."""
    statement = Statement(
        "mine.sql", "mine.sql", "1", "x", "select min(rollout_id) as rollout_id, count(*) as value from rollouts"
    )
    rehearse(OwnSql((statement,)), "broadcast", _parameters(TransformConfig(), NOW, ""))


QUICK = """-- What the episode cost and how it went.
-- name: cost
select rollout_id, sum(price)::double as value, 'spent' as explanation from calls group by rollout_id;

-- name: by another name
select 'worded' as name, calls.response_id, 'long' as label from calls where span_id like 'a%' and rollout_id = format('{:032x}', 2);

-- name: spoken
select trace_id, span_id, 0 as choice, 1 as value from calls where span_id like 'b%'
union all select trace_id, null, null, 2 from spans where span_id like 'e%' and rollout_id = format('{:032x}', 2);

-- name: not measured
select rollout_id, null::double as value from rollouts;

-- name: agreed
select rollout_id, max(value) as value from rewards where name = 'resolved' group by rollout_id
"""
PRICES = "prices: {m-1: {input: 3, output: 15}, m-2: {input: 1, output: 1}}\n"


def test_rewards_computed_in_sql_stand_where_they_say_and_go_with_their_text(
    told: tuple[Path, Any], tmp_path: Path
) -> None:
    config = PLAIN + PRICES + "credit: {method: step}\n"
    with_sql = config.replace(
        "rewards: {train: {resolved: 1.0}",
        "rewards: {train: {spoken: 1.0}, sql: [quick.sql, 'builtin:cost_per_resolved', 'builtin:tokens']",
    )
    lake, first = derived(told, tmp_path, with_sql, quick=QUICK)
    of_two = "select name, target_kind, target_span_id, target_choice, coalesce(value::varchar, label), source, resolved_by from rewards where rollout_id = format('{:032x}', 2) order by 1, 2"
    cost = (3 * 1000 + 15 * 100) * 2 / 1e6
    assert asked(lake, of_two) == [
        ("agreed", "rollout", None, None, "0.0", "quick.sql", "computed"),
        ("completion_tokens", "rollout", None, None, "200.0", "builtin:tokens", "computed"),
        ("cost", "rollout", None, None, str(cost), "quick.sql", "computed"),
        ("prompt_tokens", "rollout", None, None, "2000.0", "builtin:tokens", "computed"),
        ("resolved", "trace", None, None, "0.0", "test.judge", "context"),
        ("spoken", "call", at("b"), 0, "1.0", "quick.sql", "computed"),
        ("spoken", "trace", None, None, "2.0", "quick.sql", "computed"),
        ("worded", "call", at("a"), 0, "long", "quick.sql", "computed"),
    ]
    # Resolved are the first and numbers 1, 2, 4, 5 (corrected to 0.25) and 7 of eight.
    resolved = asked(lake, "select count(*), min(value), max(value) from rewards where name = 'cost_per_resolved'")
    assert resolved == [(6, cost, cost)]
    assert asked(
        lake, "select distinct reward::double from credits where span_id like 'b%' and trace_id <> format('{:032x}', 1)"
    ) == [(1.0,)]
    assert asked(
        lake,
        "select distinct version = sha256(t.content) from rewards, (select $$"
        + QUICK
        + "$$ as content) as t where source = 'quick.sql'",
    ) == [(True,)]
    assert asked(
        lake, "select distinct latency_ms, price::double from calls where model = 'm-1' and span_id like 'a%'"
    ) == [(10.0, cost / 2)]
    assert asked(lake, "select count(*) from calls where price is null and model is not null") == [(0,)]

    again = derived(told, tmp_path, with_sql, quick=QUICK)[1]
    assert (first.full, again.full) == (True, False)
    changed = derived(told, tmp_path, with_sql, quick=QUICK.replace("sum(price)", "2 * sum(price)"))[1]
    assert changed.full, "rewards exist for the current text only"
    assert asked(lake, "select distinct value from rewards where name = 'cost'") == [(cost * 2,)]
    derived(told, tmp_path, config)
    assert asked(lake, "select count(*) from rewards where resolved_by = 'computed'") == [(0,)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select rollout_id, valeu as value from rollouts", "statement 'x': Binder Error: Referenced column \"valeu\" not found"),
        ("select rollout_id, 1 as score from rollouts", "statement 'x': unknown column 'score'; did you mean choice?"),
        ("select rollout_id, 1 as wert from rollouts", "statement 'x': unknown column 'wert'; columns are name, value"),
        ("select 1 as value from rollouts", "statement 'x': returns no target; return rollout_id"),
        ("select rollout_id from rollouts", "statement 'x': returns neither value nor label"),
        ("select null as rollout_id, 1 as value from rollouts", "statement 'x': a row has no target (11 rows)"),
        ("select rollout_id, trace_ids[1] as trace_id, 1 as value from rollouts", "a row has several targets"),
        ("select 'nobody' as rollout_id, 1 as value", "statement 'x': its target is not in any rollout: rollout nobody"),
        ("select trace_id, 'gone' as span_id, 1 as value from spans", "its target is not in any rollout: trace 00000000000000000000000000000001 span gone"),
        ("select rollout_id, 1 as value from calls", "two rows named 'x' for 00000000000000000000000000000001; return one"),
        ("select rollout_id, 'much' as value from rollouts", "Could not convert string 'much' to DOUBLE"),
        ("select rollout_id, rank() over (order by calls) + count(*) over () as value from rollouts", "depends on which others there are"),
        ("select rollout_id, random() as value from rollouts", "random() is not allowed; the same rows must give the same answer"),
        ("select rollout_id, epoch(now()) as value from rollouts", "now() is not allowed"),
        ("select rollout_id, current_timestamp as value from rollouts", "current_timestamp is not allowed"),
        ("select content as label, 'r' as rollout_id from read_text('/etc/passwd')", "read_text() is not allowed; only tables can be read"),
        ("select 1 as value, 'r' as rollout_id from '/etc/passwd'", "'/etc/passwd' is a file; only tables can be read"),
        ("with \"/etc/passwd\" as (select 1) select 1 as value from \"/etc/passwd\"", "'/etc/passwd' is a file"),
        ("select 1 as value from read_parquet('spans/**/*.parquet')", "read_parquet() is not allowed"),
        ("select 1 as value from glob('*')", "glob() is not allowed"),
        ("select 1 as value from temp.main.span_kinds", "no table 'span_kinds' here"),
        ("select 1 as value from stored_credits", "no table 'stored_credits' here; there are calls, events"),
        ("select 1 as value from call", "no table 'call' here; did you mean calls?"),
        ("select * from query('select 1')", "query() is not allowed"),
        ("select getenv('HOME') as label", "getenv() is not allowed"),
        ("select $now as value", "parameters ($name, ?) have no value here"),
        ("select 1 as value; drop table calls", "holds 2 statements; write one SELECT"),
        ("select 1) as given; drop table calls; select * from (select 1", "syntax error"),
        ("copy calls to '/tmp/calls.csv'", "only SELECT is allowed"),
        ("attach 'x.db'", "only SELECT is allowed"),
        ("install httpfs", "only SELECT is allowed"),
        ("set enable_external_access = true", "only SELECT is allowed"),
        ("pragma database_list", "SELECT"),
        ("with x as (insert into calls select * from calls returning *) select 1 as value from x", "SELECT"),
        ("describe calls", "write a SELECT"),
    ],
)  # fmt: skip
def test_a_mistake_in_reward_sql_costs_one_line_with_file_and_statement(
    said: Callable[..., str], text: str, words: str
) -> None:
    assert words in said(f"-- A file.\n-- name: x\n{text}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select 1", "begin each statement with a line '-- name: what_it_measures'"),
        ("-- nothing\n", "holds no statement"),
        ("-- name: a\nselect 1\n-- name: a\nselect 2", "statement 'a' needs a name of its own"),
    ],
)
def test_a_reward_file_is_named_statements(said: Callable[..., str], text: str, words: str) -> None:
    assert words in said(text)


LATER = """-- credit: half for what is said first, the answer's own reward beside it
select trace_id, span_id, choice, coalesce(own_score::double, 0) + rollout_score::double * case when step = 0 then 0.5 else 1 end as credit,
    rollout_reward_ids as reward_ids
from choices
where rollout_score is not null
"""


def test_credit_of_the_users_own_is_credit_like_any_other(told: tuple[Path, Any], tmp_path: Path) -> None:
    config = PLAIN + "credit: {sql: mine.sql, baseline: group}\n"
    lake, first = derived(told, tmp_path, config, mine=LATER)
    rows = asked(
        lake,
        "select method, span_id[1], reward::double, round(advantage, 6) from credits where trace_id = format('{:032x}', 3) order by step",
    )
    assert first.full
    # Episodes 3, 5, 7 and 9 share a task; resolved 1, 1, 0.25 (corrected), 1; q is 0.75 of it.
    assert rows == [
        ("mine.sql", "a", 0.5, round(0.5 - 0.75 * (1 + 0 + 0.25 + 1) / 4, 6)),
        ("mine.sql", "b", 1.0, round(1 - 0.75 * (1 + 0 + 0.25 + 1) / 4, 6)),
    ]
    changed = derived(told, tmp_path, config, mine=LATER.replace("0.5", "0.25"))[1]
    assert changed.full
    assert asked(lake, "select reward::double from credits where trace_id = format('{:032x}', 3) order by step") == [
        (0.25,),
        (1.0,),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select trace_id, span_id, choice, 1 as score from choices", "unknown column 'score'"),
        ("select trace_id, span_id from choices", "returns no column 'credit'"),
        ("select trace_id, span_id, 7 as choice, 1 as credit from choices", "a row is of no answer in choices"),
        ("select trace_id, span_id, 1 as credit from choices union all select trace_id, span_id, 2 from choices", "two rows are of one answer"),
        ("select trace_id, span_id, choice, 'infinity'::double as credit from choices", "a credit is not a number below 100 million"),
        ("select trace_id, span_id, choice, count(*) over () as credit from choices", "depends on which others there are"),
        ("select trace_id, span_id, choice, 1 as credit from spans", "no table 'spans' here"),
        ("select * from read_text('/etc/passwd')", "read_text() is not allowed"),
    ],
)  # fmt: skip
def test_a_mistake_in_credit_sql_costs_one_line(said: Callable[..., str], text: str, words: str) -> None:
    assert words in said(text, "credit")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("credit: {method: branch, baseline: group}", "method 'branch' compares branches of one episode"),
        ("credit: {method: step, baseline: branch}", "baseline 'branch' needs credit.method branch"),
        ("credit: {method: branch, baseline: branch, scale: std}", "credit.scale 'std' needs a baseline"),
        ("credit: {method: agnet}", "did you mean 'agent'?"),
        ("credit: {method: step, sql: mine.sql}", "credit.sql takes the place of credit.method"),
        ("credit: {within: service_name}", "credit.within belongs to credit.baseline population"),
        ("credit: {baseline: population, within: 'service_nam'}", "credit.within: Binder Error"),
        (
            "credit: {baseline: population, within: '(select max(calls) from rollouts)'}",
            "neither subqueries nor windows",
        ),
        ("credit: {baseline: population, within: 'count(*) over ()'}", "neither subqueries nor windows"),
        ("credit: {baseline: population, within: '1) from rollouts; drop table rollouts; select (1'}", "credit.within"),
        ("rewards: {sql: 'builtin:latenzy'}", "no reward 'builtin:latenzy'; did you mean builtin:latency?"),
        ("rewards: {sql: nowhere.sql}", "nowhere.sql cannot be read"),
        ("prices: {m: {input: -1, output: 0}}", "prices.m.input"),
        ("pairs: {min_margn: 1}", "did you mean 'min_margin'?"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_line(
    told: tuple[Path, Any], tmp_path: Path, config: str, words: str
) -> None:
    if "rewards" not in config:
        config += "\nrewards: {train: {resolved: 1.0}}\n"
    with pytest.raises(LightningError) as caught:
        derived(told, tmp_path, config, mine=LATER)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_population_is_what_an_expression_says(told: tuple[Path, Any], tmp_path: Path) -> None:
    config = PLAIN + "credit: {baseline: population, within: \"service_name || '/' || (calls > 0)\"}\n"
    lake, _ = derived(told, tmp_path, config)
    assert asked(lake, "select key, n from baselines where kind = 'population'") == [("test/true", 9)]
    # Sum of q over the nine is 1 + 0 + 1 + 1 + 0 + 1 + 0.25 + 0 + 1; against the mean of the eight others.
    advantage = "select round(advantage, 9) from credits where trace_id = format('{:032x}', 3) and step = 0"
    assert asked(lake, advantage) == [(round(1 - 4.25 / 8, 9),)]


def test_pairs_are_answers_and_episodes_of_one_task(told: tuple[Path, Any], tmp_path: Path) -> None:
    lake, _ = derived(told, tmp_path, PLAIN + "pairs: {min_margin: 0.5, k: 2}\nsplit: {eval_percent: 0}\n")
    counts = asked(lake, "select kind, task_id, count(*), min(margin) from pairs group by all order by all")
    # Two prompts a task and one pair of episodes; each task has episodes whose reward is at least 0.5 apart.
    assert [(kind, n) for kind, _, n, _ in counts] == [("call", 4), ("call", 4), ("rollout", 2), ("rollout", 2)]
    assert all(margin >= 0.5 for *_, margin in counts)
    chosen = asked(
        lake,
        "select distinct c.reward::double > r.reward::double from pairs join samples c on c.sample_id = chosen_id join samples r on r.sample_id = rejected_id where kind = 'call'",
    )
    assert chosen == [(True,)]
    texts = asked(
        lake, "select prompt_messages, chosen, rejected from pairs where kind = 'call' order by pair_id limit 1"
    )[0]
    assert '"role":"user"' in texts[0].replace(" ", "") and texts[1] != texts[2]
    assert asked(
        lake, "select desirable, count(*) from samples where reward is not null group by all order by all"
    ) == [(False, 8), (True, 10)]


def test_a_clean_lake_gives_no_signal_and_explain_shows_a_high_one(
    told: tuple[Path, Any], tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lake, _ = derived(told, tmp_path, PLAIN)
    assert asked(lake, "select * from signals") == []
    derived(told, tmp_path, "rewards: {train: {nobody: 1.0}}\nsettle_s: 1\n")
    assert asked(lake, "select signal, severity, subject, value from signals") == [
        ("missing_rewards", "high", "test", 1.0)
    ]
    shown = script("lightning-transform", "explain", "--lake", str(lake)).stdout
    assert "missing_rewards (high): test: 11 of 11 episodes have no reward that counts" in shown
    assert json.loads(explain(lake, as_json=True))["signals"][0]["threshold"] == 0.5
    done = script("lightning-transform", "sql", "select * from pairs", "--lake", str(lake), "--json")
    assert (done.returncode, done.stdout) == (0, "")


def test_without_configuration_a_name_that_comes_later_changes_all_credit(otlp: Otlp, tmp_path: Path) -> None:
    lake, config = tmp_path / "lake", TransformConfig.model_validate({"settle_s": 1})
    story = Episodes(otlp)
    lightning = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.25}
    first, second = story.episode(root=lightning), story.episode(root=lightning)
    otlp.send(story.spans)
    otlp.flush()
    run_transform(lake, config, now_unix_nano=NOW)
    assert asked(lake, "select distinct reward::double from credits") == [(0.25,)]
    story.record(1.0, trace=first)
    otlp.send(records=story.records)
    otlp.flush()
    assert run_transform(lake, config, now_unix_nano=NOW).full
    credit = "select distinct trace_id, reward::double, recipe from credits order by 1"
    stepwise = asked(lake, credit)
    assert [row[:2] for row in stepwise] == [(first, 1.0), (second, None)]
    shutil.rmtree(lake / "derived")
    run_transform(lake, config, now_unix_nano=NOW)
    assert asked(lake, credit) == stepwise


def test_the_examples_in_the_readme_run(halfway: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "transforms" / "README.md").read_text()
    rewards, credit = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    (tmp_path / "rewards.sql").write_text(rewards)
    (tmp_path / "credit.sql").write_text(credit)
    config = {"rewards": {"sql": str(tmp_path / "rewards.sql")}, "credit": str(tmp_path / "credit.sql")}
    own = OwnSql.read(TransformConfig.model_validate(config))
    own.check(halfway)
    own.after(halfway, "sent_rewards")
    own.after(halfway, "choices")
    names = halfway.execute("select name, count(*) > 0 from computed_rewards group by all order by all").fetchall()
    assert names == [("polite", True), ("quick", True)]
    assert halfway.execute("select count(*) from assigned where credit is not null").fetchone() == (18,)
