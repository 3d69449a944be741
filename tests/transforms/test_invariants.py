"""What must hold of every token sequence, over episodes that nobody chose: trees of calls, some broken in every known way."""

from __future__ import annotations

import random
from typing import Any

import duckdb
import pytest
from sql_files import parameters, worlds

from otel_lightning.transforms import steps

EPISODES = 60
Row = dict[str, Any]


def grown(rng: random.Random, rollout: str) -> tuple[list[Row], list[Row]]:
    """Calls of one episode and their credits. A call continues an earlier answer, or seems to, or begins anew."""
    calls: list[Row] = []
    credits: list[Row] = []
    for step in range(rng.randrange(1, 9)):
        choices = rng.choice((1, 1, 1, 2))
        call: Row = {
            "trace_id": rollout, "span_id": f"{step:02}", "rollout_id": rollout, "step": step, "judge": False, "flags": [],
            "tokenizer": "t", "temperature": 1.0, "policy_version": "v0001", "truncated": False, "token_source": "engine",
            "prompt_ids": [rng.randrange(9) for _ in range(rng.randrange(1, 4))],
            "response_ids": [[rng.randrange(9) for _ in range(rng.randrange(1, 5))] for _ in range(choices)],
        }  # fmt: skip
        call["response_logprobs"] = [[-rng.random() for _ in answer] for answer in call["response_ids"]]
        if calls and rng.random() < 0.8:
            parent = rng.choice(calls)
            choice = rng.randrange(len(parent["response_ids"] or [0]))
            call |= {"lineage_trace_id": rollout, "lineage_span_id": parent["span_id"], "lineage_choice": choice}
            if parent["response_ids"] is not None:
                call["prompt_ids"] = parent["prompt_ids"] + parent["response_ids"][choice] + call["prompt_ids"]
            broken = rng.random()
            if broken < 0.05:
                call["prompt_ids"] = [77, *call["prompt_ids"]]
            elif broken < 0.1:
                call["temperature"] = 0.5
            elif broken < 0.15:
                call["flags"] = ["retokenized_history"]
            elif broken < 0.25:
                call |= {"prompt_ids": None, "response_ids": None, "response_logprobs": None}
        calls.append(call)
        for choice in range(choices):
            credits.append(
                {
                    "trace_id": rollout, "span_id": call["span_id"], "choice": choice, "rollout_id": rollout, "step": step,
                    "recipe": "r", "baseline": "none", "scale": "none", "weight": 1.0,
                    "use": rng.choice(("train", "train", "train", "mask")),
                    "reward": rng.choice((None, 0.0, 0.25, -1.0, 1.0)),
                }
            )  # fmt: skip
    rng.shuffle(calls)
    return calls, credits


def load(connection: duckdb.DuckDBPyConnection, world: Any, table: str, rows: list[Row]) -> None:
    world._forget(table)
    definition = ", ".join(f'"{name}" {kind}' for name, kind in world.columns[table].items())
    connection.execute(f'create temp table "{table}" ({definition})')
    for row in rows:
        world._insert(table, {name: value for name, value in row.items() if name in world.columns[table]})


@pytest.mark.parametrize("seed", [0, 1])
def test_every_sampled_token_is_trained_once_or_known_to_be_left_out(seed: int) -> None:
    rng = random.Random(seed)
    calls: list[Row] = []
    credits: list[Row] = []
    for number in range(EPISODES):
        more, of_them = grown(rng, f"{seed}-{number:03}")
        calls, credits = calls + more, credits + of_them
    run, views = worlds()["run"], worlds()["views"]
    load(run.connection, run, "calls", calls)
    load(run.connection, run, "call_token_ids", calls)
    load(run.connection, run, "credits", credits)
    step = next(step for step in steps.steps("broadcast") if step.table == "trajectories")
    steps.create(run.connection, step, parameters())
    stored = run.connection.execute(
        "select trajectory_id, rollout_id, recipe, leaf_trace_id, leaf_span_id, leaf_choice, samples, break_reason from trajectories"
    )
    names = [column[0] for column in stored.description or []]
    sequences = [dict(zip(names, row, strict=True)) for row in stored.fetchall()]
    rollouts = sorted({call["rollout_id"] for call in calls})
    for table, rows in (
        ("stored_trajectories", sequences), ("calls", calls), ("stored_credits", credits),
        ("returns", [{"rollout_id": rollout, "recipe": "r"} for rollout in rollouts]),
        ("rollouts", [{"rollout_id": rollout, "split": "train", "group_id": "g"} for rollout in rollouts]),
    ):  # fmt: skip
        load(views.connection, views, table, rows)
    for view in steps.views():
        if view.table in ("credits", "trajectories"):
            steps.create(views.connection, view, {})
    cursor = views.connection.execute("select * from trajectories order by trajectory_id")
    names = [column[0] for column in cursor.description or []]
    shown = {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}

    answer = {
        (call["span_id"], call["rollout_id"], choice): ids
        for call in calls
        for choice, ids in enumerate(call["response_ids"] or [])
    }
    call_of = {(call["span_id"], call["rollout_id"]): call for call in calls}
    credit = {(row["span_id"], row["rollout_id"], row["choice"]): row for row in credits}
    trained: dict[Any, int] = {}
    seen = set()
    tokens = 0
    for sequence in sequences:
        row = shown[sequence["trajectory_id"]]
        length = len(row["token_ids"])
        assert [len(row[name]) for name in ("loss_mask", "logprobs", "advantages")] == [length] * 3
        mask, advantages = [0] * length, [0.0] * length
        # What was sampled in another way, or read a history that was tokenised anew, continues nothing.
        members = [call_of[sample["span_id"], sequence["rollout_id"]] for sample in sequence["samples"]]
        assert len({call["temperature"] for call in members}) == 1 and not any(call["flags"] for call in members[1:])
        for sample in sequence["samples"]:
            key = (sample["span_id"], sequence["rollout_id"], sample["choice"])
            seen.add(key)
            begin, end = sample["start"], sample["start"] + sample["length"]
            # A sequence says what its calls said, in its place.
            assert row["token_ids"][begin:end] == answer[key]
            if sample["train"] and credit[key]["reward"] is not None:
                trained[key] = trained.get(key, 0) + 1
                mask[begin:end] = [1] * sample["length"]
                advantages[begin:end] = [credit[key]["reward"]] * sample["length"]
                assert all(p < 0 for p in row["logprobs"][begin:end])
        # Masks come from lengths; an advantage is one number an answer, 0 outside of its mask.
        assert (row["loss_mask"], row["advantages"]) == (mask, advantages)
        tokens += sum(mask)
    due = {key for key, row in credit.items() if row["use"] == "train" and row["reward"] is not None and key in answer}
    assert trained == dict.fromkeys(due, 1)
    assert tokens == sum(len(answer[key]) for key in due)
    # Nothing with ids is lost on the way; what has none, or no reward, is in no mask: missing is not 0.
    assert seen == answer.keys()
    assert len(due) < len(credit), "the episodes leave nothing out: the test would not see what is missing"
