"""What lightning-transform can be told: what counts as reward, how it is credited, what an episode is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from otel_lightning.app.config import Config

Combine = Literal["last", "sum", "mean"]
Befall = Literal["drop", "keep", "mask"]


class RewardConfig(Config):
    """Which evaluations count, and with what weight."""

    train: dict[str, float] = Field(default={}, description="weight of each evaluation name; empty: chosen by name")
    labels: dict[str, dict[str, float]] = Field(default={}, description="value of each label of a name")
    combine: dict[str, Combine] = Field(default={}, description="how several records of one name become one")
    outcome: str | None = Field(default=None, description="the truth that the gate watches; may be absent from train")
    attributes: tuple[str, ...] = Field(default=(), description="numeric span attributes that are rewards")


class CreditConfig(Config):
    """How a reward is spread over the calls of an episode, and what it is compared with."""

    method: Literal["broadcast", "last", "step", "tool", "discounted"] = "broadcast"
    baseline: Literal["none", "group", "rloo", "population"] = "none"
    scale: Literal["none", "std"] = "none"
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per step, for method discounted")


class RolloutConfig(Config):
    """What an episode is where nothing names it."""

    by: Literal["lineage", "session", "trace"] = "lineage"
    attempts: Literal["last", "first", "all"] = "last"


class PolicyFor(Config):
    """What befalls the imperfect."""

    incomplete: Befall = "drop"
    error: Befall = "keep"
    timeout: Befall = "drop"
    truncated: Befall = "mask"


class SplitConfig(Config):
    """Which episodes are kept for evaluation where nothing says so."""

    salt: str = ""
    eval_percent: int = Field(default=10, ge=0, le=100)


class TransformConfig(Config):
    """One YAML for lightning-transform, and the `transform` section of a training configuration."""

    rewards: RewardConfig = RewardConfig()
    credit: CreditConfig = CreditConfig()
    rollouts: RolloutConfig = RolloutConfig()
    policy_for: PolicyFor = PolicyFor()
    split: SplitConfig = SplitConfig()
    settle_s: float = Field(default=30.0, ge=0, description="an episode with a root is over after this much quiet")
    session_idle_s: float = Field(default=1800.0, gt=0, description="and one without a root after this much")
    threads: int | None = Field(default=None, gt=0)
    messages: bool = Field(default=True, description="false: credits as ever, but what was said is not stored again")
    memory_mb: int = Field(
        default=1536, ge=256, description="what a run may hold; the rest waits on disk, below the lake"
    )
    buckets: int | None = Field(default=None, gt=0, le=65536, description="so many shares; unset: what fits the memory")

    @model_validator(mode="after")
    def _std_needs_members(self) -> TransformConfig:
        if self.credit.scale == "std" and self.credit.baseline == "none":
            raise ValueError("credit.scale 'std' needs a baseline; set credit.baseline to group, rloo or population")
        return self


def read_config(path: Path | None) -> TransformConfig:
    """The configuration in a YAML file, or the defaults."""
    from otel_lightning.app.config import load_config

    return load_config(TransformConfig, path)
