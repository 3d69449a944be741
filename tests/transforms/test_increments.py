"""Any sequence of incremental runs ends where one full run would; groups and baselines by hand."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from running import Otlp, attributes

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

TABLES = {
    "calls": "trace_id, span_id",
    "scopes": "trace_id, span_id",
    "tools": "trace_id, span_id",
    "rollouts": "rollout_id",
    "rewards": "reward_id, rollout_id",
    "returns": "rollout_id",
    "credits": "trace_id, span_id, choice",
    "trajectories": "trajectory_id",
}


def episode(otlp: Otlp, number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two turns of one session in two traces, a tool, a token record a call, a start mark for some, a reward."""
    rollout, session = f"roll-{number}", f"chat-{number}"
    spans: list[dict[str, Any]] = []
    history: list[tuple[str, str]] = []
    ids = [1, 2]
    for turn in range(2):
        trace = f"{number:016x}{turn + 1:016x}"
        root, call = f"{number:08x}{turn:04x}0001", f"{number:08x}{turn:04x}0002"
        history.append(("user", f"question {number % 3} turn {turn}"))
        values: dict[str, Any] = {"openinference.span.kind": "LLM", "gen_ai.response.id": f"chatcmpl-{number}-{turn}"}
        for index, (role, text) in enumerate(history):
            values |= {
                f"llm.input_messages.{index}.message.role": role,
                f"llm.input_messages.{index}.message.content": text,
            }
        answer = f"answer {number} {turn}"
        values |= {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": answer}
        begin = otlp.tick()
        spans.append(_span(trace, call, root, otlp.tick(), otlp.tick(), values))
        spans.append(
            _span(trace, root, None, begin, otlp.tick(), {"openinference.span.kind": "AGENT", "session.id": session})
        )
        response = [10 + number, 20 + turn, 3]
        capture = {
            "lightning.capture": "serve", "gen_ai.response.id": f"chatcmpl-{number}-{turn}", "lightning.prompt.token_ids": ids,
            "lightning.choice.0.token_ids": response, "lightning.choice.0.logprobs": [-0.5, -0.25, -0.125], "lightning.tokenizer": "t",
            "lightning.policy.version": f"v000{1 + number % 2}", "gen_ai.request.temperature": 1.0, "gen_ai.usage.output_tokens": 3,
        }  # fmt: skip
        spans.append(
            _span(
                f"{number:016x}{turn + 9:016x}", f"{number:08x}{turn:04x}0009", None, otlp.tick(), otlp.tick(), capture
            )
        )
        ids = [*ids, *response, 4 + turn]
        history.append(("assistant", answer))
    marks: list[dict[str, Any]] = []
    if number % 2:
        marks.append(
            _record(
                otlp,
                "lightning.rollout.start",
                {
                    "lightning.rollout.id": rollout,
                    "session.id": session,
                    "lightning.split": "train",
                    "lightning.task.id": f"task-{number % 3}",
                },
            )
        )
        marks.append(_record(otlp, "lightning.rollout.end", {"lightning.rollout.id": rollout, "status": "finished"}))
        target = {"lightning.rollout.id": rollout}
    else:
        target = {"session.id": session}
    marks.append(
        _record(
            otlp,
            "gen_ai.evaluation.result",
            {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": float(number % 4) / 4, **target},
        )
    )
    return spans, marks


def _span(trace: str, span: str, parent: str | None, start: int, end: int, values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "traceId": trace,
        "spanId": span,
        "name": "s",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": attributes(values),
    }
    return {**made, "parentSpanId": parent} if parent else made


def _record(otlp: Otlp, name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"eventName": name, "timeUnixNano": str(otlp.tick()), "attributes": attributes(values)}


def contents(lake: Path) -> dict[str, Any]:
    """Every row of every table, less what says when and in which run it came."""
    with open_tables(lake, threads=1) as connection:
        return {
            table: connection.execute(
                f"select columns(c -> c not in ('revision', 'received_unix_nano')) from {table} order by {order}".replace(
                    "c ->", "lambda c:"
                )
            ).fetchall()
            for table, order in TABLES.items()
        }


def test_any_sequence_of_runs_ends_where_one_full_run_would(otlp: Otlp, tmp_path: Path) -> None:
    rng = random.Random(3)
    config = TransformConfig.model_validate(
        {"credit": {"method": "broadcast", "baseline": "group"}, "settle_s": 1, "threads": 1}
    )
    lake = tmp_path / "lake"
    parcels: list[tuple[str, dict[str, Any]]] = []
    for number in range(10):
        spans, marks = episode(otlp, number)
        parcels += [("span", s) for s in spans] + [("mark", m) for m in marks]
    parcels += rng.sample(parcels, 12)  # some arrive twice
    rng.shuffle(parcels)
    now = time.time_ns() + 10**13
    while parcels:
        size = rng.randrange(1, 40)
        part, parcels = parcels[:size], parcels[size:]
        otlp.send([p for kind, p in part if kind == "span"], [p for kind, p in part if kind == "mark"])
        otlp.flush()
        run_transform(lake, config.model_copy(update={"buckets": rng.choice([None, 2, 7])}), now_unix_nano=now)
    run_transform(lake, config, now_unix_nano=now)
    stepwise = contents(lake)
    shutil.rmtree(lake / "derived")
    run_transform(lake, config, now_unix_nano=now)
    whole = contents(lake)
    for table in TABLES:
        assert stepwise[table] == whole[table], table
    assert len(whole["rollouts"]) == 10
    assert len(whole["calls"]) == 20
    with open_tables(lake) as connection:
        # Two turns make one sequence whose ids are those of the last prompt and answer, each answer trained once.
        lengths = connection.execute(
            "select distinct len(token_ids), list_sum(loss_mask)::int, len(sample_ids) from trajectories"
        ).fetchall()
        assert lengths == [(2 + 3 + 1 + 3, 6, 2)]
        assert connection.execute("select count(*) from calls where token_source = 'engine'").fetchone() == (20,)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [("none", [0.0, 1.0, 1.0]), ("group", [-2 / 3, 1 / 3, 1 / 3]), ("rloo", [-1.0, 0.5, 0.5])],
)
def test_baselines_by_hand(otlp: Otlp, tmp_path: Path, baseline: str, expected: list[float]) -> None:
    for number, value in enumerate((0.0, 1.0, 1.0)):
        trace = f"{number + 1:032x}"
        values = {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "same",
                  "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": f"answer {number}"}  # fmt: skip
        spans = [_span(trace, f"{number + 1:016x}", f"{number + 9:016x}", otlp.tick(), otlp.tick(), values)]
        spans.append(
            _span(trace, f"{number + 9:016x}", None, otlp.tick(), otlp.tick(), {"openinference.span.kind": "AGENT"})
        )
        record = _record(
            otlp,
            "gen_ai.evaluation.result",
            {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": value},
        )
        otlp.send(spans, [{**record, "traceId": trace, "spanId": f"{number + 9:016x}"}])
    otlp.flush()
    config = TransformConfig.model_validate({"credit": {"method": "broadcast", "baseline": baseline}, "settle_s": 1})
    run_transform(tmp_path / "lake", config)
    with open_tables(tmp_path / "lake") as connection:
        rows = connection.execute("select advantage from credits order by trace_id").fetchall()
    assert [row[0] for row in rows] == pytest.approx(expected, abs=1e-9)


def test_a_group_of_one_has_no_advantage(otlp: Otlp, tmp_path: Path) -> None:
    spans, marks = episode(otlp, 1)
    otlp.send(spans, marks)
    otlp.flush()
    run_transform(
        tmp_path / "lake",
        TransformConfig.model_validate({"credit": {"baseline": "group"}, "settle_s": 1}),
        now_unix_nano=time.time_ns() + 10**13,
    )
    with open_tables(tmp_path / "lake") as connection:
        assert connection.execute("select distinct advantage, reward::double from credits").fetchall() == [(0.0, 0.25)]


def test_several_rewards_and_no_configuration_is_one_line_with_their_names(
    otlp: Otlp, tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for name in ("tone", "resolved"):
        otlp.send(
            records=[
                _record(
                    otlp,
                    "gen_ai.evaluation.result",
                    {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": 1.0, "session.id": "s"},
                )
            ]
        )
    otlp.flush()
    done = script("lightning-transform", "run", "--lake", str(tmp_path / "lake"))
    assert done.returncode == 1
    assert "several rewards were sent (resolved, tone)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--lake", "/nowhere"], "there is no lake at /nowhere"),
        (["sql", "select 1", "--lake", "/nowhere"], "there is no lake at /nowhere"),
        (["sql", "select nope from spans", "--lake", "."], 'Referenced column "nope"'),
        (["sql", "drop table x", "--lake", "."], "only SELECT is allowed; nothing can be changed here"),
        (["sql", "select * from read_text('/etc/passwd')", "--lake", "."], "read_text() is not allowed"),
        (["explain"], "there is no lake at lake"),
        (["run", "--lake", ".", "--config", "c.yaml"], "unknown key 'credits'; did you mean 'credit'?"),
    ],
)
def test_a_mistake_costs_one_line(
    script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("credits: {method: step}\n")
    done = script("lightning-transform", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_lake_says_what_to_do(script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    assert (
        "point OTEL_EXPORTER_OTLP_ENDPOINT" in script("lightning-transform", "explain", "--lake", str(tmp_path)).stdout
    )


def test_user_sql_cannot_leave_the_lake(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    (tmp_path / "lake").mkdir()
    with open_tables(tmp_path / "lake", locked=True) as connection, pytest.raises(duckdb.Error):
        connection.execute(f"select * from read_csv('{secret}')").fetchall()
