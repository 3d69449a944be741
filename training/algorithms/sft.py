"""Filtered supervised fine-tuning.

    f = log π(y_t | x, y_<t)   for every token of the rollouts whose reward reaches the threshold

Imitating the successes among one's own samples: STaR (Zelikman et al., 2022, arXiv 2203.14465), RAFT (Dong et al., 2023,
arXiv 2304.06767), ReST (Gulcehre et al., 2023, arXiv 2308.08998). Needs no log-probabilities, so text is enough.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def objective(logprobs: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """f per trained token; the loss is minus its normalised sum."""
    return logprobs
