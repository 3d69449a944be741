"""train.py as a user runs it: a killed run goes on bit for bit, a mistake costs one line, the gate decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from running import attributes

from otel_lightning.app.errors import ConfigError
from otel_lightning.store.policies import Policies, file_sha256
from otel_lightning.training.config import GateConfig, TrainConfig
from otel_lightning.training.driver import Driver, Task
from otel_lightning.training.gate import Verdict, decide, played_before, run_gate
from otel_lightning.transforms.config import TransformConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> Path:
    """A supervised job of a few seconds."""
    conversations = [
        {"messages": [{"role": "user", "content": f"count {i}"}, {"role": "assistant", "content": f"{i} {i + 1}"}]}
        for i in range(40)
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, conversations)))
    config = {
        "model": {"path": str(checkpoint)},
        "data": {"messages": str(tmp_path / "talk.jsonl")},
        "algorithm": {"name": "sft"},
        "optim": {"lr": 1e-3, "steps": 40, "batch_rollouts": 8},
        "publish": False,
        "tensorboard": False,
        "checkpoint_steps": 5,
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "job.yaml"


def command(job: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--config", str(job), *more]


def train(job: Path, *more: str, precision: str = "no") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": precision}
    return subprocess.run(command(job, *more), capture_output=True, text=True, timeout=200, env=environment)


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(job: Path, tmp_path: Path) -> None:
    whole = train(job, "--set", f"output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(job), env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    while not any(checkpoints.glob("step=*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "model" / "model.safetensors").exists(), "it ended before it could be killed"
    # What a kill in the middle of a write leaves: a half checkpoint under its final name must be passed over too.
    (checkpoints / "step=000039").mkdir()
    (checkpoints / "step=000039" / "model.safetensors").write_bytes(b"half")
    again = train(job)
    assert again.returncode == 0, again.stderr
    assert "resumes after step=" in again.stdout
    weights = [file_sha256(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run")]
    assert weights[0] == weights[1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(40)), "what was written after the checkpoint is written once"


def test_another_configuration_does_not_go_on_from_this_checkpoint(job: Path) -> None:
    assert train(job).returncode == 0
    done = train(job, "--set", "optim.lr=0.5")
    assert done.returncode == 1
    assert "checkpoint of another configuration" in done.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["--set", "algorithm.name=grop"], "did you mean 'grpo'?"),
        (["--set", "model.path=/nowhere"], "/nowhere is no model folder"),
        (["--set", "algorithm.name=grpo"], "grpo needs rewards, and data.messages has none; use algorithm sft"),
        (["--set", "data.messages=/nowhere"], "data.messages: /nowhere cannot be read"),
        (["--set", "optim.lr"], "give key=value"),
    ],
)
def test_a_mistake_costs_one_line(job: Path, more: list[str], words: str) -> None:
    done = train(job, *more)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def first_loss(job: Path, folder: Path, precision: str) -> float:
    done = train(job, "--set", f"output={folder}", "--set", "optim.steps=1", precision=precision)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def test_bf16_is_used_when_it_is_asked_for_and_fp16_is_refused(job: Path, tmp_path: Path) -> None:
    full, half = (first_loss(job, tmp_path / precision, precision) for precision in ("no", "bf16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)
    done = train(job, precision="fp16")
    assert done.returncode == 1
    assert "fp16" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_says_what_would_be_trained_and_changes_nothing(job: Path, tmp_path: Path) -> None:
    done = train(job, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "40 sequences of 40 rollouts" in done.stdout
    assert not (tmp_path / "run").exists()


def test_trained_samples_and_metrics_are_on_record(job: Path, tmp_path: Path) -> None:
    assert train(job).returncode == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(40))
    assert steps[-1]["loss"] < steps[0]["loss"]
    trained = [json.loads(line) for line in (tmp_path / "run" / "trained.jsonl").read_text().splitlines()]
    assert all(len(step["samples"]) == 8 for step in trained)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    TrainConfig.model_validate(yaml.safe_load(path.read_text()))


def test_the_gate_promotes_refuses_and_says_when_it_cannot_know() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.6).astype(float)
    better = np.maximum(base, (rng.random(400) < 0.4).astype(float))
    assert decide(base, better, 0.03)[3] == "promote"
    assert decide(better, base, 0.03)[3] == "refuse"
    assert decide(base, base, 0.03)[3] == "refuse"
    few_before, few_after = np.array([1.0, 0, 1, 0, 1, 0, 1, 0]), np.array([0.0, 1, 1, 0, 1, 1, 1, 0])
    _, low, _, verdict, reason = decide(few_before, few_after, 0.03)
    assert (verdict, low < -0.03) == ("undecided", True)
    assert "8 tasks are too few" in reason


WORKER = """
import json, sys, time
for line in sys.stdin:
    task = json.loads(line)
    if task["task"].get("silent"):
        continue
    print("chatter that is no result")
    print(json.dumps({"rollout_id": task["rollout_id"], "status": "finished"}), flush=True)
"""


def a_task(number: int, **task: object) -> Task:
    return Task(
        f"r-{number}", f"t-{number}", f"g-{number}", "train", "current", 1.0, 0, {"task_id": f"t-{number}", **task}
    )


def test_the_driver_announces_episodes_and_counts_the_silent_as_timeouts(collector, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    with Driver(f"{sys.executable} {worker}", serve="http://127.0.0.1:9", collect=collector.url, settle_s=0) as driver:
        outcomes = driver.run([a_task(1), a_task(2, silent=True)], deadline_s=2)
        driver._emitter.flush()
    collector.post("/flush")
    assert {o.rollout_id: o.status for o in outcomes} == {"r-1": "finished", "r-2": "timeout"}
    from otel_lightning.transforms.tables import open_tables

    with open_tables(tmp_path / "lake") as connection:
        marks = connection.execute(
            "select event_name, attributes_str['lightning.rollout.id'], attributes_str['status'] from events order by 1 desc, 2"
        ).fetchall()
    assert marks == [
        ("lightning.rollout.start", "r-1", None),
        ("lightning.rollout.start", "r-2", None),
        ("lightning.rollout.end", "r-1", "finished"),
        ("lightning.rollout.end", "r-2", "timeout"),
    ]


def test_a_task_file_that_is_off_names_file_and_line(tmp_path: Path) -> None:
    from otel_lightning.training.driver import read_tasks

    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_id": "a"}\n{"id": "b"}\n')
    with pytest.raises(ConfigError, match=r"tasks\.jsonl:2"):
        read_tasks(path)


def test_a_gate_reuses_only_what_was_played_whole_and_on_the_same_basis(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    gates = [
        None,
        {"basis": "b", "rollouts": "gate-1", "missing": 0},
        {"basis": "b", "rollouts": "gate-2", "missing": 3},
    ]
    for gate in gates:
        version = policies.publish(lambda folder: (folder / "config.json").write_text("{}"), {}).version
        if gate is not None:
            policies.write_gate(version, gate)
    assert [played_before(policies, version, "b") for version in policies.versions()] == [None, "gate-1", None]
    assert played_before(policies, policies.versions()[1], "other tasks, seed or command") is None


PLAYER = """
import json, os, sys
sys.path.insert(0, {worlds!r})
from running import Otlp, attributes
otlp = Otlp(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
for number, line in enumerate(sys.stdin):
    task = json.loads(line)
    trace, span, at = os.urandom(16).hex(), os.urandom(8).hex(), otlp.tick()
    mine = dict(attributes={{"lightning.rollout.id": task["rollout_id"]}})
    said = {{"openinference.span.kind": "LLM", "llm.model_name": "m", "lightning.rollout.id": task["rollout_id"],
            "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": task["task_id"],
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "done"}}
    score = {{"gen_ai.evaluation.name": "resolved", "gen_ai.evaluation.score.value": float(task["policy"] != "v0001"),
             "lightning.rollout.id": task["rollout_id"]}}
    otlp.send([dict(traceId=trace, spanId=span, name="chat", startTimeUnixNano=str(at), endTimeUnixNano=str(otlp.tick()),
                    attributes=attributes(said))],
              [dict(timeUnixNano=str(otlp.tick()), eventName="gen_ai.evaluation.result", attributes=attributes(score))])
    print(json.dumps({{"rollout_id": task["rollout_id"], "status": "finished"}}), flush=True)
"""


def three_policies(lake: Path) -> Policies:
    policies = Policies(lake / "policies")
    for _ in range(3):
        policies.publish(lambda folder: (folder / "config.json").write_text("{}"), {})
    policies.point("current", "v0001", who="test", why="it begins")
    return policies


def test_a_gate_refuses_on_the_signals_that_it_is_told_to_heed(collector, otlp, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Twelve episodes of one service have no reward, which is a finding of high severity, while the outcome rises."""
    player, tasks, lake = tmp_path / "player.py", tmp_path / "tasks.jsonl", tmp_path / "lake"
    player.write_text(PLAYER.format(worlds=str(ROOT / "tests" / "worlds")))
    tasks.write_text("".join(json.dumps({"task_id": f"t-{number}"}) + "\n" for number in range(12)))
    for number in range(12):
        otlp.send([
            {
                "traceId": f"{number + 1:032x}", "spanId": f"{number + 1:016x}", "name": "chat", "startTimeUnixNano": str(otlp.tick()),
                "endTimeUnixNano": str(otlp.tick()), "attributes": attributes({
                    "openinference.span.kind": "LLM", "llm.model_name": "m", "llm.input_messages.0.message.role": "user",
                    "llm.input_messages.0.message.content": f"question {number}",
                    "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "done",
                }),
            }
        ], resource={"service.name": "silent"})  # fmt: skip
    policies = three_policies(lake)
    # The player needs no model; who serves is only told to flush.
    gate = {
        "command": f"{sys.executable} {player}", "tasks": str(tasks), "serve": collector.url, "collect": collector.url,
        "settle_s": 0, "deadline_s": 60,
    }  # fmt: skip
    transform = TransformConfig.model_validate(
        {"rewards": {"train": {"resolved": 1.0}}, "settle_s": 0, "split": {"eval_percent": 0}}
    )

    def run(version: str, *heeded: str) -> Verdict:
        return run_gate(lake, version, GateConfig.model_validate(gate | {"refuse_signals": list(heeded)}), transform, 0)

    refused = run("v0002", "missing_rewards")
    assert (refused.verdict, refused.difference) == ("refuse", 1.0)
    assert "missing_rewards (silent): 12 of 12 episodes have no reward that counts" in refused.reason
    assert "gate.refuse_signals" in refused.reason and policies.pointer("current") == "v0001"
    recorded = policies.get("v0002").gate
    assert (
        recorded is not None
        and {"signal": "missing_rewards", "subject": "silent"}.items() <= recorded["signals"][0].items()
    )
    # What is not named is on record and decides nothing.
    promoted = run("v0003", "stale_policy")
    assert promoted.verdict == "promote" and promoted.signals and policies.pointer("current") == "v0003"
    with pytest.raises(ValueError, match="no signal 'missing_reward'; did you mean missing_rewards"):
        run("v0003", "missing_reward")

    # A verdict stands: nothing is played again, and what a person rolled back stays so.
    policies.point("current", "v0001", who="test", why="rolled back")
    assert run("v0003") == promoted and policies.pointer("current") == "v0001"
    # A crash between the verdict and the promotion leaves the latter to be done.
    version = policies.publish(lambda folder: (folder / "config.json").write_text("{}"), {}).version
    policies.write_gate(version, {**recorded, "verdict": "promote", "champion": "v0001", "candidate": version})
    assert run(version).verdict == "promote" and policies.pointer("current") == version


def test_a_job_whose_gate_has_nothing_to_compare_with_ends_before_it_trains(job: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(job.read_text())
    config["data"]["lake"], config["publish"] = str(tmp_path / "lake"), True
    config["gate"] = {"command": "true", "tasks": "none.jsonl", "serve": "http://x", "collect": "http://x"}
    job.write_text(yaml.safe_dump(config))
    (tmp_path / "lake").mkdir()
    done = train(job)
    assert done.returncode and "the gate compares with the current policy and there is none" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()
