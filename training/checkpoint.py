"""Checkpoints that are complete or ignored, so that a killed run goes on bit for bit.

    checkpoints/step=000050/{model.safetensors, optimizer.pt, state.json, manifest.json}

Written under a temporary name; manifest.json (the hash of every file) comes last, then fsync and rename. A run seeds
its random numbers from (seed, step), so nothing but weights, optimiser state and the position needs keeping.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from otel_lightning.store.files import disk_problem, sync_folder, write_json
from otel_lightning.store.policies import file_sha256

KEPT = 2


def save(folder: Path, step: int, model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step`; older ones than the last two are removed."""
    final = folder / f"step={step:06d}"
    temporary = folder / f".step={step:06d}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        # Tied weights share storage, which safetensors refuses to write twice: keep each tensor once.
        tensors: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensors[name] = tensor.detach().cpu().contiguous()
        save_file(tensors, temporary / "model.safetensors")
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        write_json(temporary / "state.json", {**state, "step": step})
        write_json(temporary / "manifest.json", {p.name: file_sha256(p) for p in sorted(temporary.iterdir())})
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_problem(final, error) from None
    for old in _names(folder)[:-KEPT]:
        shutil.rmtree(folder / old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None. Incomplete and damaged ones are passed over."""
    for name in reversed(_names(folder)):
        if _is_whole(folder / name):
            return folder / name
    return None


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into `model` and `optimizer`; returns its state."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    model.tie_weights()
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step=*")) if folder.is_dir() else []


def _is_whole(path: Path) -> bool:
    try:
        hashes = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return all(file_sha256(path / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False
