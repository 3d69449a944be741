"""train.py: one YAML, one job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from otel_lightning.app.cli import run as run_app

app = App(
    name="train.py",
    help="Train a policy from a lake, offline or online. Start with: accelerate launch train.py --config configs/X.yaml",
    version_flags=[],
)


@app.default
def train(
    *,
    config: Path,
    set: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run the job that a YAML file describes.

    Parameters
    ----------
    config
        The YAML file.
    set
        key=value over the file's, e.g. --set optim.lr=1e-4; may be given several times.
    dry_run
        Print the resolved configuration and what would be trained on; change nothing.
    """
    import yaml

    from otel_lightning.app.config import load_config
    from otel_lightning.app.errors import UsageError
    from otel_lightning.training.config import TrainConfig

    overrides = {}
    for item in set or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: give key=value")
        overrides[key] = yaml.safe_load(value)
    settings = load_config(TrainConfig, config, overrides)
    if settings.data.transform is not None:
        data = settings.data.model_copy(update={"transform": settings.data.transform.beside(config.parent)})
        settings = settings.model_copy(update={"data": data})
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are folders here; nothing is fetched behind the user's back
    from otel_lightning.training.jobs import run_job

    return run_job(settings, dry_run=dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of train.py."""
    return run_app(app, argv)
