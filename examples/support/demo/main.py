"""make demo: the whole loop on one machine, every part a process of its own, every number from the lake.

    base policy → collector, server, bots → before → log → offline → gate → after offline → online → gate → after online

Everything lies under runs/demo-<time>/: the lake, the logs, report.md, report.json and curve.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))

from world import NOISE, RIGHT, tickets

from demo import report as reporting
from demo.processes import Service, free_port, run_step
from otel_lightning.app.cli import guard
from otel_lightning.app.config import read_yaml
from otel_lightning.app.errors import LightningError
from otel_lightning.app.progress import progress
from otel_lightning.store.files import write_json
from otel_lightning.store.policies import Policies, tokenizer_sha256
from otel_lightning.training.driver import Driver, Task
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform

BUDGET_SECONDS = 600
MIN_AGENT_SIDE_SHARE = 0.99
LAUNCH = (
    "launch", "--quiet", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    transcripts: int
    base_steps: int
    log_episodes: int
    offline_steps: int
    rounds: int
    tasks_per_round: int
    eval_tickets: int
    test_tickets: int


SIZES = {
    "full": Size(8000, 800, 1024, 60, 20, 32, 192, 512),
    "small": Size(2500, 320, 80, 10, 2, 8, 16, 64),
}


@dataclass
class Demo:
    """One run."""

    folder: Path
    size: Size
    seed: int
    control: bool
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lake(self) -> Path:
        """The run's lake."""
        return self.folder / "lake"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage: wall seconds, and CPU seconds of this process, its children and its servers."""
        print(f"\n=== {name}", flush=True)
        began, cpu = time.monotonic(), self._cpu()
        yield
        for service in self.services:
            service.check()
        self.seconds[name] = time.monotonic() - began
        self.cpu_seconds[name] = self._cpu() - cpu
        print(f"=== {name}: {self.seconds[name]:.0f} s, {self.cpu_seconds[name]:.0f} CPU s", flush=True)

    def _cpu(self) -> float:
        import psutil

        own = os.times()
        total = own.user + own.system + own.children_user + own.children_system
        for service in self.services:
            times = psutil.Process(service.pid).cpu_times()
            total += times.user + times.system
        return total


def main() -> int:
    """Entry point; a failure is one line."""
    parser = argparse.ArgumentParser(description="Run the support demo end to end.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument(
        "--control", action="store_true", help="negative control: permute the rewards of train rollouts"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the run (default: runs/demo-<time>)")
    parser.add_argument(
        "--base", type=Path, default=None, help="run folder whose base policy is used again, not trained anew"
    )
    parser.add_argument("--bots-otlp", default=None, help=argparse.SUPPRESS)  # a fault for tests: where bots export to
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return guard(lambda: _run(options), "demo")


def _run(options: argparse.Namespace) -> int:
    out = options.out or ROOT / "runs" / f"demo-{time.strftime('%Y%m%d-%H%M%S')}{'-control' if options.control else ''}"
    if (out / "lake").exists():
        raise LightningError(f"{out} holds an earlier run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    demo = Demo(out.resolve(), SIZES[options.size], options.seed, options.control)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Threads that spin while they wait stand still for seconds when anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    print(f"demo: seed {demo.seed}, size {options.size}, in {demo.folder}", flush=True)
    with ExitStack() as stack:
        _base(demo, options.base)
        _play(demo, stack, options)
    print(f"\n{reporting.markdown(_finish(demo))}", flush=True)
    print(f"report: {demo.folder / 'report.md'}")
    return 0


def _base(demo: Demo, reused: Path | None) -> None:
    with demo.stage("base"):
        source = _trained_base(demo) if reused is None else reused / "lake" / "policies" / "v0001"
        if not source.is_dir():
            raise LightningError(f"{source} is not there; give --base the folder of an earlier run")
        policies = Policies(demo.lake / "policies")
        policies.publish(
            lambda folder: shutil.copytree(
                source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("policy.json", "gate.json")
            ),
            {
                "parent": None,
                "run": "base",
                "algorithm": "sft",
                "tokenizer": tokenizer_sha256(source),
                "tool_parser": "hermes",
            },
        )
        policies.point("current", "v0001", who="demo", why="the base policy")


def _trained_base(demo: Demo) -> Path:
    """A model folder, trained on noisy transcripts."""
    base, size = demo.folder / "base", demo.size
    make = [sys.executable, str(HERE.parent / "base.py"), "--out", str(base)]
    run_step("the base's transcripts", [*make, "--seed", str(demo.seed), "--transcripts", str(size.transcripts)])
    _train(
        demo,
        "support_base.yaml",
        {
            "model.path": base / "model",
            "data.messages": base / "transcripts.jsonl",
            "optim.steps": size.base_steps,
            "output": base / "train",
            "seed": demo.seed,
        },
        # Steps of eight short sequences are too small to share out.
        threads=1,
    )
    return base / "train" / "model"


def _play(demo: Demo, stack: ExitStack, options: argparse.Namespace) -> None:
    size = demo.size
    http, grpc, port = free_port(), free_port(), free_port()
    collect, serve = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{port}"
    scripts = Path(sys.executable).parent
    _task_files(demo)
    with demo.stage("start"):
        for service in (
            lambda: Service(
                "lightning-collect",
                [
                    str(scripts / "lightning-collect"),
                    "--lake",
                    str(demo.lake),
                    "--http",
                    f"127.0.0.1:{http}",
                    "--grpc",
                    f"127.0.0.1:{grpc}",
                ],
                demo.folder / "logs" / "collect.log",
            ),
            lambda: Service(
                "lightning-serve",
                [str(scripts / "lightning-serve"), "--lake", str(demo.lake), "--port", str(port), "--otlp", collect],
                demo.folder / "logs" / "serve.log",
            ),
        ):
            demo.services.append(service())
            stack.callback(demo.services[-1].stop)
    driver = f"{sys.executable} {HERE.parent / 'driver.py'}" + (" --permute" if demo.control else "")
    if options.bots_otlp:
        driver += f" --bots-otlp {options.bots_otlp}"
    transform = _transform()

    def play(what: str, tasks: list[Task]) -> None:
        with Driver(driver, serve=serve, collect=collect) as running, progress(what, len(tasks)) as bar:
            running.run(tasks, 600.0, lambda _: bar.advance())
            running.flush()
        run_transform(demo.lake, transform)
        _require_agents(demo)

    def measure(stage: str) -> None:
        version = Policies(demo.lake / "policies").get("current").version
        with demo.stage(stage):
            greedy, sampled = (
                _test_tasks(demo, stage, decoding, temperature, version)
                for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0))
            )
            # Side by side: each temperature has a bot of its own, and one alone leaves a core idle.
            play(f"{stage}, greedy and sampled", [task for pair in zip(greedy, sampled, strict=True) for task in pair])

    measure("before")
    with demo.stage("log"):
        play("logged episodes", _log_tasks(demo))
    servers = {"serve": serve, "collect": collect, "command": driver}
    gate = {f"gate.{key}": value for key, value in {**servers, "tasks": demo.folder / "tasks" / "eval.jsonl"}.items()}
    common = {"data.lake": demo.lake, "seed": demo.seed, **gate}
    with demo.stage("offline"):
        _train(
            demo,
            "support_offline.yaml",
            {**common, "optim.steps": size.offline_steps, "output": demo.folder / "offline"},
        )
        _remember_gate(demo, "offline")
    measure("after_offline")
    with demo.stage("online"):
        rollouts = {
            f"rollouts.{key}": value
            for key, value in {**servers, "tasks": demo.folder / "tasks" / "train.jsonl"}.items()
        }
        counts = {"rollouts.rounds": size.rounds, "rollouts.tasks_per_round": size.tasks_per_round}
        _train(demo, "support_online.yaml", {**common, **rollouts, **counts, "output": demo.folder / "online"})
        _remember_gate(demo, "online")
    measure("after_online")
    with demo.stage("stop"):
        for service in reversed(demo.services):
            service.stop()
        demo.services.clear()
    run_transform(demo.lake, transform)


def _finish(demo: Demo) -> dict[str, Any]:
    test = _tickets("test", demo.size.test_tickets, demo.seed)
    rng = random.Random(demo.seed)
    report = reporting.build(
        demo.lake,
        test,
        {
            "seed": demo.seed,
            "control": demo.control,
            "gates": demo.gates,
            "seconds": demo.seconds,
            "cpu_seconds": demo.cpu_seconds,
            "budget_seconds": BUDGET_SECONDS,
            "ceiling": sum(_scripted(t["ticket"], None) for t in test) / len(test),
            "floor": sum(_scripted(t["ticket"], rng) for t in test) / len(test),
            "noise": NOISE,
        },
    )
    write_json(demo.folder / "report.json", report)
    reporting.plot(report, demo.folder / "curve.png")
    (demo.folder / "report.md").write_text(reporting.markdown(report), encoding="utf-8")
    return report


def _scripted(ticket: dict[str, Any], rng: random.Random | None) -> float:
    """The expert (no rng) or a random action, judged by the same store and judge as the bots."""
    from bot.desk import ACTIONS
    from bot.store import Store
    from world import Ticket, is_resolved

    parsed = Ticket.from_json(ticket)
    store = Store(":memory:")
    store.open_account("c", "c", parsed.order)
    action = rng.choice(sorted(ACTIONS)) if rng else RIGHT[parsed.issue, parsed.fact]
    store.act("c", parsed.order["number"], action)
    return float(is_resolved(parsed, store.actions("c")))


def _train(demo: Demo, config: str, overrides: dict[str, Any], threads: int = 2) -> None:
    command = [str(Path(sys.executable).parent / "accelerate"), *LAUNCH, "--num_cpu_threads_per_process", str(threads)]
    command += [str(ROOT / "train.py"), "--config", str(ROOT / "configs" / config)]
    for key, value in overrides.items():
        command += ["--set", f"{key}={value}"]
    run_step(config.removesuffix(".yaml"), command, {"OMP_NUM_THREADS": str(threads)})


def _transform() -> TransformConfig:
    """The transform section of the training configurations, so that all parts agree on what a reward is."""
    return TransformConfig.model_validate(read_yaml(ROOT / "configs" / "support_offline.yaml")["data"]["transform"])


def _tickets(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    return [{"task_id": ticket.ticket_id, "ticket": ticket.to_json()} for ticket in tickets(split, count, seed)]


def _task_files(demo: Demo) -> None:
    folder = demo.folder / "tasks"
    folder.mkdir()
    train = demo.size.rounds * demo.size.tasks_per_round
    for split, count, seed in (("train", train, 1000 + demo.seed), ("eval", demo.size.eval_tickets, demo.seed)):
        lines = [json.dumps(task) for task in _tickets(split, count, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _test_tasks(demo: Demo, stage: str, decoding: str, temperature: float, version: str) -> list[Task]:
    name = stage.replace("_", "")
    return [
        Task(
            rollout_id=f"report-{name}-{decoding}-{task['task_id']}-{index}",
            task_id=task["task_id"],
            group_id=f"report-{name}-{decoding}-{task['task_id']}",
            split="test",
            policy=version,
            temperature=temperature,
            seed=demo.seed,
            task=task,
        )
        for index, task in enumerate(_tickets("test", demo.size.test_tickets, demo.seed))
    ]


def _log_tasks(demo: Demo) -> list[Task]:
    session = secrets.token_hex(3)
    return [
        Task(
            rollout_id=f"log-{session}-{index:05d}",
            task_id=task["task_id"],
            group_id=f"log-{session}-{task['task_id']}",
            split="train",
            policy="current",
            temperature=1.0,
            seed=demo.seed,
            task=task,
        )
        for index, task in enumerate(_tickets("train", demo.size.log_episodes, 2000 + demo.seed))
    ]


def _require_agents(demo: Demo) -> None:
    """Stop in one line when it is the server's records and not the agents' traces that make the data."""
    from otel_lightning.transforms.tables import open_tables

    with open_tables(demo.lake) as connection:
        row = connection.execute("select count(*), count(*) filter (where convention <> 'serve') from calls").fetchone()
        episodes = connection.execute("select count(*), count(*) filter (where calls = 0) from rollouts").fetchone()
    assert row is not None and episodes is not None
    if row[0] == 0 or row[1] < MIN_AGENT_SIDE_SHARE * row[0] or episodes[1] > (1 - MIN_AGENT_SIDE_SHARE) * episodes[0]:
        raise LightningError(
            f"only {row[1]} of {row[0]} calls ({episodes[0] - episodes[1]} of {episodes[0]} episodes) come from the bots' own "
            "spans; does their exporter reach the collector? nothing is trained on the server's records alone"
        )


def _remember_gate(demo: Demo, stage: str) -> None:
    policies = Policies(demo.lake / "policies")
    candidate = policies.pointer("candidate")
    gate = policies.get(candidate).gate if candidate else None
    if gate is not None:
        demo.gates.append({"stage": stage, **gate})


if __name__ == "__main__":
    sys.exit(main())
