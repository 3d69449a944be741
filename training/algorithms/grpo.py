"""Clipped importance-weighted policy gradient with group advantages.

    ρ = π(y_t | ·) / μ(y_t | ·),   f = min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A)

μ is the policy that sampled, by its recorded log-probabilities, so stale samples are weighted, not mistaken. GRPO: Shao
et al., 2024, arXiv 2402.03300; the wider upper bound: DAPO, Yu et al., 2025, arXiv 2503.14476.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def objective(
    logprobs: Float[Tensor, " tokens"],
    behaviour_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, " tokens"]:
    """f per trained token; the loss is minus its normalised sum."""
    ratio = (logprobs - behaviour_logprobs).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
