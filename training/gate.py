"""The gate: a policy is promoted on the outcome of held-out tasks, candidate against current, paired by task and seed.

Promote when the mean difference is above 0, the 95% bootstrap lower bound is at least −margin and no signal in
`gate.refuse_signals` is high. Too few tasks for the margin: say how many are needed and do not decide. Outcomes are read from
the lake, never from the driver.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from otel_lightning.app.errors import LightningError
from otel_lightning.app.progress import progress
from otel_lightning.store.policies import Policies
from otel_lightning.training.config import GateConfig
from otel_lightning.training.driver import Driver, Task, read_tasks
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

BOOTSTRAP_DRAWS = 10_000
Z95 = 1.96
NO_CURRENT = "the gate compares with the current policy and there is none; promote one with lightning-policy promote, or leave gate out"


@dataclass(frozen=True)
class Verdict:
    """gate.json: what was compared, over how many paired tasks, and what follows.

    `basis` is the hash of command, tasks and seed; `rollouts` begins the id of every rollout that was played for it; `signals`
    are the lake's findings of high severity when it was decided.
    """

    kind: str
    champion: str
    candidate: str
    n: int
    champion_outcome: float
    candidate_outcome: float
    difference: float
    low: float
    high: float
    margin: float
    verdict: Literal["promote", "refuse", "undecided"]
    reason: str
    missing: int
    basis: str
    rollouts: str
    signals: list[dict[str, str]]


def decide(
    champion: np.ndarray, candidate: np.ndarray, margin: float, seed: int = 0
) -> tuple[float, float, float, str, str]:
    """(difference, low, high, verdict, reason) for paired outcomes of equal length."""
    differences = candidate.astype(np.float64) - champion.astype(np.float64)
    n = len(differences)
    mean = float(differences.mean())
    draws = np.random.default_rng(seed).integers(0, n, size=(BOOTSTRAP_DRAWS, n))
    low, high = (float(q) for q in np.quantile(differences[draws].mean(1), [0.025, 0.975]))
    if mean > 0 and low >= -margin:
        return mean, low, high, "promote", f"the outcome rose by {mean:+.3f} (95% interval {low:+.3f} to {high:+.3f})"
    if mean > 0:
        needed = math.ceil((Z95 * float(differences.std()) / (margin + mean)) ** 2)
        return (
            mean,
            low,
            high,
            "undecided",
            f"{n} tasks are too few for a margin of {margin:g}; about {needed} are needed",
        )
    return mean, low, high, "refuse", f"the outcome did not rise ({mean:+.3f}, 95% interval {low:+.3f} to {high:+.3f})"


def run_gate(lake: Path, candidate: str, config: GateConfig, transform: TransformConfig, seed: int) -> Verdict:
    """Compare `candidate` with current on the gate's tasks, write gate.json, promote if it passes.

    A candidate that was judged before keeps that verdict; when a crash came between it and the promotion, that is done now.
    """
    policies = Policies(lake / "policies")
    judged = policies.get(candidate).gate
    if judged is not None:
        result = Verdict(**judged)
        moved = any((move["pointer"], move["to"]) == ("current", candidate) for move in policies.history())
        if result.verdict == "promote" and not moved and policies.pointer("current") == result.champion:
            policies.point("current", candidate, who="gate", why=result.reason)
        return result
    champion = policies.pointer("current")
    if champion is None:
        raise LightningError(NO_CURRENT)
    tasks = read_tasks(config.tasks)
    basis = hashlib.sha256(json.dumps([config.command, tasks, seed], sort_keys=True).encode()).hexdigest()
    rollouts = f"gate-{secrets.token_hex(4)}"
    planned = {version: _plan(rollouts, version, tasks, seed) for version in (champion, candidate)}
    played = [planned[champion], planned[candidate]]
    if config.reuse and (earlier := played_before(policies, champion, basis)):
        planned[champion] = _plan(earlier, champion, tasks, seed)
        played = [planned[candidate]]
    with (
        Driver(config.command, serve=config.serve, collect=config.collect, settle_s=config.settle_s) as driver,
        progress(f"gate {candidate} against {champion}", sum(map(len, played))) as bar,
    ):
        # Side by side, so that whatever disturbs the machine or the agent's world meanwhile disturbs both alike.
        side_by_side = [task for pair in zip(*played, strict=True) for task in pair]
        driver.run(side_by_side, config.deadline_s * len(played), lambda _: bar.advance())
        driver.flush()
    run_transform(lake, transform)
    outcomes = read_outcomes(lake, [task.rollout_id for tasks in planned.values() for task in tasks])
    pairs = [
        (outcomes[a.rollout_id], outcomes[b.rollout_id])
        for a, b in zip(planned[champion], planned[candidate], strict=True)
        if a.rollout_id in outcomes and b.rollout_id in outcomes
    ]
    if not pairs:
        raise LightningError("no gate task has an outcome in the lake; does the rollouts command send rewards.outcome?")
    before, after = (np.array(values, dtype=np.float64) for values in zip(*pairs, strict=True))
    difference, low, high, verdict, reason = decide(before, after, config.margin, seed)
    found = high_signals(lake)
    if verdict == "promote" and (against := [item for item in found if item["signal"] in config.refuse_signals]):
        told = "; ".join(f"{item['signal']} ({item['subject']}): {item['detail']}" for item in against)
        verdict, reason = "refuse", f"{reason}, but {told}; look at the signals, or take it out of gate.refuse_signals"
    result = Verdict(
        kind="tasks",
        champion=champion,
        candidate=candidate,
        n=len(pairs),
        champion_outcome=float(before.mean()),
        candidate_outcome=float(after.mean()),
        difference=difference,
        low=low,
        high=high,
        margin=config.margin,
        verdict=verdict,  # type: ignore[arg-type]
        reason=reason,
        missing=len(tasks) - len(pairs),
        basis=basis,
        rollouts=rollouts,
        signals=found,
    )
    policies.write_gate(candidate, asdict(result))
    if verdict == "promote":
        policies.point("current", candidate, who="gate", why=reason)
    return result


def played_before(policies: Policies, version: str, basis: str) -> str | None:
    """Where a version was played before on this very basis: how those rollouts' ids begin. None: nowhere."""
    gate = policies.get(version).gate
    return gate["rollouts"] if gate is not None and gate.get("basis") == basis and not gate["missing"] else None


def _plan(begin: str, version: str, tasks: list[dict[str, Any]], seed: int) -> list[Task]:
    return [
        Task(
            rollout_id=f"{begin}-{version}-{index:05d}",
            task_id=task["task_id"],
            group_id=f"{begin}-{version}-{task['task_id']}",
            split="eval",
            policy=version,
            temperature=0.0,
            seed=seed,
            task=task,
        )
        for index, task in enumerate(tasks)
    ]


def high_signals(lake: Path) -> list[dict[str, str]]:
    """What looks badly wrong in the lake: signal, subject and detail of each finding of high severity."""
    with open_tables(lake) as connection:
        rows = connection.execute(
            "select signal, subject, detail from signals where severity = 'high' order by signal, subject, detail"
        ).fetchall()
    return [{"signal": signal, "subject": subject, "detail": detail} for signal, subject, detail in rows]


def read_outcomes(lake: Path, rollout_ids: list[str]) -> dict[str, float]:
    """True outcomes by rollout, from the lake; rollouts without one are absent."""
    with open_tables(lake) as connection:
        connection.execute("create temp table chosen (rollout_id varchar)")
        connection.executemany("insert into chosen values (?)", [[rollout_id] for rollout_id in rollout_ids])
        rows = connection.execute(
            "select rollout_id, outcome::double from returns semi join chosen using (rollout_id) "
            "where outcome is not null order by rollout_id"
        ).fetchall()
    return dict(rows)
