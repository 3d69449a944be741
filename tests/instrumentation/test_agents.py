"""Real agents on the newest frameworks, started as ever behind `lightning-instrument`: complete, correct traces arrive.

Each program of tests/agents runs unchanged, against a scripted model server for what a random model cannot play and
against lightning-serve for the rest, with a real collector; then the lake is held against what the servers know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_runs import (
    AGENT_NAMES,
    NEED_A_SCRIPT,
    SCENARIOS,
    calls_of,
    check,
    end,
    exchanges,
    python_of,
    rollout_sizes,
    scripted_model,
    start,
)
from running import Starter, lake_of

from otel_lightning.instrumentation import Emitter
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

PROGRAMS = list(SCENARIOS)


@dataclass
class World:
    """What is left when all agents have ended."""

    lake: Path
    truth: dict[str, list[dict[str, Any]]]
    connection: Any


@pytest.fixture(scope="module")
def world(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[World]:
    """All programs, run once."""
    folder, python = tmp_path_factory.mktemp("agents"), python_of("newest")
    lake = lake_of(folder, checkpoint)
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    serve = start_for_module("lightning-serve", "--lake", str(lake), "--port", "0", "--otlp", collector.url)
    scripted = {program: scripted_model(folder / f"{program}.jsonl") for program in PROGRAMS}
    running = []
    for program in PROGRAMS:
        served = [name for name in SCENARIOS[program] if name not in NEED_A_SCRIPT]
        running.append(start(
            program, *SCENARIOS[program], "@served", *served, python=python, options=("--capture-tokens",),
            OPENAI_BASE_URL=f"{scripted[program].url}/v1", SERVED_URL=f"{serve.url}/v1",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME=program,
        ))  # fmt: skip
    for process in running:
        ended = end(process)
        assert ended.code == 0, ended.err
        assert "otel-lightning" not in ended.err
    truth = {program: exchanges(folder / f"{program}.jsonl") for program in PROGRAMS}
    emitter = Emitter(collector.url)
    for answered in truth.values():
        for number, exchange in enumerate(e for e in answered if e["status"] == 200 and not e.get("cut")):
            emitter.evaluation("useful", value=float(number), response_id=exchange["response_id"])
    emitter.close()
    serve.post("/flush")
    collector.post("/flush")
    for process in scripted.values():
        process.stop()
    run_transform(lake, TransformConfig.model_validate({"rewards": {"train": {"useful": 1.0}}}))
    with open_tables(lake) as connection:
        yield World(lake, truth, connection)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_request_becomes_the_call_that_it_was(world: World, program: str) -> None:
    check(calls_of(world.connection, program, served=False), world.truth[program], tokens=True)


@pytest.mark.parametrize("way", ["scripted", "served"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_episode_is_one_rollout(world: World, program: str, way: str) -> None:
    wanted = [
        size
        for name, sizes in SCENARIOS[program].items()
        if way == "scripted" or name not in NEED_A_SCRIPT
        for size in sizes
    ]
    assert rollout_sizes(calls_of(world.connection, program, served=way == "served")) == wanted


@pytest.mark.parametrize("program", list(AGENT_NAMES))
def test_calls_know_their_agent(world: World, program: str) -> None:
    calls = calls_of(world.connection, program, served=False)
    assert [call["agent"] for call in calls] == AGENT_NAMES[program]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_servers_own_records_and_the_agents_agree_and_each_call_is_there_once(world: World, program: str) -> None:
    calls = calls_of(world.connection, program, served=True)
    assert calls
    ids = [call["response_id"] for call in calls]
    assert len(set(ids)) == len(ids) and None not in ids
    records = {
        (capture, response_id): (prompt, choices)
        for capture, response_id, prompt, choices in world.connection.execute(
            "select capture, response_id, prompt_token_ids, choices from spans where capture is not null"
        ).fetchall()
    }
    for call in calls:
        assert call["token_source"] == "engine" and call["trainable"]
        prompt, choices = records["serve", call["response_id"]]
        assert (call["prompt_ids"], call["response_ids"]) == (prompt, [choices[0]["token_ids"]])
        seen_prompt, seen_choices = records["client", call["response_id"]]
        assert seen_choices[0]["token_ids"] == choices[0]["token_ids"]
        assert seen_prompt == prompt[len(prompt) - len(seen_prompt) :]
        assert seen_choices[0]["logprobs"] == pytest.approx(choices[0]["logprobs"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_reward_by_response_id_reaches_its_call(world: World, program: str) -> None:
    calls = {call["response_id"]: call for call in calls_of(world.connection, program, served=False)}
    answered = [e["response_id"] for e in world.truth[program] if e["status"] == 200 and not e.get("cut")]
    rewards = world.connection.execute(
        "select value, target_kind, target_trace_id, target_span_id from rewards where name = 'useful'"
    ).fetchall()
    for number, response_id in enumerate(answered):
        call = calls[response_id]
        assert (float(number), "call", call["trace_id"], call["span_id"]) in rewards


def test_tool_executions_hang_on_the_calls_that_asked_for_them(world: World) -> None:
    rows = world.connection.execute(
        "select calls.service_name, tools.name, calls.response_messages from tools "
        "join calls on tools.call_trace_id = calls.trace_id and tools.call_span_id = calls.span_id"
    ).fetchall()
    found = {service for service, name, _ in rows if name == "get_weather"}
    assert found == {"langchain_agent", "autogen_team", "openai_agents"}
    for _, name, messages in rows:
        asked = [call["function"]["name"] for m in json.loads(messages) for call in m.get("tool_calls") or ()]
        assert name in asked or name.startswith("handoff to")


def test_a_prompt_that_continues_another_is_not_sent_again(world: World) -> None:
    rows = world.connection.execute(
        "select attributes_int['lightning.prompt.length'], len(prompt_token_ids) from spans "
        "where capture = 'client' and attributes_str['lightning.prompt.prefix_response_id'] is not null"
    ).fetchall()
    assert len(rows) >= 4
    assert all(sent < whole for whole, sent in rows)
    raw = world.connection.execute(
        "select count(*) from spans where attributes_str['output.value'] like '%token_ids%'"
    ).fetchone()
    assert raw == (0,)
