"""The optimiser loop: one loss, normalised so that how rows are cut into batches changes nothing.

    loss = −(1/N) Σ_r w_r (1/Z_r) Σ_{tokens of r} mask · f

N is the number of rollouts of the optimiser step over all micro-batches and ranks, those with zero advantage included;
Z_r the trained tokens of rollout r (or a constant); log-probabilities are of logits divided by the recorded temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from otel_lightning.app.errors import LightningError
from otel_lightning.training.algorithms import awr, grpo, sft
from otel_lightning.training.config import Algorithm, Awr, Grpo, OptimConfig
from otel_lightning.training.data import Row


def batches(rows: Sequence[Row], optim: OptimConfig, steps: int, seed: int) -> list[list[int]]:
    """Row indexes of each optimiser step: whole rollouts, in a permutation that the seed and the epoch decide."""
    by_rollout: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_rollout.setdefault(row.rollout_id, []).append(index)
    rollouts = list(by_rollout.values())
    size = min(optim.batch_rollouts, len(rollouts))
    planned: list[list[int]] = []
    epoch = 0
    while len(planned) < steps:
        order = np.random.default_rng([seed, epoch]).permutation(len(rollouts))
        for start in range(0, len(order) - size + 1, size):
            planned.append([index for place in order[start : start + size] for index in rollouts[place]])
        epoch += 1
    return planned[:steps]


def step_count(rows: Sequence[Row], optim: OptimConfig) -> int:
    """Optimiser steps of an offline job."""
    if optim.steps is not None:
        return optim.steps
    rollouts = len({row.rollout_id for row in rows})
    return max(1, round((optim.epochs or 1.0) * rollouts / min(optim.batch_rollouts, rollouts)))


def rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Learning rate of a step: linear warm-up, hold, linear decay to final_lr."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    past = max(0.0, step - optim.hold * steps) / max(1.0, (1 - optim.hold) * steps)
    return optim.lr * warm * (1 - (1 - optim.final_lr) * min(1.0, past))


class Learner:
    """A model and its optimiser; `step` makes one update. The same on one process or several."""

    def __init__(self, model: Any, algorithm: Algorithm, optim: OptimConfig, accelerator: Accelerator) -> None:
        self.model = model.to(accelerator.device)
        if optim.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.algorithm, self.optim, self.accelerator = algorithm, optim, accelerator
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        # A plain head on hidden states lets the vocabulary be scored at trained positions only.
        config = self.model.config
        plain = not any(
            getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        )
        self._head = self.model.get_output_embeddings() if plain and self.model.base_model is not self.model else None

    def step(self, rows: Sequence[Row], lr: float) -> dict[str, float]:
        """One optimiser step over `rows`; returns loss, gradient norm and what describes the update.

        LightningError, before anything changes, when the loss or a gradient is not a number (it names the rows) or a pass
        does not fit the accelerator's memory (it names what to lower).
        """
        self.model.train()
        rollouts = {row.rollout_id for row in rows}
        trained: dict[str, float] = {}
        for row in rows:
            trained[row.rollout_id] = trained.get(row.rollout_id, 0.0) + float(row.mask.sum())
        scale = [self._scale(row, trained[row.rollout_id], len(rollouts)) for row in rows]
        mine = list(range(self.accelerator.process_index, len(rows), self.accelerator.num_processes))
        totals: dict[str, float] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for part in self._micro_batches(rows, mine):
            chosen = [rows[index] for index in part]
            try:
                loss, seen = self._loss(chosen, [scale[index] for index in part])
                if not math.isfinite(loss.item()):
                    names = ", ".join(row.row_id for row in chosen[:3])
                    raise LightningError(
                        f"the loss is not a number on rows {names} (of {len(chosen)}); nothing was changed"
                    )
                if loss.requires_grad:
                    loss.backward()
            except torch.OutOfMemoryError:
                raise LightningError(self._too_large(chosen)) from None
            for key, value in {"loss": loss.item(), **seen}.items():
                totals[key] = totals.get(key, 0.0) + value
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.accelerator.num_processes > 1:
            self._sum_gradients(parameters)
            totals = self._sum(totals)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.optim.clip_norm))
        if not math.isfinite(norm):
            raise LightningError(f"a gradient is not a number (rows from {rows[0].row_id} on); nothing was changed")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        totals.setdefault("loss", 0.0)  # no row had an effect: all advantages of the step are 0
        tokens = max(totals.pop("tokens", 0.0), 1.0)
        means = {key: value / tokens for key, value in totals.items() if key != "loss"}
        return {
            "loss": totals["loss"],
            "grad_norm": norm,
            "lr": lr,
            "tokens": tokens,
            "rollouts": len(rollouts),
            **means,
        }

    def _too_large(self, rows: list[Row]) -> str:
        longest = max(len(row.token_ids) for row in rows)
        ways = [] if len(rows) == 1 else [f"lower optim.micro_tokens (now {self.optim.micro_tokens})"]
        ways += [] if self.optim.gradient_checkpointing else ["set optim.gradient_checkpointing: true"]
        ways += (
            []
            if self.accelerator.mixed_precision == "bf16"
            else ["start with accelerate launch --mixed_precision bf16"]
        )
        return (
            f"{self.accelerator.device} has too little memory for a pass of {len(rows)} x {longest} tokens; "
            f"{', or '.join(ways) or 'leave out the longest rows with data.where'}; nothing was changed"
        )

    def _scale(self, row: Row, trained_tokens: float, rollouts: int) -> float:
        divisor = max(trained_tokens, 1.0)
        if isinstance(self.algorithm, Grpo) and self.algorithm.normalise == "constant":
            divisor = self.algorithm.constant
        return row.weight / (divisor * rollouts)

    def _micro_batches(self, rows: Sequence[Row], indexes: list[int]) -> list[list[int]]:
        """Rows of like length together, at most micro_tokens padded tokens a pass; rows without effect are left out."""
        useful = [i for i in indexes if rows[i].mask.any() and self._moves(rows[i])]
        useful.sort(key=lambda i: (len(rows[i].token_ids), rows[i].row_id))
        parts: list[list[int]] = []
        for index in useful:
            length = len(rows[index].token_ids)
            if parts and (len(parts[-1]) + 1) * length <= self.optim.micro_tokens:
                parts[-1].append(index)
            else:
                parts.append([index])
        return parts

    def _moves(self, row: Row) -> bool:
        """False when a row's gradient is exactly zero (all advantages 0 under a method that multiplies by them)."""
        return not isinstance(self.algorithm, Grpo) or bool(row.advantages.any())

    def _loss(self, rows: list[Row], scale: list[float]) -> tuple[torch.Tensor, dict[str, float]]:
        device = self.accelerator.device
        length = max(len(row.token_ids) for row in rows)

        def padded(values: list[np.ndarray], dtype: Any) -> torch.Tensor:
            table = np.zeros((len(values), length), dtype=dtype)
            for place, value in enumerate(values):
                table[place, : len(value)] = value
            return torch.from_numpy(table).to(device)

        ids = padded([row.token_ids for row in rows], np.int64)  # (B, T), padded on the right
        mask = padded([row.mask for row in rows], np.float32)[:, 1:] > 0  # (B, T-1), of the token that is predicted
        logits = self._logits(ids, mask)  # (K, V) at the K trained places
        places = mask.nonzero(as_tuple=True)[0]
        temperatures = torch.tensor([row.temperature or 1.0 for row in rows], device=device)[places]
        logprobs = torch.log_softmax(logits.float() / temperatures[:, None], -1)
        logprobs = logprobs.gather(1, ids[:, 1:][mask][:, None]).squeeze(1)  # (K,)
        weights = torch.tensor(scale, device=device)[places]
        advantages = padded([row.advantages for row in rows], np.float32)[:, 1:][mask]
        seen = {"tokens": float(len(logprobs)), "logprob": float(logprobs.detach().sum())}
        algorithm = self.algorithm
        if isinstance(algorithm, Grpo):
            behaviour = padded([self._behaviour(row) for row in rows], np.float32)[:, 1:][mask]
            f = grpo.objective(
                logprobs, behaviour, advantages, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high
            )
            with torch.no_grad():
                drift = logprobs - behaviour
                seen["kl"] = float((drift.exp() - 1 - drift).sum())
                ratio = drift.exp()
                clipped = ((ratio > 1 + algorithm.clip_high) & (advantages > 0)) | (
                    (ratio < 1 - algorithm.clip_low) & (advantages < 0)
                )
                seen["clipped"] = float(clipped.sum())
        elif isinstance(algorithm, Awr):
            f = awr.objective(logprobs, advantages, beta=algorithm.beta, max_weight=algorithm.max_weight)
        else:
            f = sft.objective(logprobs)
        return -(f * weights).sum(), seen

    def _behaviour(self, row: Row) -> np.ndarray:
        if row.logprobs is None:
            raise LightningError(f"row {row.row_id} has no recorded log-probabilities; use algorithm sft or awr")
        return row.logprobs

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            if self._head is None:
                return self.model(input_ids=ids, use_cache=False).logits[:, :-1][mask]
            # No attention mask: rows are padded on the right, and a causal model never looks there.
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            return self._head(hidden[mask])

    def _sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def _sum(self, totals: dict[str, float]) -> dict[str, float]:
        keys = ["loss", "tokens", "logprob", "kl", "clipped"]
        values = torch.tensor(
            [totals.get(key, 0.0) for key in keys], dtype=torch.float64, device=self.accelerator.device
        )
        torch.distributed.all_reduce(values)
        return dict(zip(keys, values.tolist(), strict=True))
