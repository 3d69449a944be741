"""The two kinds of job: offline over a table, online in rounds of publish, act, collect, credit, step; then the gate."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from otel_lightning.app.errors import ConfigError, LightningError
from otel_lightning.app.progress import progress
from otel_lightning.store.policies import Policies
from otel_lightning.training import checkpoint, models
from otel_lightning.training.config import RolloutsConfig, TrainConfig, resolved
from otel_lightning.training.curriculum import choose, fresh, remember_unsolved
from otel_lightning.training.data import Dataset, Row, read_lake, read_messages
from otel_lightning.training.driver import Driver, Task, read_tasks
from otel_lightning.training.gate import NO_CURRENT, read_outcomes, run_gate
from otel_lightning.training.loop import Learner, batches, rate, step_count
from otel_lightning.training.run_folder import RunFolder
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform


@dataclass
class Job:
    """What both kinds of job share."""

    config: TrainConfig
    accelerator: Accelerator
    folder: Path
    parent: str | None
    tokenizer: Any
    tokenizer_sha256: str
    learner: Learner
    run: RunFolder

    @property
    def is_main(self) -> bool:
        """True on the one process that writes."""
        return self.accelerator.is_main_process

    @property
    def transform(self) -> TransformConfig:
        """The transform's configuration, its defaults where the job has none."""
        return self.config.data.transform or TransformConfig()


def run_job(config: TrainConfig, *, dry_run: bool) -> int:
    """Run the configured job to its end; 0 also when the gate refused, which is an answer and not an error."""
    accelerator = Accelerator()
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(f"mixed precision {accelerator.mixed_precision} is not supported; use bf16 or no")
    folder, parent = models.source_folder(config)
    lake = config.data.lake if config.gate is not None and config.publish else None
    # After hours of training it would be found too late.
    if lake is not None and Policies(lake / "policies").pointer("current") is None:
        raise LightningError(NO_CURRENT)
    if config.data.lake is not None and config.data.transform is not None and config.rollouts is None:
        if accelerator.is_main_process:
            run_transform(config.data.lake, config.data.transform)
        accelerator.wait_for_everyone()
    torch.manual_seed(config.seed)
    model, tokenizer, identity = models.load(folder)
    if dry_run:
        return _dry_run(config, folder, tokenizer, identity)
    learner = Learner(model, config.algorithm, config.optim, accelerator)
    run = RunFolder(config, main=accelerator.is_main_process)
    job = Job(config, accelerator, folder, parent, tokenizer, identity, learner, run)
    try:
        if config.rollouts is not None:
            _online(job, config.rollouts)
        else:
            _offline(job)
    finally:
        run.close()
        if accelerator.num_processes > 1:
            accelerator.end_training()
    return 0


def _data(config: TrainConfig, tokenizer: Any, identity: str) -> Dataset:
    if config.data.messages is not None:
        return read_messages(config.data.messages, tokenizer)
    assert config.data.lake is not None
    return read_lake(config.data.lake, config, tokenizer, identity)


def _dry_run(config: TrainConfig, folder: Path, tokenizer: Any, identity: str) -> int:
    print(json.dumps(resolved(config), indent=2))
    print(f"starts from {folder}")
    if config.rollouts is not None:
        tasks = read_tasks(config.rollouts.tasks)
        per_round = config.rollouts.tasks_per_round * config.rollouts.group_size
        print(f"{config.rollouts.rounds} rounds of {per_round} rollouts over {len(tasks)} tasks")
        return 0
    data = _data(config, tokenizer, identity)
    sources = sorted({row.token_source for row in data.rows})
    print(
        f"{len(data.rows)} sequences of {data.rollouts} rollouts, {data.tokens} trained tokens ({', '.join(sources)})"
    )
    for reason, count in sorted(data.left_out.items()):
        print(f"  left out: {count} {reason}")
    print(f"{step_count(data.rows, config.optim)} optimiser steps")
    return 0


def _offline(job: Job) -> None:
    config, learner = job.config, job.learner
    data = _data(config, job.tokenizer, job.tokenizer_sha256)
    steps = step_count(data.rows, config.optim)
    plan = batches(data.rows, config.optim, steps, config.seed)
    first = _resume(job, _identity(config, data.rows))
    job.run.go_on(first)
    if job.is_main:
        print(
            f"{len(data.rows)} sequences of {data.rollouts} rollouts, {data.tokens} trained tokens, {steps} steps",
            flush=True,
        )
    with progress(config.algorithm.name, steps) as bar:
        bar.advance(first)
        for step in range(first, steps):
            torch.manual_seed(_step_seed(config.seed, step))
            rows = [data.rows[index] for index in plan[step]]
            numbers = learner.step(rows, rate(step, steps, config.optim))
            job.run.metrics(step, numbers)
            job.run.trained(step, rows)
            bar.note(f"loss {numbers['loss']:.4f}")
            bar.advance()
            if (step + 1) % config.checkpoint_steps == 0 and step + 1 < steps:
                _save(job, step + 1, {"identity": _identity(config, data.rows)})
    _publish_and_gate(job, steps, {"data_manifest": data.manifest, "rollouts": data.rollouts})


def _online(job: Job, rollouts: RolloutsConfig) -> None:
    config, learner = job.config, job.learner
    lake = config.data.lake
    assert lake is not None
    if job.accelerator.num_processes > 1:
        raise LightningError("online jobs run in one process here; start train.py with --num_processes 1")
    tasks = read_tasks(rollouts.tasks)
    if len(tasks) < rollouts.tasks_per_round:
        raise LightningError(
            f"{rollouts.tasks} holds {len(tasks)} tasks, fewer than rollouts.tasks_per_round ({rollouts.tasks_per_round}); "
            "add tasks, or take fewer a round and a larger group_size"
        )
    policies = Policies(lake / "policies")
    identity = _identity(config, [])
    first = _resume(job, identity)
    state: dict[str, Any] = {"identity": identity, "run_id": secrets.token_hex(4), "rounds": [], **fresh()}
    saved = checkpoint.newest(job.run.checkpoints)
    if saved is not None and first:
        state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
        version = _act_after(job, policies, first - 1, state["run_id"])
    else:
        version = job.parent or _publish(job, 0, {}).version
        _act_with(job, policies, version, "the loop starts from it")
    # A round that was cut off begins again with episodes of its own: nothing of the first try mixes with them.
    session = secrets.token_hex(4)
    updates = rollouts.rounds * rollouts.updates_per_round
    trained = set(job.run.go_on(first * rollouts.updates_per_round))
    with (
        Driver(rollouts.command, serve=rollouts.serve, collect=rollouts.collect, settle_s=rollouts.settle_s) as driver,
        progress("online rounds", rollouts.rounds) as bar,
    ):
        bar.advance(first)
        for number in range(first, rollouts.rounds):
            chosen = choose(job.config.seed, rollouts, len(tasks), number, state)
            round_tasks = _round_tasks(job, rollouts, tasks, chosen, number, session)
            outcomes = driver.run(round_tasks, rollouts.round_deadline_s)
            driver.flush()
            run_transform(lake, job.transform)
            ids = [task.rollout_id for task in round_tasks]
            before = frozenset() if rollouts.retrain_revised else frozenset(trained)
            data = read_lake(lake, config, job.tokenizer, job.tokenizer_sha256, ids, before)
            truths = read_outcomes(lake, ids)
            if not truths:
                raise LightningError(
                    "no rollout of this round has an outcome in the lake; does the command send rewards?"
                )
            for update in range(rollouts.updates_per_round):
                step = number * rollouts.updates_per_round + update
                torch.manual_seed(_step_seed(config.seed, step))
                rows = _part(data.rows, update, rollouts.updates_per_round)
                if not rows:
                    continue
                numbers = learner.step(rows, rate(step, updates, config.optim))
                numbers |= {"round": number, "outcome": float(np.mean(list(truths.values())))}
                job.run.metrics(step, numbers)
                job.run.trained(step, rows)
                trained.update(sample for row in rows for sample in row.sample_ids)
            remember_unsolved(rollouts, chosen, [truths.get(rollout_id) for rollout_id in ids], state)
            state["rounds"].append(
                {"round": number, "rollouts": len(ids), "missing": sum(o.status == "timeout" for o in outcomes)}
            )
            # Before it is published: what the loop acts with must not be ahead of what it can go on from.
            _save(job, number + 1, state)
            version = _act_after(job, policies, number, state["run_id"])
            bar.note(f"outcome {np.mean(list(truths.values())):.3f}")
            bar.advance()
    _gate(job, version)


def _round_tasks(
    job: Job, rollouts: RolloutsConfig, tasks: list[dict[str, Any]], chosen: list[int], number: int, session: str
) -> list[Task]:
    """A round's episodes: each chosen task `group_size` times."""
    planned = []
    for index in chosen:
        task = tasks[index]
        for member in range(rollouts.group_size):
            planned.append(
                Task(
                    rollout_id=f"on-{session}-{number:04d}-{index:05d}-{member}",
                    task_id=task["task_id"],
                    group_id=f"on-{session}-{number:04d}-{task['task_id']}",
                    split="train",
                    policy="candidate",
                    temperature=1.0,
                    seed=job.config.seed * 1_000_003 + number,
                    task=task,
                )
            )
    return planned


def _part(rows: list[Row], part: int, parts: int) -> list[Row]:
    """One of several equal parts of a round, cut by rollout so that a rollout's rows stay together."""
    rollouts = sorted({row.rollout_id for row in rows})
    mine = {r for index, r in enumerate(rollouts) if index % parts == part}
    return [row for row in rows if row.rollout_id in mine]


def _act_after(job: Job, policies: Policies, number: int, run_id: str) -> str:
    """Act with what round `number` ended in: published now, unless this run did so before it was cut off."""
    assert job.config.rollouts is not None
    info = {"round": number, "run_id": run_id}
    published = (name for name in policies.versions() if info.items() <= policies.get(name).info.items())
    version = next(published, None)
    if version is None:
        version = _publish(job, (number + 1) * job.config.rollouts.updates_per_round, info).version
    if policies.pointer("candidate") != version:
        _act_with(job, policies, version, f"round {number}")
    return version


def _act_with(job: Job, policies: Policies, version: str, why: str) -> None:
    policies.point("candidate", version, who=f"train.py {job.run.path.name}", why=why)


def _publish_and_gate(job: Job, step: int, info: dict[str, Any]) -> None:
    job.accelerator.wait_for_everyone()
    if not job.is_main:
        return
    if not job.config.publish or job.config.data.lake is None:
        job.learner.model.save_pretrained(job.run.path / "model")
        for name in models.CARRIED:
            if (job.folder / name).is_file():
                (job.run.path / "model" / name).write_bytes((job.folder / name).read_bytes())
        print(f"model in {job.run.path / 'model'}", flush=True)
        return
    policy = _publish(job, step, info)
    _act_with(job, Policies(job.config.data.lake / "policies"), policy.version, "trained offline")
    print(f"published {policy.version}", flush=True)
    _gate(job, policy.version)


def _publish(job: Job, step: int, info: dict[str, Any]) -> Any:
    lake = job.config.data.lake
    assert lake is not None
    config_hash = hashlib.sha256(json.dumps(resolved(job.config), sort_keys=True).encode()).hexdigest()
    record = {
        "parent": job.parent,
        "run": job.run.path.name,
        "step": step,
        "algorithm": job.config.algorithm.name,
        "config_sha256": config_hash,
        **info,
    }
    return models.publish(lake, job.learner.model, job.folder, record)


def _gate(job: Job, version: str) -> None:
    config = job.config
    if config.gate is None or config.data.lake is None:
        print(f"{version} is candidate; no gate is configured: lightning-policy promote {version} --why …", flush=True)
        return
    verdict = run_gate(config.data.lake, version, config.gate, job.transform, config.seed)
    print(f"gate: {verdict.verdict} {version}: {verdict.reason}", flush=True)
    for found in verdict.signals:
        print(f"  signal {found['signal']} ({found['subject']}): {found['detail']}", flush=True)


def _resume(job: Job, identity: str) -> int:
    """Position to go on from: that of the newest whole checkpoint of this very job, else 0."""
    path = checkpoint.newest(job.run.checkpoints)
    if path is None:
        return 0
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("identity") != identity:
        raise LightningError(
            f"{job.run.path} holds a checkpoint of another configuration or other data; choose another output, or remove it"
        )
    checkpoint.load(path, job.learner.model, job.learner.optimizer)
    if job.is_main:
        print(f"resumes after {path.name}", flush=True)
    return int(state["step"])


def _save(job: Job, position: int, state: dict[str, Any]) -> None:
    if job.is_main:
        checkpoint.save(job.run.checkpoints, position, job.learner.model, job.learner.optimizer, state)


def _identity(config: TrainConfig, rows: list[Row]) -> str:
    """What a checkpoint belongs to: everything that decides the weights."""
    digest = hashlib.sha256(
        json.dumps({k: v for k, v in resolved(config).items() if k != "output"}, sort_keys=True).encode()
    )
    for row in rows:
        digest.update(row.row_id.encode())
        digest.update(row.token_ids.tobytes())
        digest.update(row.advantages.tobytes())
    return digest.hexdigest()


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % (2**63)
