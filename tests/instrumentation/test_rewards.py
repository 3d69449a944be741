"""Rewards from where things happen and from far away; episodes said outright."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

import otel_lightning.instrumentation as public
from otel_lightning.instrumentation import EmitError, feedback, reward, rollout
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

README = ROOT / "instrumentation" / "README.md"
EPISODES = """
import asyncio, openai
from otel_lightning.instrumentation import feedback, reward, rollout
client = openai.OpenAI()
def ask(text, client=client):
    return client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": text}])

with rollout(task="t-1", group="g-1", split="eval", id="episode-1") as run:
    answer = ask("one")
    reward(0.5, name="answer", span=answer)
    ask("two")
    reward(1.0)                      # what is active: the run
run.reward(label="up", name="thumbs")

@rollout(task="t-2")
async def episode(text):
    async with openai.AsyncOpenAI() as client:
        async with rollout(task="inner", id="inner-" + text):
            answer = await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": text}])
            await reward(0.25, name="answer", span=answer)
        await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "outer " + text}])
        reward(0.75)

async def both():
    await asyncio.gather(episode("a"), episode("b"))
asyncio.run(both())

@rollout()
def plain():
    ask("plain")
    ask("unlike")
    reward(0.1)
    raise SystemExit(0)
plain()
"""


@pytest.fixture(scope="module")
def tables(sidecar: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One agent with all of it, transformed; later feedback by shell and curl."""
    from agent_runs import run

    script = tmp_path_factory.mktemp("episodes") / "agent.py"
    script.write_text(EPISODES)
    ended = run(
        script, python=Path(sys.executable), OPENAI_BASE_URL=f"{model.url}/v1", OTEL_EXPORTER_OTLP_ENDPOINT=sidecar.url,
        OTEL_SERVICE_NAME="episodes",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    curl = re.search(r"```\n(curl .*?)```", README.read_text(), re.S)
    assert curl is not None
    command = curl[1].replace("http://127.0.0.1:4318", sidecar.url).replace("chat-17", "by-curl")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sent = feedback(2.0, name="late", rollout="episode-1", endpoint=sidecar.url)
    sent.wait()
    sidecar.post("/flush")
    run_transform(sidecar.lake, TransformConfig.model_validate({"rewards": {"train": {"reward": 1.0}}}))
    with open_tables(sidecar.lake) as connection:
        yield connection


def test_the_public_names_are_these() -> None:
    assert public.__all__ == ["EmitError", "Emitter", "feedback", "instrument", "reward", "rollout"]
    for name in public.__all__:
        assert getattr(public, name)
    with pytest.raises(AttributeError):
        _ = public.nothing  # type: ignore[attr-defined]


def test_each_with_block_and_decorated_call_is_an_episode(tables: Any) -> None:
    rows = tables.execute(
        "select rollouts.task_id, rollouts.group_id, rollouts.split, count(*), rollouts.rollout_id from rollouts "
        "join calls using (rollout_id) where rollouts.service_name = 'episodes' group by all order by 1, 5"
    ).fetchall()
    known = [row[:4] for row in rows if row[0] in ("t-1", "t-2", "inner")]
    assert [row[0] for row in known].count("inner") == 2
    assert ("t-1", "g-1", "eval", 2) in known
    assert [row[0] for row in known].count("t-2") == 2
    assert {row[4] for row in rows} >= {"episode-1", "inner-a", "inner-b"}
    assert sorted(row[3] for row in rows if row[0] not in ("t-1", "t-2", "inner")) == [2]  # the undescribed one, whole


def test_rewards_land_where_they_were_given(tables: Any) -> None:
    rows = tables.execute(
        "select rewards.name, value, label, target_kind, rollouts.task_id from rewards join rollouts using (rollout_id) "
        "where superseded_by is null order by 1, 2, 5"
    ).fetchall()
    wanted = [
        ("answer", 0.25, None, "call", "inner"),
        ("answer", 0.25, None, "call", "inner"),
        ("answer", 0.5, None, "call", "t-1"),
        ("late", 2.0, None, "rollout", "t-1"),
        ("reward", 0.75, None, "rollout", "t-2"),
        ("reward", 0.75, None, "rollout", "t-2"),
        ("reward", 1.0, None, "rollout", "t-1"),
        ("thumbs", None, "up", "rollout", "t-1"),
    ]
    assert [row for row in rows if row[:2] != ("reward", 0.1)] == wanted
    assert [row[:4] for row in rows if row[:2] == ("reward", 0.1)] == [("reward", 0.1, None, "rollout")]


def test_the_documented_curl_is_feedback(tables: Any) -> None:
    rows = tables.execute(
        "select attributes_str['gen_ai.evaluation.name'], attributes_dbl['gen_ai.evaluation.score.value'] "
        "from events where event_name = 'gen_ai.evaluation.result' and attributes_str['session.id'] = 'by-curl'"
    ).fetchall()
    assert rows == [("resolved", 1.0)]


def test_every_span_of_an_episode_says_which(tables: Any) -> None:
    rows = tables.execute(
        "select distinct rollout_id, task_id, group_id, split from spans where rollout_id = 'episode-1'"
    ).fetchall()
    assert rows == [("episode-1", "t-1", "g-1", "eval")]


def test_what_cannot_be_credited_is_refused_at_once() -> None:
    closed = "http://127.0.0.1:9"
    with pytest.raises(EmitError, match="nothing to reward"):
        reward(1.0)
    with pytest.raises(EmitError, match="is no span"):
        reward(1.0, span=object())
    with pytest.raises(EmitError, match="exactly one target"):
        feedback(1.0, session="a", response="b", endpoint=closed)
    with pytest.raises(EmitError, match="not a finite number"):
        feedback(float("nan"), session="a", endpoint=closed)
    with pytest.raises(EmitError, match="not both"):
        feedback(1.0, trace="0" * 32, span="0:1", endpoint=closed)
    with pytest.raises(EmitError, match="split"):
        rollout(split="validation")
    with pytest.raises(EmitError, match="generator"):

        @rollout()
        def generator() -> Any:
            yield 1


def test_the_readme_names_every_setting() -> None:
    text = README.read_text()
    source = (ROOT / "instrumentation" / "settings.py").read_text()
    for name in set(re.findall(r'"(LIGHTNING_[A-Z_]+)"', source)):
        assert name in text, name


def test_rewards_that_nobody_takes_are_counted(agent: Any) -> None:
    code = """
from otel_lightning.instrumentation import feedback
feedback(1.0, session="a")
print("fine")
"""
    ended = agent(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert (ended.code, ended.out) == (0, "fine\n")
    assert ended.err.strip() == "otel-lightning: 1 rewards were not taken by http://127.0.0.1:9"
