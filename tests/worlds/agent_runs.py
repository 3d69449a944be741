"""Real agent programs (tests/agents) in their own environment (.agents/newest), started by one of the ways in; and what of
them must be found in the lake, held against what the model server itself wrote down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import ROOT, Process

AGENTS = ROOT / "tests" / "agents"
WAYS = ("command", "environment", "code", "opentelemetry-instrument")
# Scenarios and how many calls each rollout must have, in the order in which rollouts begin; those in braces begin at once.
SCENARIOS: dict[str, dict[str, list[int]]] = {
    "openai_sdk": {
        "sync": [2],
        "stream": [1, 1],
        "tools": [2],
        "responses": [2],
        "failing": [1, 1, 1],
        "asynchronous": [1, 1, 1, 1],
    },
    "langchain_agent": {
        "tools": [2],
        "plain": [1],
        "streamed": [1],
        "model_stream": [1],
        "graph": [2],
        "failing": [1, 1],
    },
    "autogen_team": {"tools": [2], "plain": [1], "team": [3], "shared_runtime": [2, 2]},
    "openai_agents": {"handoff": [3], "plain": [1], "streamed": [1], "replaced": [1], "untraced": [3, 1]},
}
NEED_A_SCRIPT = (
    "tools",
    "responses",
    "failing",
    "handoff",
    "untraced",
)  # a model with random weights cannot play these
AGENT_NAMES = {
    "langchain_agent": ["weatherman"] * 4 + [None] * 5,
    "autogen_team": [
        *("weatherman", "weatherman", "greeter", "writer", "critic", "writer"),
        *("first_writer", "first_critic", "second_writer", "second_critic"),
    ],
    "openai_agents": ["triage", "weatherman", "weatherman", "greeter", "streamer", "replacer"] + [None] * 4,
}


def python_of(name: str) -> Path:
    """The interpreter of .agents/NAME; `make agents` makes the newest."""
    path = ROOT / ".agents" / name / "bin" / "python"
    if not path.exists():
        raise RuntimeError(
            f"{path.relative_to(ROOT)} is missing: run `make agents`, or `make frameworks` for the oldest"
        )
    return path


def scripted_model(log: Path, *options: str) -> Process:
    """The scripted model server; its ground truth goes to `log`."""
    return Process([sys.executable, str(Path(__file__).with_name("scripted_model.py")), str(log), *options])


def clean_environment(**more: str) -> dict[str, str]:
    """This process's without anything that would instrument, and no proxy between local processes."""
    dropped = ("OTEL_", "LIGHTNING_", "OPENAI_", "OPENINFERENCE_", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "NO_PROXY": "127.0.0.1", "MODEL_API_KEY": "unused", "OPENAI_API_KEY": "unused", **more}


def start(
    program: str | Path,
    *arguments: str,
    python: Path,
    way: str = "command",
    options: tuple[str, ...] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    """Start an agent program by one of the ways in."""
    path = program if isinstance(program, Path) else AGENTS / f"{program}.py"
    command = [str(python), str(path), *arguments]
    env = clean_environment(**environment)
    if program == "openai_agents":
        del env["OPENAI_API_KEY"]
    if way == "command":
        command = [str(python.with_name("lightning-instrument")), *options, *command]
    elif way == "environment":
        printed = subprocess.run(
            [str(python.with_name("lightning-instrument")), *options, "--print-env"],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        env |= dict(line.split("=", 1) for line in printed.stdout.splitlines())
    elif way == "code":
        env["WAY_IN"] = "code"
    elif way == "opentelemetry-instrument":
        command = [str(python.with_name("opentelemetry-instrument")), *command]
        env |= {"OTEL_PYTHON_DISTRO": "lightning", "OTEL_PYTHON_CONFIGURATOR": "lightning"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass(frozen=True)
class Ended:
    """An agent program that has come to its end."""

    code: int
    out: str
    err: str
    seconds: float


def end(process: subprocess.Popen[str], timeout_s: float = 120) -> Ended:
    """Wait for it."""
    began = time.monotonic()
    out, err = process.communicate(timeout=timeout_s)
    return Ended(process.returncode, out, err, time.monotonic() - began)


def run(program: str | Path, *arguments: str, **options: Any) -> Ended:
    """Start and wait."""
    return end(start(program, *arguments, **options))


def exchanges(log: Path) -> list[dict[str, Any]]:
    """What the scripted server wrote down."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


CALLS = r"""
select calls.*, rollouts.spans, rollouts.spans_declared, rollouts.keyed_by
from calls left join rollouts using (rollout_id)
where calls.service_name = ? and coalesce(calls.model similar to 'v\d+', false) = ? order by calls.start_unix_nano, calls.span_id
"""


def calls_of(connection: Any, service: str, *, served: bool) -> list[dict[str, Any]]:
    """The calls of one service, of lightning-serve or of the scripted model, in the order in which they began."""
    result = connection.execute(CALLS, [service, served])
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def check(calls: list[dict[str, Any]], truth: list[dict[str, Any]], *, tokens: bool) -> None:
    """Every request of the model server is exactly the call that it was, and there is no other call."""
    answered = {e["response_id"]: e for e in truth if e["status"] == 200 and not e.get("cut")}
    good = [call for call in calls if not call["error"]]
    assert sorted(call["response_id"] for call in good) == sorted(answered)
    for call in good:
        exchange = answered[call["response_id"]]
        assert call["untrainable_reason"] is None, call["untrainable_reason"]
        request, chat = exchange["request"], exchange["path"].endswith("/chat/completions")
        if chat:
            assert heard(json.loads(call["prompt_messages"])) == heard(request["messages"])
            assert heard(json.loads(call["response_messages"])) == heard([exchange["reply"]])
            assert call["finish_reasons"] in ([exchange["finish_reason"]], None)
        assert bool(call["tools"]) == bool(request.get("tools"))
        if chat and tokens:
            assert call["token_source"] == "captured"
            assert call["prompt_ids"] == exchange["prompt_token_ids"]
            assert call["response_ids"] == [exchange["token_ids"]]
            assert call["response_logprobs"] == [exchange["logprobs"]]
        else:
            assert call["token_source"] == "none"
    cut = [e for e in truth if e.get("cut")]
    retried = {last_text(e) for e in truth if e["status"] == 200}
    failed = {last_text(e) for e in truth if e["status"] >= 400} - retried
    bad = [call for call in calls if call["error"]]
    assert len(bad) == len(cut) + len(failed)
    assert {call["untrainable_reason"] for call in bad} <= {"error"}
    assert all(call["spans_declared"] is not None and call["spans"] >= call["spans_declared"] for call in calls)


def heard(messages: list[dict[str, Any]]) -> list[Any]:
    """Messages in canonical form: role, text, tool calls, what a tool message answers."""
    roles = {"developer": "system", "function": "tool"}
    result = []
    for message in messages:
        content = message.get("content")
        text = "".join(p.get("text") or "" for p in content) if isinstance(content, list) else content or ""
        calls = [
            (c["id"], c["function"]["name"], arguments(c["function"]["arguments"]))
            for c in message.get("tool_calls") or ()
        ]
        result.append((roles.get(message["role"], message["role"]), text, calls, message.get("tool_call_id")))
    return result


def arguments(value: Any) -> Any:
    """Arguments as JSON, whichever way they travelled."""
    return json.loads(value or "{}") if isinstance(value, str) else value


def last_text(exchange: dict[str, Any]) -> str:
    """What the last message of a request says."""
    messages = exchange["request"].get("messages")
    return heard(messages)[-1][1] if messages else json.dumps(exchange["request"].get("input"))


def rollout_sizes(calls: list[dict[str, Any]]) -> list[int]:
    """How many calls each rollout has, in the order in which they begin."""
    counts: dict[str, int] = {}
    for call in calls:
        counts[call["rollout_id"]] = counts.get(call["rollout_id"], 0) + 1
    return list(counts.values())
