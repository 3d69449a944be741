"""Outcomes from code and from a shell: acknowledged, or one line that says why not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Process

from otel_lightning.instrumentation import EmitError, Emitter
from otel_lightning.transforms.tables import open_tables

Script = Callable[..., subprocess.CompletedProcess[str]]


def test_feedback_is_on_disk_when_the_command_returns(collector: Process, script: Script, tmp_path: Path) -> None:
    done = script(
        "lightning-feedback", "--session", "chat-1", "--name", "resolved", "--value", "1", "--endpoint", collector.url
    )
    assert (done.returncode, done.stderr) == (0, "")
    scores = tmp_path / "scores.jsonl"
    scores.write_text(
        '{"response": "chatcmpl-1", "name": "tone", "label": "warm"}\n\n{"rollout": "r", "name": "resolved", "value": 0}\n'
    )
    assert script("lightning-feedback", "--file", str(scores), "--endpoint", collector.url).returncode == 0
    collector.post("/flush")
    with open_tables(tmp_path / "lake") as connection:
        rows = connection.execute(
            "select attributes_str['gen_ai.evaluation.name'], attributes_dbl['gen_ai.evaluation.score.value'], "
            "coalesce(attributes_str['session.id'], attributes_str['gen_ai.response.id'], attributes_str['lightning.rollout.id']) "
            "from events where event_name = 'gen_ai.evaluation.result' order by 3"
        ).fetchall()
    assert rows == [("resolved", 1.0, "chat-1"), ("tone", None, "chatcmpl-1"), ("resolved", 0.0, "r")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "x", "--value", "1"], "name exactly one target"),
        (["--session", "a", "--trace", "b", "--name", "x", "--value", "1"], "name exactly one target"),
        (["--session", "a", "--value", "1"], "name is missing"),
        (["--session", "a", "--name", "x"], "give a value or a label"),
        (["--session", "a", "--name", "x", "--value", "nan"], "not a finite number"),
        (["--trace", "xyz", "--name", "x", "--value", "1"], "must be 32 hex digits"),
        (["--span", "0" * 32, "--name", "x", "--value", "1"], "must be 16 hex digits"),
        (["--file", "/nowhere"], "/nowhere: cannot be read"),
        (["--session", "a", "--name", "x", "--value", "1", "--endpoint", "localhost:4318"], "must begin with http"),
        (
            ["--session", "a", "--name", "x", "--value", "1", "--endpoint", "http://127.0.0.1:9"],
            "is lightning-collect running there?",
        ),
    ],
)
def test_a_mistake_costs_one_line(script: Script, arguments: list[str], words: str) -> None:
    done = script("lightning-feedback", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bad_line_in_a_file_is_named_and_nothing_is_sent(collector: Process, script: Script, tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    scores.write_text('{"session": "a", "name": "x", "value": 1}\n{"session": "a", "nam": "x"}\n')
    done = script("lightning-feedback", "--file", str(scores), "--endpoint", collector.url)
    assert done.returncode == 1
    assert "scores.jsonl:2: unknown key 'nam'" in done.stderr
    collector.post("/flush")
    with open_tables(tmp_path / "lake") as connection:
        assert connection.execute("select count(*) from events").fetchone() == (0,)


def test_an_emitter_refuses_what_could_not_be_credited() -> None:
    emitter = Emitter("http://127.0.0.1:9")
    for wrong in (
        {"value": 1.0},
        {"value": float("inf"), "session_id": "a"},
        {"session_id": "a"},
        {"value": 1.0, "span_id": "0" * 16},
    ):
        with pytest.raises(EmitError):
            emitter.evaluation("x", **wrong)
    with pytest.raises(EmitError, match="split"):
        emitter.rollout_start("r", split="validation")
    emitter.stop()
