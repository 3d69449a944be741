"""A configuration mistake costs the user one line: file, key, nearest right name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from otel_lightning.app.config import Config, load_config, parse_config
from otel_lightning.app.errors import ConfigError


class Sft(Config):
    name: Literal["sft"] = "sft"
    threshold: float = 0.5


class Grpo(Config):
    name: Literal["grpo"] = "grpo"
    clip_low: float = 0.2


class Optim(Config):
    lr: float = 1e-3


class Job(Config):
    model: str
    optim: Optim = Optim()
    algorithm: Annotated[Sft | Grpo, Field(discriminator="name")] = Sft()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"modle": "x"}, "job.yaml: unknown key 'modle'; did you mean 'model'?"),
        ({"optim": {"lrr": 1}}, "job.yaml: unknown key 'optim.lrr'; did you mean 'lr'?"),
        ({"algorithm": {"name": "grpp"}}, "did you mean 'grpo'?"),
        ({"algorithm": {"name": "grpo", "clip_lo": 1}}, "did you mean 'clip_low'?"),
        ({"optim": {"lr": "fast"}}, "job.yaml: 'optim.lr': input should be a valid number"),
        ({}, "job.yaml: key 'model' is missing; add it"),
    ],
)
def test_a_mistake_names_file_key_and_the_nearest_right_name(data: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Job, data, "job.yaml")
    assert line in str(caught.value)


def test_flags_lie_over_the_file_and_absent_flags_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: a\noptim: {lr: 0.5}\n")
    job = load_config(Job, path, {"model": None, "optim.lr": 0.25})
    assert (job.model, job.optim.lr) == ("a", 0.25)


@pytest.mark.parametrize(
    ("text", "line"),
    [("model: [", "is not valid YAML"), ("- a\n", "its top level is a list"), (None, "cannot be read")],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str | None, line: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=line) as caught:
        load_config(Job, path)
    assert "\n" not in str(caught.value)
