"""One YAML for a training job. The algorithm's name picks its options; an unknown key names the nearest right one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from otel_lightning.app.config import Config, nearest
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.steps import signal_names


class ModelConfig(Config):
    """Where training starts: a Hugging Face folder, or a policy of the lake."""

    path: Path | None = None
    policy: str | None = Field(default=None, description="current, candidate or a version of data.lake")

    @model_validator(mode="after")
    def _one(self) -> ModelConfig:
        if (self.path is None) == (self.policy is None):
            raise ValueError("give either model.path (a Hugging Face folder) or model.policy (current, v0007, …)")
        return self


class DataConfig(Config):
    """What is trained on: the lake's tables, or supervised conversations in a file."""

    lake: Path | None = None
    transform: TransformConfig | None = Field(default=None, description="run the transform with this first")
    where: str | None = Field(default=None, description="SQL condition on samples or trajectories")
    messages: Path | None = Field(default=None, description="JSONL of {messages: […]} in OpenAI chat form, for sft")
    split: Literal["train"] = "train"
    max_staleness: int | None = Field(default=None, ge=0, description="versions between sampling and training")


class Sft(Config):
    """Filtered supervised fine-tuning: imitate what was rewarded."""

    name: Literal["sft"]
    min_reward: float = Field(default=0.5, description="only rollouts rewarded at least this much")


class Awr(Config):
    """Advantage-weighted regression."""

    name: Literal["awr"]
    beta: float = Field(default=0.2, gt=0)
    max_weight: float = Field(default=20.0, gt=0)


class Grpo(Config):
    """Clipped importance-weighted policy gradient with group advantages."""

    name: Literal["grpo"]
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    normalise: Literal["rollout", "constant"] = "rollout"
    constant: float = Field(default=64.0, gt=0, description="tokens that a rollout is divided by, for constant")
    allow_truncated_sampling: bool = Field(default=False, description="train on top-p, top-k or min-p samples too")


Algorithm = Annotated[Sft | Awr | Grpo, Field(discriminator="name")]


class OptimConfig(Config):
    """AdamW and its schedule. A step takes `batch_rollouts` rollouts."""

    lr: float = Field(gt=0)
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_rollouts: int = Field(default=32, gt=0)
    micro_tokens: int = Field(default=8192, gt=0, description="padded tokens of one forward pass")
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass: slower (a quarter in large passes), less memory",
    )
    warmup_steps: int = Field(default=5, ge=0)
    hold: float = Field(default=0.0, ge=0, lt=1, description="share of the steps at full rate before the decay")
    final_lr: float = Field(default=0.05, ge=0, le=1, description="share of lr left at the end")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


class RolloutsConfig(Config):
    """How rollouts are driven: a command that speaks the worker protocol, over a task file."""

    command: str
    tasks: Path
    serve: str = Field(description="base URL of lightning-serve")
    collect: str = Field(description="OTLP/HTTP endpoint of lightning-collect")
    rounds: int = Field(default=20, gt=0)
    tasks_per_round: int = Field(default=32, gt=0)
    group_size: int = Field(default=8, gt=0)
    updates_per_round: int = Field(default=2, gt=0)
    revisit: float = Field(
        default=0.0, ge=0, lt=1, description="up to this share of a round's tasks are earlier ones not solved yet"
    )
    solved: float = Field(default=1.0, description="a task is solved when every attempt of a round has this outcome")
    round_deadline_s: float = Field(default=180.0, gt=0)
    settle_s: float = Field(default=0.6, ge=0, description="wait for the agents' last spans before a round is read")
    retrain_revised: bool = Field(
        default=False, description="train an answer again when it comes back in a later round's rollouts"
    )


class GateConfig(Config):
    """Promotion by held-out tasks: candidate against current, paired by task and seed."""

    command: str
    tasks: Path
    serve: str
    collect: str
    margin: float = Field(default=0.03, ge=0)
    deadline_s: float = Field(default=300.0, gt=0)
    settle_s: float = 0.6
    reuse: bool = Field(
        default=False,
        description="take current's outcomes from the gate that promoted it, when that had this command, these tasks and "
        "this seed; right only while the agent and its world have not changed since",
    )
    refuse_signals: list[str] = Field(
        default=[],
        description="signals whose finding of high severity refuses promotion; every such finding is in gate.json",
    )

    @field_validator("refuse_signals")
    @classmethod
    def _known_signals(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in (known := signal_names()):
                guess = nearest(name, known)
                raise ValueError(
                    f"no signal '{name}'; " + (f"did you mean {guess}?" if guess else f"there are {', '.join(known)}")
                )
        return names


class TrainConfig(Config):
    """A training job."""

    model: ModelConfig
    data: DataConfig
    algorithm: Algorithm
    optim: OptimConfig
    rollouts: RolloutsConfig | None = Field(default=None, description="present: an online job")
    gate: GateConfig | None = None
    publish: bool = Field(default=True, description="publish the result as a policy of the lake")
    output: Path = Path("runs/train")
    checkpoint_steps: int = Field(default=50, gt=0)
    tensorboard: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.data.lake is None and self.data.messages is None:
            raise ValueError("data needs a lake, or messages for supervised training")
        if self.data.messages is not None and self.algorithm.name != "sft":
            raise ValueError(f"{self.algorithm.name} needs rewards, and data.messages has none; use algorithm sft")
        if self.model.policy is not None and self.data.lake is None:
            raise ValueError("model.policy names a policy of data.lake; give the lake")
        if self.rollouts is None and (self.optim.steps is None) == (self.optim.epochs is None):
            raise ValueError("give either optim.steps or optim.epochs")
        if self.rollouts is not None and self.data.lake is None:
            raise ValueError("an online job needs data.lake: rollouts are read from it")
        return self


def resolved(config: TrainConfig) -> dict[str, Any]:
    """The configuration with every default, as it is written beside a run."""
    return config.model_dump(mode="json")
