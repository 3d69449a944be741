"""A transform whose files were merged, retired or taken away under it: the same tables, and nothing done twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from running import Otlp, attributes

from otel_lightning.collector.compact import compact, parquet_tools
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.transforms import run as run_module
from otel_lightning.transforms import touched
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

CONFIG = TransformConfig.model_validate({"settle_s": 1, "rewards": {"train": {"reward": 1.0}}})
TABLES = {
    "calls": "trace_id, span_id",
    "rollouts": "rollout_id",
    "rewards": "reward_id",
    "credits": "trace_id, span_id",
}


def episode(otlp: Otlp, number: int, *, reward: bool = True) -> None:
    """A call in a session of its own, in one file, and its reward in the next."""
    values = {
        "openinference.span.kind": "LLM", "session.id": f"s{number}",
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": f"question {number}",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": f"answer {number}",
    }  # fmt: skip
    otlp.send([{"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "s", "startTimeUnixNano": str(otlp.tick()),
                "endTimeUnixNano": str(otlp.tick()), "attributes": attributes(values)}])  # fmt: skip
    otlp.flush()
    if reward:
        named = {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 0.5, "session.id": f"s{number}"}
        record = {
            "eventName": "gen_ai.evaluation.result",
            "timeUnixNano": str(otlp.tick()),
            "attributes": attributes(named),
        }
        otlp.send(records=[record])
        otlp.flush()


def merge(lake: Path) -> Any:
    home = Lake(lake)
    return compact(RealDisk(), home, parquet_tools(home), memory_bytes=1 << 26, grace_s=0)


def contents(lake: Path) -> dict[str, Any]:
    with open_tables(lake, threads=1) as connection:
        return {
            table: connection.execute(
                f"select columns(lambda c: c not in ('revision', 'received_unix_nano')) from {table} order by {order}"
            ).fetchall()
            for table, order in TABLES.items()
        }


def test_a_compaction_brings_nothing_new_and_takes_nothing_away(otlp: Otlp, tmp_path: Path) -> None:
    lake, now = tmp_path / "lake", time.time_ns() + 10**13
    for number in range(1, 5):
        episode(otlp, number)
    run_transform(lake, CONFIG, now_unix_nano=now)
    before = contents(lake)
    assert merge(lake).files_before == 8
    report = run_transform(lake, CONFIG, now_unix_nano=now)
    assert (report.full, report.new_files, report.rollouts) == (False, 0, 0)
    assert contents(lake) == before
    # Late feedback finds its rollout through files that have moved twice.
    episode(otlp, 5)
    merge(lake)
    named = {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 1.0, "session.id": "s2"}
    otlp.send(
        records=[
            {"eventName": "gen_ai.evaluation.result", "timeUnixNano": str(otlp.tick()), "attributes": attributes(named)}
        ]
    )
    otlp.flush()
    merge(lake)
    report = run_transform(lake, CONFIG, now_unix_nano=now)
    assert not report.full
    stepwise = contents(lake)
    rewards = {row[0]: float(row[1]) for row in _rewards(lake)}
    assert rewards[f"{2:032x}"] == 1.0 and len(rewards) == 5
    (lake / "derived" / "manifest.json").unlink()
    run_transform(lake, CONFIG, now_unix_nano=now)
    assert contents(lake) == stepwise


def _rewards(lake: Path) -> list[tuple[str, Any]]:
    with open_tables(lake) as connection:
        return connection.execute("select trace_id, reward from credits").fetchall()


@pytest.mark.row(26)
def test_a_file_that_vanishes_while_a_run_reads_is_no_failure(
    otlp: Otlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "lake"
    for number in range(1, 4):
        episode(otlp, number)
    merged: list[int] = []
    real = touched.find_touched

    def meanwhile(*arguments: Any, **more: Any) -> None:
        if not merged:
            merged.append(merge(lake).removed)
        real(*arguments, **more)

    monkeypatch.setattr(touched, "find_touched", meanwhile)
    report = run_transform(lake, CONFIG, now_unix_nano=time.time_ns() + 10**13)
    assert merged == [6] and report.rollouts == 3
    assert len(live_files(Lake(lake), "spans")) == 1
    # What fails for another reason fails once.
    attempts: list[int] = []
    monkeypatch.setattr(
        touched,
        "find_touched",
        lambda *arguments, **more: attempts.append(1) or (_ for _ in ()).throw(run_module.LightningError("no")),
    )
    episode(otlp, 9)
    with pytest.raises(run_module.LightningError, match="no"):
        run_transform(lake, CONFIG)
    assert attempts == [1]
