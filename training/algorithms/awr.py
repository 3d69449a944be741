"""Advantage-weighted regression (Peng et al., 2019, arXiv 1910.00177).

    f = min(exp(A / β), w_max) · log π(y_t | x, y_<t)

A is the credit's advantage. Small β follows the best samples only; the cap keeps one lucky sample from ruling a step.
Off-policy by nature: the samples' own log-probabilities are not needed.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def objective(
    logprobs: Float[Tensor, " tokens"], advantages: Float[Tensor, " tokens"], *, beta: float, max_weight: float
) -> Float[Tensor, " tokens"]:
    """f per trained token; the loss is minus its normalised sum."""
    return (advantages / beta).exp().clamp(max=max_weight) * logprobs
