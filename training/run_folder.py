"""What a run leaves behind: its resolved configuration, metrics as JSON lines and TensorBoard, which samples it trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from otel_lightning.app.errors import LightningError
from otel_lightning.store.files import append_line, write_json, write_whole
from otel_lightning.training.config import TrainConfig, resolved
from otel_lightning.training.data import Row


class RunFolder:
    """`output` of a configuration. Only the main process writes."""

    def __init__(self, config: TrainConfig, *, main: bool) -> None:
        self.path, self._main = config.output, main
        self._writer: Any = None
        self._began = time.monotonic()
        if not main:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LightningError(f"{self.path} cannot be made ({error.strerror}); choose another output") from None
        write_json(self.path / "config.json", resolved(config))
        if config.tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a step."""
        if not self._main:
            return
        record = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **values}
        append_line(self.path / "metrics.jsonl", json.dumps(record))
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(f"train/{key}", value, step)

    def trained(self, step: int, rows: list[Row]) -> None:
        """Write which samples a step trained."""
        if self._main:
            samples = sorted({sample for row in rows for sample in row.sample_ids})
            append_line(self.path / "trained.jsonl", json.dumps({"step": step, "samples": samples}))

    def trained_before(self, step: int) -> frozenset[str]:
        """The samples that steps before `step` trained. What later ones wrote, whose weights were lost with them, is forgotten."""
        path = self.path / "trained.jsonl"
        if not path.exists():
            return frozenset()
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        kept = [line for line in lines if json.loads(line)["step"] < step]
        if self._main and len(kept) < len(lines):
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        return frozenset(sample for line in kept for sample in json.loads(line)["samples"])

    def close(self) -> None:
        """Finish the trackers."""
        if self._writer is not None:
            self._writer.close()
