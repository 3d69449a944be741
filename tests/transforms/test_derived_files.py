"""Derived files of many runs: merged when they are many, collected when nothing names them, whole wherever a run is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import Otlp, attributes

from otel_lightning.store.lake import Lake
from otel_lightning.transforms import compaction
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.derived import STORED, Manifest
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

SETTINGS: dict[str, Any] = {"settle_s": 1, "threads": 1, "rewards": {"train": {"reward": 1.0}}}
CONFIG = TransformConfig.model_validate(SETTINGS)
NOW = time.time_ns() + 10**13
RUNS = 4
KILLED = """
import os, sys
from pathlib import Path
from otel_lightning.transforms import compaction, derived, run
compaction.FILES = run.compaction.FILES = 2
compaction.KEPT_S, compaction.KEPT_MANIFESTS = 0, 1
def killed(*_, **__):
    os._exit(9)
where = sys.argv[2]
if where == "after merging":
    derived.Manifest.write = killed
elif where == "before collecting":
    run.compaction.remove_unnamed = killed
elif where == "while collecting":
    real = Path.unlink
    def unlink(self, missing_ok=False):
        real(self, missing_ok=missing_ok)
        if self.suffix == ".parquet":
            os._exit(9)
    Path.unlink = unlink
from otel_lightning.transforms.config import TransformConfig
run.run_transform(Path(sys.argv[1]), TransformConfig.model_validate_json(sys.argv[3]), now_unix_nano=int(sys.argv[4]))
"""


@pytest.fixture
def soon_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are many, and nothing is kept for readers that do not exist."""
    monkeypatch.setattr(compaction, "FILES", 2)
    monkeypatch.setattr(compaction, "KEPT_S", 0)
    monkeypatch.setattr(compaction, "KEPT_MANIFESTS", 1)


def episode(otlp: Otlp, number: int) -> None:
    values = {
        "openinference.span.kind": "LLM", "session.id": f"s{number}",
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": f"question {number}",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": f"answer {number}",
    }  # fmt: skip
    span = {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "s", "startTimeUnixNano": str(otlp.tick()),
        "endTimeUnixNano": str(otlp.tick()), "attributes": attributes(values),
    }  # fmt: skip
    otlp.send([span], [feedback(otlp, number, number / 10)])
    otlp.flush()


def feedback(otlp: Otlp, number: int, value: float) -> dict[str, Any]:
    named = {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": value, "session.id": f"s{number}"}
    return {
        "eventName": "gen_ai.evaluation.result",
        "timeUnixNano": str(otlp.tick()),
        "attributes": attributes(named),
    }


def contents(lake: Path) -> dict[str, Any]:
    with open_tables(lake, threads=1) as connection:
        return {
            table: connection.execute(
                f"select columns(lambda c: c not in ('revision', 'received_unix_nano')) from {table} order by all"
            ).fetchall()
            for table in ("calls", "rollouts", "rewards", "returns", "credits", "samples")
        }


def on_disk(lake: Path) -> set[str]:
    return {path.relative_to(lake).as_posix() for path in (lake / "derived").rglob("*.parquet")}


def named(lake: Path) -> set[str]:
    manifest = Manifest.read(Lake(lake))
    assert manifest is not None
    return {path for paths in manifest.files.values() for path in paths}


def test_many_runs_leave_few_files_and_the_same_rows(otlp: Otlp, tmp_path: Path, soon_many: None) -> None:
    lake = tmp_path / "lake"
    for number in range(1, RUNS + 1):
        episode(otlp, number)
        if number == RUNS:
            otlp.send(records=[feedback(otlp, 1, 0.75)])
            otlp.flush()
        run_transform(lake, CONFIG, now_unix_nano=NOW)
    assert on_disk(lake) == named(lake), "what nothing names is gone, what is named is there"
    manifest = Manifest.read(Lake(lake))
    assert manifest is not None
    assert all(len(manifest.files[table]) <= 2 for table in (*STORED, "live", "keys")), manifest.files
    stepwise = contents(lake)
    shutil.rmtree(lake / "derived")
    run_transform(lake, CONFIG, now_unix_nano=NOW)
    assert contents(lake) == stepwise
    assert len(stepwise["calls"]) == RUNS


def test_a_policy_keeps_the_files_that_it_was_made_from(otlp: Otlp, tmp_path: Path, soon_many: None) -> None:
    lake = tmp_path / "lake"
    episode(otlp, 1)
    run_transform(lake, CONFIG, now_unix_nano=NOW)
    kept = named(lake)
    (lake / "policies" / "v0001").mkdir(parents=True)
    (lake / "policies" / "v0001" / "policy.json").write_text(json.dumps({"data_manifest": "run=000001"}))
    for number in range(2, 4):
        episode(otlp, number)
        run_transform(lake, CONFIG, now_unix_nano=NOW)
    assert kept <= on_disk(lake)
    assert not kept <= named(lake)


@pytest.mark.parametrize("where", ["after merging", "before collecting", "while collecting"])
def test_killed_between_the_steps_nothing_is_lost(otlp: Otlp, tmp_path: Path, soon_many: None, where: str) -> None:
    lake = tmp_path / "lake"
    episode(otlp, 1)
    run_transform(lake, CONFIG, now_unix_nano=NOW)
    episode(otlp, 2)
    before = contents(lake)
    command = [sys.executable, "-c", KILLED, str(lake), where, json.dumps(SETTINGS), str(NOW)]
    assert subprocess.run(command).returncode == 9
    assert named(lake) <= on_disk(lake)
    assert (contents(lake) == before) == (where == "after merging")
    run_transform(lake, CONFIG, now_unix_nano=NOW)
    assert on_disk(lake) == named(lake)
    assert len(contents(lake)["calls"]) == 2
