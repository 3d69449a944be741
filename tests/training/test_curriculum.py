"""Online rounds come back to what is not solved yet, and otherwise go through all tasks."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np

from otel_lightning.training.config import RolloutsConfig
from otel_lightning.training.curriculum import choose, fresh, remember_unsolved


def rollouts(**more: float) -> RolloutsConfig:
    return RolloutsConfig.model_validate(
        {
            "command": "true",
            "tasks": "tasks.jsonl",
            "serve": "http://127.0.0.1:1",
            "collect": "http://127.0.0.1:2",
            "tasks_per_round": 4,
            "group_size": 2,
            **more,
        }
    )


def test_without_revisits_every_task_comes_once_before_any_comes_again() -> None:
    config, state = rollouts(), fresh()
    rounds = []
    for number in range(6):
        rounds.append(choose(7, config, 12, number, state))
        remember_unsolved(config, rounds[-1], [0.0] * 8, state)
    assert sorted(chain(*rounds[:3])) == sorted(chain(*rounds[3:])) == list(range(12))
    assert rounds[:3] != rounds[3:], "each pass has an order of its own"


def test_a_round_revisits_at_most_its_share_and_names_no_task_twice() -> None:
    config, state = rollouts(revisit=0.5), fresh()
    state["unsolved"] = [0, 1, 2, 3, 4, 5]
    for number in range(20):
        chosen = choose(3, config, 8, number, state)
        assert len(chosen) == len(set(chosen)) == 4
        assert set(chosen[:2]) <= {0, 1, 2, 3, 4, 5}
    state["unsolved"] = [5]
    chosen = choose(3, config, 8, 20, state)
    assert chosen[0] == 5, "one that is left is played again"
    assert len(set(chosen)) == 4


def test_a_task_is_solved_only_when_every_attempt_reached_the_mark() -> None:
    config, state = rollouts(revisit=0.5), fresh()
    remember_unsolved(config, [4, 9, 2, 7], [1, 1, 1, 0, None, 1, 0.9, 1], state)
    assert state["unsolved"] == [2, 7, 9]
    remember_unsolved(config, [9, 2, 5, 6], [1, 1, 0, 1, 1, 1, 1, 1], state)
    assert state["unsolved"] == [2, 7], "9 was solved since; 7 was not played again"
    lenient = rollouts(revisit=0.5, solved=0.8)
    remember_unsolved(lenient, [7], [0.9, 1.0], state)
    assert state["unsolved"] == [2]


def test_the_state_survives_its_checkpoint_and_the_seed_decides_the_order() -> None:
    config = rollouts(revisit=0.25)
    straight, resumed = fresh(), fresh()
    played, again = [], []
    for number in range(8):
        outcomes = np.random.default_rng(number).integers(0, 2, 8).astype(float).tolist()
        played.append(choose(1, config, 10, number, straight))
        remember_unsolved(config, played[-1], outcomes, straight)
        resumed = json.loads(json.dumps(resumed))
        again.append(choose(1, config, 10, number, resumed))
        remember_unsolved(config, again[-1], outcomes, resumed)
    assert played == again
    assert played[0] != choose(2, config, 10, 0, fresh())
