"""Models and tokenizers from Hugging Face folders, and policies published from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from otel_lightning.app.errors import LightningError
from otel_lightning.store.lake import Lake
from otel_lightning.store.policies import Policies, Policy, tokenizer_sha256
from otel_lightning.training.config import TrainConfig

CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def source_folder(config: TrainConfig) -> tuple[Path, str | None]:
    """The folder that training starts from, and its policy version if it is one."""
    if config.model.path is not None:
        return config.model.path, None
    assert config.data.lake is not None
    policy = Policies(Lake.existing(config.data.lake).policies).get(config.model.policy or "current")
    return policy.folder, policy.version


def load(folder: Path) -> tuple[Any, Any, str]:
    """(model in float32, tokenizer, tokenizer identity); LightningError in one line when the folder is not whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise LightningError(f"{folder} is no model folder (config.json is missing); give a Hugging Face model folder")
    identity = tokenizer_sha256(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LightningError(f"{folder} cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    if tokenizer.chat_template is None:
        raise LightningError(f"{folder} has no chat template; add chat_template.jinja")
    return model, tokenizer, identity


def publish(lake: Path, model: Any, source: Path, info: dict[str, Any]) -> Policy:
    """Publish weights as the lake's next policy, with the tokenizer files of `source` unchanged."""

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        for name in CARRIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)

    identity = tokenizer_sha256(source)
    return Policies(lake / "policies").publish(save, {"tokenizer": identity, "tool_parser": "hermes", **info})
