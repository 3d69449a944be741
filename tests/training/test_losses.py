"""The loss is one number whatever the cut, and its methods are the published ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from otel_lightning.app.errors import LightningError
from otel_lightning.training import models
from otel_lightning.training.algorithms import awr, grpo
from otel_lightning.training.config import Awr, Grpo, OptimConfig, Sft
from otel_lightning.training.data import Row
from otel_lightning.training.loop import Learner, batches, rate


def rows(count: int = 6, *, advantage: float | None = None, temperature: float = 0.8) -> list[Row]:
    """Sequences of unlike lengths; rollout 0 has two rows."""
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        length = 8 + 3 * index
        mask = (rng.random(length) < 0.5).astype(np.float32)
        mask[0], mask[-1] = 0, 1
        value = advantage if advantage is not None else float(rng.normal())
        made.append(
            Row(
                row_id=f"row-{index}",
                rollout_id=f"rollout-{max(0, index - 1)}",
                token_ids=rng.integers(0, 250, length),
                mask=mask,
                logprobs=rng.normal(-3, 0.3, length).astype(np.float32),
                advantages=mask * value,
                temperature=temperature,
                weight=1.0,
                sample_ids=(f"sample-{index}",),
                token_source="engine",
            )
        )
    return made


def learner(checkpoint: Path, algorithm: Any, **optim: Any) -> Learner:
    model, _, _ = models.load(checkpoint)
    return Learner(model, algorithm, OptimConfig(lr=1e-2, steps=1, **optim), Accelerator())


def weights_after(checkpoint: Path, algorithm: Any, data: list[Row], **optim: Any) -> torch.Tensor:
    made = learner(checkpoint, algorithm, **optim)
    made.step(data, 1e-2)
    return torch.cat([p.detach().flatten().cpu() for p in made.model.parameters()])


@pytest.mark.parametrize(
    "algorithm", [Sft(name="sft"), Awr(name="awr"), Grpo(name="grpo"), Grpo(name="grpo", normalise="constant")]
)
def test_micro_batches_and_row_order_change_nothing(checkpoint: Path, algorithm: Any) -> None:
    data = rows()
    # SGD-like comparison on the gradient: Adam would turn a rounding error of a tiny gradient into a full step.
    whole = gradient(checkpoint, algorithm, data, micro_tokens=100_000)
    for cut in (
        gradient(checkpoint, algorithm, data, micro_tokens=1),
        gradient(checkpoint, algorithm, data[::-1], micro_tokens=60),
    ):
        assert (whole - cut).abs().max() <= 1e-5 * whole.abs().max()
    assert whole.abs().max() > 1e-3


def gradient(checkpoint: Path, algorithm: Any, data: list[Row], **optim: Any) -> torch.Tensor:
    made = learner(checkpoint, algorithm, **optim, clip_norm=1e9)
    made.step(data, 0.0)
    return torch.cat([p.grad.flatten().cpu() for p in made.model.parameters() if p.grad is not None])


def test_checkpointed_activations_give_the_same_gradient(checkpoint: Path) -> None:
    data = rows()
    plain = gradient(checkpoint, Grpo(name="grpo"), data)
    assert torch.allclose(gradient(checkpoint, Grpo(name="grpo"), data, gradient_checkpointing=True), plain, atol=1e-7)
    made = learner(checkpoint, Grpo(name="grpo"), gradient_checkpointing=True)
    assert made.model.is_gradient_checkpointing


def test_too_little_memory_costs_one_line_that_says_what_to_lower(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(checkpoint, Grpo(name="grpo"))
    before = [p.detach().clone() for p in made.model.parameters()]

    def too_large(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 1.39 GiB")

    monkeypatch.setattr(made, "_logits", too_large)
    with pytest.raises(LightningError, match=r"optim\.micro_tokens \(now 8192\), or set optim\.gradient_checkpointing"):
        made.step(rows(), 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_the_gradient_is_that_of_the_written_formula(checkpoint: Path) -> None:
    data = rows()
    model, _, _ = models.load(checkpoint)
    trained = {r.rollout_id: sum(float(o.mask.sum()) for o in data if o.rollout_id == r.rollout_id) for r in data}
    total = torch.zeros(())
    for row in data:
        logits = model(torch.tensor(row.token_ids)[None]).logits[0, :-1] / row.temperature
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(row.token_ids[1:])[:, None])[:, 0]
        ratio = (logprobs - torch.tensor(row.logprobs[1:])).exp()
        advantage = torch.tensor(row.advantages[1:])
        f = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        total = total + (torch.tensor(row.mask[1:]) * f).sum() / trained[row.rollout_id]
    (-total / len(trained)).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(gradient(checkpoint, Grpo(name="grpo"), data), expected, atol=1e-6)


def test_rollouts_without_advantage_count_in_n(checkpoint: Path) -> None:
    live, dead = rows(3, advantage=1.0), rows(6, advantage=0.0)[4:]
    alone = gradient(checkpoint, Grpo(name="grpo"), live)
    together = gradient(checkpoint, Grpo(name="grpo"), live + dead)
    rollouts = len({r.rollout_id for r in live}), len({r.rollout_id for r in live + dead})
    assert torch.allclose(alone * rollouts[0] / rollouts[1], together, atol=1e-7)


def test_a_step_in_which_nothing_differs_changes_no_weight(checkpoint: Path) -> None:
    before, _, _ = models.load(checkpoint)
    after = weights_after(checkpoint, Grpo(name="grpo"), rows(advantage=0.0))
    assert torch.equal(torch.cat([p.detach().flatten() for p in before.parameters()]), after)


def test_an_advantage_that_is_no_number_stops_before_the_step_and_names_the_row(checkpoint: Path) -> None:
    data = rows()
    data[2].advantages[-1] = np.nan
    made = learner(checkpoint, Grpo(name="grpo"), micro_tokens=1)
    before = [p.detach().clone() for p in made.model.parameters()]
    with pytest.raises(LightningError, match="row-2"):
        made.step(data, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_the_clipped_objective_is_trls(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer, _ = models.load(checkpoint)
    model.config._name_or_path = str(checkpoint)
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, num_generations=2,
            per_device_train_batch_size=2, loss_type="grpo", epsilon=0.2, epsilon_high=0.28, temperature=1.0,
        ),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 2),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    prompts, answers = torch.tensor([[5, 6], [5, 6]]), torch.tensor([[7, 8, 2], [9, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    theirs = trainer.compute_loss(
        trainer.model,
        {
            "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": answers,
            "completion_mask": mask, "advantages": torch.tensor([1.0, -1.0]), "num_items_in_batch": torch.tensor(5),
            "old_per_token_logps": torch.full((2, 3), -5.5),
        },
    ).item()  # fmt: skip
    data = [
        Row(
            row_id=str(i), rollout_id=str(i), token_ids=np.concatenate([prompts[i].numpy(), answers[i].numpy()]),
            mask=np.concatenate([[0, 0], mask[i].numpy()]).astype(np.float32),
            logprobs=np.full(5, -5.5, np.float32),
            advantages=np.concatenate([[0, 0], mask[i].numpy()]).astype(np.float32) * (1 if i == 0 else -1),
            temperature=1.0, weight=1.0, sample_ids=(str(i),), token_source="engine",
        )
        for i in range(2)
    ]  # fmt: skip
    ours = learner(checkpoint, Grpo(name="grpo")).step(data, 0.0)["loss"]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_objectives_by_hand() -> None:
    one = torch.tensor([0.0])
    assert grpo.objective(one, one - 1, torch.tensor([1.0]), clip_low=0.2, clip_high=0.28).item() == pytest.approx(1.28)
    assert grpo.objective(one - 1, one, torch.tensor([-1.0]), clip_low=0.2, clip_high=0.28).item() == pytest.approx(
        -0.8
    )
    assert awr.objective(torch.tensor([-2.0]), torch.tensor([9.0]), beta=0.2, max_weight=20).item() == -40.0


def test_batches_are_whole_rollouts_and_a_seed_decides_them() -> None:
    data = rows()
    plan = batches(data, OptimConfig(lr=1, steps=4, batch_rollouts=2), 4, seed=1)
    for step in plan:
        chosen = {data[i].rollout_id for i in step}
        assert sorted(step) == [i for i, r in enumerate(data) if r.rollout_id in chosen]
    assert plan == batches(data, OptimConfig(lr=1, steps=4, batch_rollouts=2), 4, seed=1)
    assert plan != batches(data, OptimConfig(lr=1, steps=4, batch_rollouts=2), 4, seed=2)


def test_the_rate_warms_up_holds_and_decays() -> None:
    optim = OptimConfig(lr=1.0, steps=10, warmup_steps=2, hold=0.5, final_lr=0.0)
    assert [round(rate(step, 10, optim), 3) for step in (0, 1, 4, 5, 9)] == [0.5, 1.0, 1.0, 1.0, 0.2]
