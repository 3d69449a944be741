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
        self._tensorboard = config.tensorboard

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
        if self._tensorboard and self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # What an earlier try wrote from this step on is not shown.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(f"train/{key}", value, step)

    def trained(self, step: int, rows: list[Row]) -> None:
        """Write which samples a step trained."""
        if self._main:
            samples = sorted({sample for row in rows for sample in row.sample_ids})
            append_line(self.path / "trained.jsonl", json.dumps({"step": step, "samples": samples}))

    def go_on(self, step: int) -> frozenset[str]:
        """Go on at `step`: returns the samples that the steps before it trained.

        What `step` and later ones wrote was lost with their weights. Of metrics.jsonl it moves to metrics.cut.jsonl; of
        trained.jsonl it is forgotten, but for step 0: an earlier run may have ended here and published what it trained.
        """
        trained = self._cut("trained.jsonl", step) if step else []
        self._cut("metrics.jsonl", step, keep="metrics.cut.jsonl")
        return frozenset(sample for line in trained for sample in line["samples"])

    def _cut(self, name: str, step: int, keep: str | None = None) -> list[dict[str, Any]]:
        """The lines of steps before `step`, which alone the file holds afterwards; half a line is no line."""
        path = self.path / name
        kept: list[tuple[str, dict[str, Any]]] = []
        cut: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["step"] < step:
                kept.append((line, record))
            else:
                cut.append(line)
        if self._main and cut:
            if keep is not None:
                for line in cut:
                    append_line(self.path / keep, line)
            write_whole(path, "".join(f"{line}\n" for line, _ in kept).encode())
        return [record for _, record in kept]

    def close(self) -> None:
        """Finish the trackers."""
        if self._writer is not None:
            self._writer.close()
