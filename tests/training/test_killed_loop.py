"""An online job that is killed wherever it hurts most, again and again, ends as one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from otel_lightning.store.policies import Policies

ROOT = Path(__file__).parents[2]
ROUNDS, TASKS = 4, 4

# Plays a task and notes which policy it would have been served.
PLAYER = """
import json, os, sys
sys.path.insert(0, {worlds!r})
from running import Otlp, attributes
otlp = Otlp(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
for line in sys.stdin:
    task = json.loads(line)
    candidate = open({candidate!r}).read().strip()
    with open({played!r}, "a") as file:
        print(task["rollout_id"], candidate, file=file)
    trace, span, at = os.urandom(16).hex(), os.urandom(8).hex(), otlp.tick()
    said = {{"openinference.span.kind": "LLM", "llm.model_name": "m", "lightning.rollout.id": task["rollout_id"],
            "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": task["task_id"],
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": span}}
    score = {{"gen_ai.evaluation.name": "resolved", "gen_ai.evaluation.score.value": 1.0,
             "lightning.rollout.id": task["rollout_id"]}}
    otlp.send([dict(traceId=trace, spanId=span, name="chat", startTimeUnixNano=str(at), endTimeUnixNano=str(otlp.tick()),
                    attributes=attributes(said))],
              [dict(timeUnixNano=str(otlp.tick()), eventName="gen_ai.evaluation.result", attributes=attributes(score))])
    print(json.dumps({{"rollout_id": task["rollout_id"], "status": "finished"}}), flush=True)
"""

# train.py, which kills itself when a function of it has run for the n-th time.
KILLED = """
import os, signal, sys
from otel_lightning.store.policies import Policies
from otel_lightning.training import checkpoint
from otel_lightning.training.driver import Driver
from otel_lightning.training.run_folder import RunFolder
from otel_lightning.training.cli import main
place, left = sys.argv[1], int(sys.argv[2])
owner = {"run": Driver, "trained": RunFolder, "save": checkpoint, "publish": Policies, "point": Policies}[place]
real = getattr(owner, place)

def counted(*given, **named):
    global left
    done = real(*given, **named)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

setattr(owner, place, counted)
sys.exit(main(sys.argv[3:]))
"""


def _train(config: Path, *kill: str) -> subprocess.CompletedProcess[str]:
    start = ["-c", KILLED, *kill] if kill else [str(ROOT / "train.py")]
    return subprocess.run(
        [sys.executable, *start, "--config", str(config)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loop_killed_at_every_step_of_a_round_loses_that_round_and_nothing_else(
    collector: Any, checkpoint: Path, tmp_path: Path
) -> None:
    lake, out, played = tmp_path / "lake", tmp_path / "run", tmp_path / "played"
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"task_id": f"t-{n}"}) + "\n" for n in range(TASKS)))
    player = tmp_path / "player.py"
    candidate = str(lake / "policies" / "candidate")
    player.write_text(PLAYER.format(worlds=str(ROOT / "tests" / "worlds"), candidate=candidate, played=str(played)))
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump({
        "model": {"path": str(checkpoint)},
        "data": {"lake": str(lake), "transform": {"rewards": {"train": {"resolved": 1.0}}, "settle_s": 0}},
        "algorithm": {"name": "sft"},
        "optim": {"lr": 1e-3},
        "rollouts": {
            "command": f"{sys.executable} {player}", "tasks": str(tmp_path / "tasks.jsonl"), "serve": collector.url,
            "collect": collector.url, "rounds": ROUNDS, "tasks_per_round": TASKS, "group_size": 1, "settle_s": 0,
        },
        "tensorboard": False,
        "output": str(out),
    }))  # fmt: skip

    # In turn: the first round's episodes are played, half of its updates are made; the second round's checkpoint is
    # written, its policy is published (as the first thing of that try); the loop acts with it in the third.
    kills = [("run", "1"), ("trained", "1"), ("save", "2"), ("publish", "1"), ("point", "2"), ("trained", "2")]
    for kill in kills:
        done = _train(config, *kill)
        assert done.returncode == -signal.SIGKILL, (kill, done.stdout, done.stderr)
    done = _train(config)
    assert done.returncode == 0, done.stderr
    assert "resumes after step=" in done.stdout

    policies = Policies(lake / "policies")
    infos = {version: policies.get(version).info for version in policies.versions()}
    ended = {info["round"]: version for version, info in infos.items() if "round" in info}
    assert sorted(ended) == list(range(ROUNDS)) and policies.pointer("candidate") == ended[ROUNDS - 1]
    assert sum("round" in info for info in infos.values()) == ROUNDS, "no round was published twice"

    # Each episode was played by what the weights that then learnt from it were.
    tries: dict[tuple[str, int], int] = {}
    for line in played.read_text().splitlines():
        rollout_id, version = line.split()
        _, session, number, *_ = rollout_id.split("-")
        tries[session, int(number)] = tries.get((session, int(number)), 0) + 1
        assert infos[version]["step"] == 2 * int(number), (line, infos[version])
    assert set(tries.values()) == {TASKS}
    assert len({session for session, _ in tries}) > ROUNDS

    steps = list(range(2 * ROUNDS))
    assert [line["step"] for line in _lines(out / "metrics.jsonl")] == steps
    assert _lines(out / "metrics.cut.jsonl"), "what a kill cut off is kept apart"
    trained = _lines(out / "trained.jsonl")
    assert {line["step"] for line in trained} == set(steps)
    samples = [sample for line in trained for sample in line["samples"]]
    assert len(samples) == len(set(samples)) >= ROUNDS * TASKS
