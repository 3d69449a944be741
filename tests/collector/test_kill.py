"""kill -9 under load, again and again: what was acknowledged is stored, and nothing twice."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from load import Load


def kill_again_and_again(start: Any, folder: Path, read: Any, seconds: list[float]) -> Load:
    """One life for each of `seconds`, ended by SIGKILL under load; then a last start, and a recount."""
    config = folder / "collect.yaml"
    # Segments roll all the time, so that kills also hit conversions and manifest entries.
    config.write_text(f"lake: {folder / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 0.05\n")
    load = Load()
    for life in seconds:
        collector = start("lightning-collect", "--config", str(config))
        load.run(collector.url, collector.kill, life)
    collector = start("lightning-collect", "--config", str(config))
    assert collector.stop() == 0
    rows = read.rows("spans", "span_id, seq")
    stored = [row["span_id"] for row in rows]
    assert load.acknowledged <= set(stored) <= load.sent
    assert len(stored) == len(set(stored))
    assert len({row["seq"] for row in rows}) == len(rows)
    assert not list((folder / "lake" / "wal").glob("*.wal"))
    assert not list((folder / "lake").rglob("*.tmp"))
    return load


@pytest.mark.row(1, 3)
def test_killed_under_load_and_started_again_nothing_acknowledged_is_lost_or_doubled(
    start: Any, tmp_path: Path, read: Any
) -> None:
    load = kill_again_and_again(start, tmp_path, read, [0.3, 0.55, 0.8])
    assert len(load.acknowledged) > 500


@pytest.mark.faults
@pytest.mark.row(1, 2, 3, 5)
def test_ten_kills_at_random_moments(start: Any, tmp_path: Path, read: Any) -> None:
    seed = int(os.environ.get("KILL_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    try:
        kill_again_and_again(start, tmp_path, read, [chance.uniform(0.02, 1.2) for _ in range(10)])
    except AssertionError as error:
        raise AssertionError(f"KILL_SEED={seed}: {error}") from error


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.row(1, 2, 3, 5)
def test_a_hundred_kills_and_a_recount_after_each(start: Any, tmp_path: Path, read: Any) -> None:
    config = tmp_path / "collect.yaml"
    config.write_text(f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 0.2\n")
    seed = int(os.environ.get("KILL_SEED", random.randrange(1 << 30)))
    chance, load = random.Random(seed), Load()
    for kill in range(int(os.environ.get("SOAK_KILLS", "100"))):
        collector = start("lightning-collect", "--config", str(config))
        load.run(collector.url, collector.kill, chance.uniform(0.02, 2.0))
        collector = start("lightning-collect", "--config", str(config))
        assert collector.stop() == 0
        stored = [row["span_id"] for row in read.rows("spans", "span_id, seq")]
        told = f"kill {kill} of KILL_SEED={seed}"
        assert load.acknowledged <= set(stored) <= load.sent, told
        assert len(stored) == len(set(stored)), told
    assert len(load.acknowledged) > 1000


@pytest.mark.row(8)
def test_killed_while_it_stops_politely_nothing_acknowledged_is_lost(start: Any, tmp_path: Path, read: Any) -> None:
    arguments = ("--lake", str(tmp_path / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    load = Load()
    for patience in (0.0, 0.02, 0.1):
        collector = start("lightning-collect", *arguments)

        def end(collector: Any = collector, patience: float = patience) -> None:
            collector.popen.terminate()  # SIGTERM with requests in flight
            time.sleep(patience)
            collector.kill()

        load.run(collector.url, end, 0.3)
    collector = start("lightning-collect", *arguments)
    assert collector.stop() == 0
    stored = [row["span_id"] for row in read.rows("spans", "span_id, seq")]
    assert load.acknowledged <= set(stored) <= load.sent
    assert len(stored) == len(set(stored)) > 100


@pytest.mark.row(8)
def test_stopped_politely_under_load_everything_acknowledged_is_parquet(start: Any, tmp_path: Path, read: Any) -> None:
    collector = start(
        "lightning-collect", "--lake", str(tmp_path / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    load, codes = Load(), []
    load.run(collector.url, lambda: codes.append(collector.stop()), 0.4)
    assert codes == [0]
    assert collector.lines[-1].startswith("stored ")
    stored = [row["span_id"] for row in read.rows("spans", "span_id, seq")]
    assert load.acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    assert f"stored {len(stored)} spans" in collector.lines[-1]
