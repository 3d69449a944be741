"""Policies in memory: loaded when first asked for, kept while used, named by version or pointer."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_lightning.app.errors import LightningError
from otel_lightning.serving.prompts import Prompts
from otel_lightning.store.policies import POINTERS, VERSION, Policies, tokenizer_sha256

POINTER_POLL_S = 0.05


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, with the tokenizer, its identity and the defaults of its folder."""

    version: str
    model: Any
    prompts: Prompts
    tokenizer_sha256: str
    stop_ids: frozenset[int]
    context: int
    defaults: dict[str, Any]


class Pool:
    """The policies of a lake, or one model folder. Thread-safe."""

    def __init__(self, *, policies: Policies | None = None, folder: Path | None = None, keep: int = 3) -> None:
        self._policies, self._folder, self._keep = policies, folder, keep
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._prompts: dict[str, Prompts] = {}
        self._pointers: dict[str, tuple[float, str | None]] = {}

    def resolve(self, name: str) -> str:
        """The version that a model name means: a version, a pointer, and `current` for any other name."""
        if self._policies is None:
            return self._folder.name if self._folder else name
        if VERSION.fullmatch(name):
            return self._policies.get(name).version
        pointer = name if name in POINTERS else "current"
        version = self._pointer(pointer) or self._pointer("current")
        if version is None:
            raise LightningError(f"no policy is {pointer} yet; publish one, e.g. with train.py, and promote it")
        return version

    def get(self, version: str) -> Loaded:
        """The loaded version; LightningError in one line when its folder is missing or broken."""
        with self._lock:
            if version not in self._loaded:
                self._loaded[version] = self._load(version)
            self._loaded.move_to_end(version)
            while len(self._loaded) > self._keep:
                self._loaded.popitem(last=False)
            return self._loaded[version]

    def peek(self, version: str) -> Loaded | None:
        """The version if it is loaded already; never waits for a load in progress."""
        return self._loaded.get(version)

    def names(self) -> list[str]:
        """Every name a request may use."""
        if self._policies is None:
            return [self.resolve("")]
        return [*(name for name in POINTERS if self._policies.pointer(name)), *self._policies.versions()]

    def _pointer(self, name: str) -> str | None:
        assert self._policies is not None
        read_at, version = self._pointers.get(name, (0.0, None))
        now = time.monotonic()
        if now - read_at > POINTER_POLL_S or version is None:
            version = self._policies.pointer(name)
            self._pointers[name] = (now, version)
        return version

    def _load(self, version: str) -> Loaded:
        folder = self._policies.get(version).folder if self._policies is not None else self._folder
        assert folder is not None
        return load_folder(folder, version, self._prompts)


def load_folder(folder: Path, version: str, shared: dict[str, Prompts] | None = None) -> Loaded:
    """Load one Hugging Face folder; LightningError in one line when something is missing or damaged."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise LightningError(f"{folder} is no model folder (config.json is missing); give a Hugging Face model folder")
    identity = tokenizer_sha256(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        if shared is not None and identity in shared:
            prompts = shared[identity]
        else:
            prompts = Prompts(AutoTokenizer.from_pretrained(folder, local_files_only=True))
            if shared is not None:
                shared[identity] = prompts
        generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        line = " ".join(str(error).split())[:200]
        raise LightningError(f"{folder} cannot be loaded ({line}); publish it again or restore its files") from None
    if prompts.tokenizer.chat_template is None:
        raise LightningError(
            f"{folder} has no chat template; add chat_template.jinja, so that messages can become a prompt"
        )
    eos: Any = prompts.tokenizer.eos_token_id
    stops: set[Any] = {eos}
    defaults: dict[str, Any] = {}
    if generation is not None:
        given = generation.eos_token_id
        stops |= set(given) if isinstance(given, list) else {given}
        defaults = {
            name: getattr(generation, name, None)
            for name in ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")
        }
    model.requires_grad_(False)
    return Loaded(
        version=version,
        model=model,
        prompts=prompts,
        tokenizer_sha256=identity,
        stop_ids=frozenset(int(token) for token in stops if token is not None),
        context=int(getattr(model.config, "max_position_embeddings", 1 << 20)),
        defaults={name: value for name, value in defaults.items() if value is not None},
    )
