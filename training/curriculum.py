"""Which tasks a round of an online job plays: some of those not solved yet, then the next ones of a seeded permutation.

Tasks that a policy still fails are where it can learn; solved ones have equal rewards and no gradient. Prioritised
replay of levels: Jiang et al., 2021, arXiv 2010.03934. The state is plain JSON, kept in the job's checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from otel_lightning.training.config import RolloutsConfig


def fresh() -> dict[str, Any]:
    """The state before the first round."""
    return {"next_task": 0, "unsolved": []}


def choose(seed: int, rollouts: RolloutsConfig, tasks: int, number: int, state: dict[str, Any]) -> list[int]:
    """Indexes of round `number`'s tasks, `rollouts.tasks_per_round` different ones out of `tasks`; moves `state` on.

    At most the share `rollouts.revisit` are unsolved ones; the others come from a permutation that is drawn anew each
    time all of them were had.
    """
    unsolved = state["unsolved"]
    again = min(len(unsolved), int(rollouts.revisit * rollouts.tasks_per_round))
    chosen = [unsolved[index] for index in np.random.default_rng([seed, number]).permutation(len(unsolved))[:again]]
    while len(chosen) < rollouts.tasks_per_round:
        epoch, place = divmod(state["next_task"], tasks)
        index = int(np.random.default_rng([seed, epoch]).permutation(tasks)[place])
        state["next_task"] += 1
        if index not in chosen:
            chosen.append(index)
    return chosen


def remember_unsolved(
    rollouts: RolloutsConfig, chosen: Sequence[int], outcomes: Sequence[float | None], state: dict[str, Any]
) -> None:
    """Update `state` with a round's outcomes: `rollouts.group_size` for each chosen task, in that order.

    A task is solved when every attempt reached `rollouts.solved`; an attempt without an outcome (None) did not.
    """
    reached = np.array([-math.inf if outcome is None else outcome for outcome in outcomes]).reshape(len(chosen), -1)
    failed = {index for index, of_task in zip(chosen, reached, strict=True) if of_task.min() < rollouts.solved}
    state["unsolved"] = sorted((set(state["unsolved"]) - set(chosen)) | failed)
