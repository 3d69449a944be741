"""What lightning-transform can be told: what counts as reward, how it is credited, what an episode is."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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
    sql: tuple[str, ...] = Field(default=(), description="files of rewards written in SQL, or builtin:<name>")
    match: Literal["stated", "time"] = Field(
        default="stated", description="time: a reward that names only its surroundings goes to the call before it"
    )

    @field_validator("sql", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CreditConfig(Config):
    """How a reward is spread over the calls of an episode, and what it is compared with."""

    method: Literal["broadcast", "last", "step", "tool", "agent", "discounted", "branch"] = "broadcast"
    sql: str | None = Field(default=None, description="a file that assigns credit in SQL, instead of a method")
    baseline: Literal["none", "group", "rloo", "population", "branch"] = "none"
    within: str | None = Field(
        default=None, description="for baseline population: SQL over a row of rollouts; equal values are compared"
    )
    scale: Literal["none", "std"] = "none"
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per step, for method discounted")

    @model_validator(mode="before")
    @classmethod
    def _a_file_is_a_method(cls, value: Any) -> Any:
        """`credit: my.sql` and `method: my.sql` say the same as `sql: my.sql`."""
        if isinstance(value, str):
            value = {"sql": value} if value.endswith(".sql") else {"method": value}
        if isinstance(value, dict) and str(value.get("method", "")).endswith(".sql"):
            value = {**value, "sql": value["method"]}
            del value["method"]
        return value

    @model_validator(mode="after")
    def _baselines_fit(self) -> CreditConfig:
        if self.sql is not None and self.method != "broadcast":
            raise ValueError("credit.sql takes the place of credit.method; give one of them")
        if self.method == "branch" and self.baseline not in ("none", "branch"):
            raise ValueError("method 'branch' compares branches of one episode; set credit.baseline to branch or none")
        if self.baseline == "branch" and (self.method != "branch" or self.sql is not None):
            raise ValueError("baseline 'branch' needs credit.method branch; or set credit.baseline to group or rloo")
        if self.scale == "std" and self.baseline in ("none", "branch"):
            raise ValueError("credit.scale 'std' needs a baseline; set credit.baseline to group, rloo or population")
        if self.within is not None and self.baseline != "population":
            raise ValueError("credit.within belongs to credit.baseline population")
        return self


class PairsConfig(Config):
    """Which answers are held against each other for preference learning."""

    min_margin: float = Field(default=0.0, ge=0, description="credits must differ by this much")
    k: int = Field(default=4, ge=0, le=64, description="pairs per prompt, those of the largest margin; 0: none")


class KtoConfig(Config):
    """What a desirable answer is, for learning from single answers."""

    threshold: float = Field(default=0.5, description="an answer with at least this credit is desirable")


class Price(Config):
    """What a model's tokens cost, in one currency."""

    input: float = Field(ge=0, description="per million prompt tokens")
    output: float = Field(ge=0, description="per million completion tokens")


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
    pairs: PairsConfig = PairsConfig()
    kto: KtoConfig = KtoConfig()
    prices: dict[str, Price] = Field(default={}, description="by model; a name may end in *")
    settle_s: float = Field(default=30.0, ge=0, description="an episode with a root is over after this much quiet")
    session_idle_s: float = Field(default=1800.0, gt=0, description="and one without a root after this much")
    since: date | None = Field(
        default=None, description="read only what arrived from that day on (the lake's own days, UTC)"
    )
    where: str | None = Field(
        default=None, description="SQL over a row of rollouts; those for which it is not true do not count"
    )
    threads: int | None = Field(default=None, gt=0, description="unset: one for every 2048 of memory_mb, at least one")
    messages: bool = Field(default=True, description="false: credits as ever, but what was said is not stored again")
    memory_mb: int = Field(
        default=2048, ge=256, description="what a run may hold; the rest waits on disk, below the lake"
    )
    buckets: int | None = Field(default=None, gt=0, le=65536, description="so many shares; unset: what fits the memory")

    @field_validator("since", mode="before")
    @classmethod
    def _days_ago(cls, value: Any) -> Any:
        """`7d` is the day seven days before today."""
        if isinstance(value, str) and (days := re.fullmatch(r"(\d{1,5})d", value)):
            return datetime.now(UTC).date() - timedelta(days=int(days[1]))
        if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            raise ValueError("write a day, 2026-11-20, or how many days ago, 7d")
        return value

    def beside(self, folder: Path) -> TransformConfig:
        """The same with the SQL files that it names looked for in `folder`, where the configuration lies."""
        rewards = self.rewards.model_copy(update={"sql": tuple(_beside(folder, path) for path in self.rewards.sql)})
        credit = self.credit
        if credit.sql is not None:
            credit = credit.model_copy(update={"sql": _beside(folder, credit.sql)})
        return self.model_copy(update={"rewards": rewards, "credit": credit})


BUILTIN = "builtin:"


def _beside(folder: Path, path: str) -> str:
    return path if path.startswith(BUILTIN) else str(folder / path)


def read_config(path: Path | None, **overrides: Any) -> TransformConfig:
    """The configuration in a YAML file, or the defaults; `overrides` that are not None take the place of its keys."""
    from otel_lightning.app.config import load_config

    config = load_config(TransformConfig, path, overrides)
    return config if path is None else config.beside(path.parent)
