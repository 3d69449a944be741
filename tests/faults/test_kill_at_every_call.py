"""kill -9 at the N-th file operation, for every N: whatever is acknowledged is there after the next start, once.

strace counts each system call by itself and sends the signal when the process enters it, so each run ends between two operations on the lake:
creating, writing and syncing the log, rolling it, writing, syncing and renaming Parquet and manifest, removing the
log, and the same during recovery.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from victim import Victim, needed

pytestmark = pytest.mark.faults

CALLS = ("openat", "writev", "fsync", "fdatasync", "rename", "unlink", "mkdir")
MANY = 200
COLLECTOR = "0123456789abcdef"


def paths(lake: Path) -> list[str]:
    """Everything in the lake that the driver will touch, by name: strace filters by exact paths."""
    now = datetime.datetime.now(datetime.UTC)
    days = {f"day={(now + datetime.timedelta(hours=hours)):%Y-%m-%d}" for hours in (0, 1)}
    found = [lake, *(lake / name for name in ("wal", "manifest", "spans", "events", "metrics", "quarantine"))]
    for segment in range(1, 7):
        name = f"{COLLECTOR}-{segment:08d}"
        found += [lake / "wal" / f"{segment:08d}.wal"]
        found += [lake / "manifest" / f"{name}.json", lake / "manifest" / f".{name}.json.tmp"]
        for day in days:
            folder = lake / "spans" / day
            found += [folder, folder / f"{name}.parquet", folder / f".{name}.parquet.tmp"]
    return [part for path in found for part in ("-P", str(path))]


def killed(victim: Victim, call: str, number: int, count: int = 6) -> bool:
    """Run the driver and kill it at its `number`-th `call` on the lake; False when it makes fewer."""
    program = needed("strace", "strace")
    filters = ["-qq", "-o", "/dev/null", *paths(victim.lake), "-e", f"trace={call}"]
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    done = victim.run(program, *filters, "-e", inject, count=count, more=("one-thread",))
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode in (0, -9, 137), done.stderr
    return done.returncode != 0


def with_identity(victim: Victim) -> None:
    """A lake whose collector id, and so every file name, is known beforehand."""
    (victim.lake / "wal").mkdir(parents=True)
    (victim.lake / "wal" / "collector.json").write_text(json.dumps({"collector_id": COLLECTOR}))


@pytest.mark.row(1, 2, 3)
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_call_of_ingest_roll_and_conversion(tmp_path: Path, call: str) -> None:
    for number in range(1, MANY):
        victim = Victim(tmp_path / str(number) / "lake", tmp_path / str(number) / "told")
        with_identity(victim)
        died = killed(victim, call, number)
        stored = victim.recount()
        assert len(stored) <= len(victim.acknowledged()) + 1, "more than the one request that was under way"
        if not died:
            break  # there are fewer than `number` such calls: all of them were covered
    assert stored == list(range(1, 7))
    # Two segments, six groups, two Parquet files and two entries: a filter that matched nothing would end at once.
    assert (
        number
        > {"writev": 6 + 4, "fdatasync": 6 + 4, "fsync": 6, "rename": 4, "unlink": 2, "openat": 10, "mkdir": 5}[call]
    )


@pytest.mark.row(5)
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_call_of_recovery_again_and_again(victim: Victim, call: str) -> None:
    with_identity(victim)
    # Dies while the first segment becomes Parquet: a segment and a temporary file are left.
    assert killed(victim, "rename", 1)
    assert list((victim.lake / "wal").glob("*.wal"))
    for number in range(1, MANY):
        # The lake is not renewed: each start finds what the one before it left, as in a crash loop.
        if not killed(victim, call, number, count=0):
            break
    victim.recount()


@pytest.mark.row(12, 15)
@pytest.mark.parametrize(
    ("call", "error"), [("writev", "ENOSPC"), ("writev", "EIO"), ("fdatasync", "EIO"), ("fdatasync", "ENOSPC")]
)
@pytest.mark.parametrize("when", [1, 2, 3])
def test_an_error_of_the_log_refuses_one_request_and_costs_no_other(
    victim: Victim, call: str, error: str, when: int
) -> None:
    with_identity(victim)
    log = str(victim.lake / "wal")
    program = needed("strace", "strace")
    filters = [part for segment in range(1, 6) for part in ("-P", f"{log}/{segment:08d}.wal")]
    command = [program, "-f", "-qq", "-o", "/dev/null", *filters, "-e", f"trace={call}"]
    done = victim.run(*command, "-e", f"inject={call}:error={error}:when={when}")
    assert done.returncode == 0, done.stderr
    assert "complete [('disk_" in done.stdout
    assert sorted(set(range(1, 7)) - victim.acknowledged()) == [when]
    assert victim.recount() == sorted(victim.acknowledged())


@pytest.mark.row(13)
@pytest.mark.parametrize("call", ["writev", "fdatasync", "rename", "fsync"])
def test_an_error_while_a_segment_becomes_parquet_keeps_the_log(victim: Victim, call: str) -> None:
    with_identity(victim)
    program = needed("strace", "strace")
    targets = [part for part in paths(victim.lake) if part == "-P" or ("/spans/" in part or "/manifest/" in part)]
    pairs = [
        (flag, path)
        for flag, path in zip(paths(victim.lake)[::2], paths(victim.lake)[1::2], strict=True)
        if path in targets
    ]
    filters = [part for pair in pairs for part in pair]
    command = [program, "-f", "-qq", "-o", "/dev/null", *filters, "-e", f"trace={call}"]
    done = victim.run(*command, "-e", f"inject={call}:error=ENOSPC:when=1..3")
    assert done.returncode == 0, done.stderr
    assert victim.acknowledged() == set(range(1, 7)), "the log alone makes durable; conversion may wait"
    assert victim.recount() == list(range(1, 7))
