"""The agents of tests/agents on the newest and on the oldest frameworks, by every way in. `make frameworks`; minutes.

What came out is written to tests/agents/RESULTS.md, also when it is not what it should be.
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_runs import (
    AGENT_NAMES,
    AGENTS,
    SCENARIOS,
    WAYS,
    calls_of,
    check,
    end,
    exchanges,
    python_of,
    rollout_sizes,
    run,
    scripted_model,
    start,
)
from running import ROOT, Starter

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

pytestmark = pytest.mark.frameworks
PROGRAMS = list(SCENARIOS)
VERSIONS = {
    "openai_sdk": ("openai", "openinference-instrumentation-openai"),
    "langchain_agent": (
        "langchain",
        "langchain-core",
        "langchain-openai",
        "langgraph",
        "openinference-instrumentation-langchain",
    ),
    "autogen_team": ("autogen-agentchat", "autogen-ext"),
    "openai_agents": ("openai-agents", "openinference-instrumentation-openai-agents"),
}
COMMON = ("opentelemetry-sdk", "openinference-instrumentation", "pydantic", "protobuf")
# LangChain began to say on every span which agent it is for with 1.1.
NAMELESS = {("oldest", "langchain_agent")}


@pytest.fixture(scope="module")
def results() -> Iterator[list[tuple[str, ...]]]:
    """Rows of the table, written when all have run."""
    rows: list[tuple[str, ...]] = []
    yield rows
    versions = {name: _versions(name) for name in ("newest", "oldest")}
    lines = [
        "# Agents by framework and way in",
        "",
        f"Made on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} by `make frameworks`, Python {platform.python_version()}. A line is one"
        " program of this folder against the scripted",
        "model server and a real collector: calls found of those that were answered, calls whose token ids equal the server's,"
        " rollouts of those wanted,",
        "calls with their agent's name of those that have one.",
        "",
        "| versions | way in | program | calls | token ids | rollouts | agents | |",
        "|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in sorted(rows)),
        "",
        "| package | newest | oldest |",
        "|---|---|---|",
    ]
    for package in (*COMMON, *(p for packages in VERSIONS.values() for p in packages)):
        lines.append(f"| {package} | {versions['newest'].get(package, '')} | {versions['oldest'].get(package, '')} |")
    (AGENTS / "RESULTS.md").write_text("\n".join(lines) + "\n")


def _versions(name: str) -> dict[str, str]:
    listed = subprocess.run(
        [str(python_of(name)), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    return {item["name"].lower(): item["version"] for item in json.loads(listed.stdout)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("versions", ["newest", "oldest"])
def test_agents_come_out_whole(
    start_for_module: Starter, tmp_path: Path, results: list[tuple[str, ...]], versions: str, way: str
) -> None:
    lake, python = tmp_path / "lake", python_of(versions)
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    servers = {program: scripted_model(tmp_path / f"{program}.jsonl") for program in PROGRAMS}
    try:
        running = {
            program: start(
                program, *SCENARIOS[program], python=python, way=way, OPENAI_BASE_URL=f"{servers[program].url}/v1",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME=program, LIGHTNING_CAPTURE_TOKENS="1",
            )
            for program in PROGRAMS
        }  # fmt: skip
        ended = {program: end(process, 240) for program, process in running.items()}
    finally:
        for server in servers.values():
            server.stop()
    collector.post("/flush")
    run_transform(lake, TransformConfig())
    failures = []
    with open_tables(lake) as connection:
        for program in PROGRAMS:
            calls = calls_of(connection, program, served=False)
            truth = exchanges(tmp_path / f"{program}.jsonl")
            failure = _judge(versions, program, ended[program].code, calls, truth)
            failures += [f"{program}: {failure} {ended[program].err[-2000:]}"] if failure else []
            results.append((versions, way, program, *_figures(program, calls, truth), failure or "ok"))
    assert not failures, "\n".join(failures)


def _judge(versions: str, program: str, code: int, calls: list[dict[str, Any]], truth: list[dict[str, Any]]) -> str:
    if code != 0:
        return f"exit {code}"
    try:
        check(calls, truth, tokens=True)
    except AssertionError as error:
        return f"a call is not what it was: {str(error).splitlines()[0][:80]}"
    if rollout_sizes(calls) != [size for sizes in SCENARIOS[program].values() for size in sizes]:
        return f"rollouts {rollout_sizes(calls)}"
    if (
        program in AGENT_NAMES
        and (versions, program) not in NAMELESS
        and [c["agent"] for c in calls] != AGENT_NAMES[program]
    ):
        return "agents"
    return ""


def _figures(
    program: str, calls: list[dict[str, Any]], truth: list[dict[str, Any]], left_out: tuple[str, ...] = ()
) -> tuple[str, str, str, str]:
    answered = {e["response_id"]: e for e in truth if e["status"] == 200 and not e.get("cut")}
    chats = [e for e in answered.values() if e["path"].endswith("/chat/completions")]
    found = {call["response_id"]: call for call in calls if call["response_id"] in answered}
    exact = sum(
        e["response_id"] in found
        and found[e["response_id"]]["prompt_ids"] == e["prompt_token_ids"]
        and found[e["response_id"]]["response_ids"] == [e["token_ids"]]
        for e in chats
    )
    wanted = sum(len(sizes) for name, sizes in SCENARIOS[program].items() if name not in left_out)
    named = [name for name in AGENT_NAMES.get(program, []) if name]
    have = sum(call["agent"] is not None for call in calls)
    return (
        f"{len(found)} of {len(answered)}",
        f"{exact} of {len(chats)}",
        f"{len(rollout_sizes(calls))} of {wanted}",
        f"{have} of {len(named)}" if named else "",
    )


def test_beside_the_oldest_openai_and_pydantic_1_no_installed_version_changes(
    start_for_module: Starter, tmp_path: Path, results: list[tuple[str, ...]]
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "openai==1.69.0", "pydantic==1.10.21", "httpx==0.27.2"], check=True, stderr=subprocess.DEVNULL
    )
    before = _freeze(python)
    copy = tmp_path / "copy"  # setuptools would leave a build folder in the checkout
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "lake", "build", "fixtures"))
    subprocess.run([*pip, f"{copy}[openai]"], check=True, capture_output=True)
    after = _freeze(python)
    assert {name: after.get(name) for name in before} == before
    new = set(after) - set(before)
    assert not new & {"torch", "pyarrow", "duckdb", "pydantic-core", "cyclopts", "rich"}, new
    assert not [path for path in (tmp_path / "venv").rglob("*.pth") if "lightning" in path.name]
    log, lake = tmp_path / "log.jsonl", tmp_path / "lake"
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    server = scripted_model(log)
    scenarios = [name for name in SCENARIOS["openai_sdk"] if name != "responses"]
    try:
        ended = run(
            "openai_sdk", *scenarios, python=python, OPENAI_BASE_URL=f"{server.url}/v1",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="openai_sdk", LIGHTNING_CAPTURE_TOKENS="1",
        )  # fmt: skip
    finally:
        server.stop()
    collector.post("/flush")
    run_transform(lake, TransformConfig())
    with open_tables(lake) as connection:
        calls, truth = calls_of(connection, "openai_sdk", served=False), exchanges(log)
    failure = ""
    try:
        assert ended.code == 0, ended.err
        check(calls, truth, tokens=True)
    except AssertionError as error:
        failure = str(error).splitlines()[0][:80]
        raise
    finally:
        figures = _figures("openai_sdk", calls, truth, ("responses",))
        results.append(("openai 1.69.0, pydantic 1.10.21", "command", "openai_sdk", *figures, failure or "ok"))


def _freeze(python: Path) -> dict[str, str]:
    done = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    return {item["name"]: item["version"] for item in json.loads(done.stdout)}
