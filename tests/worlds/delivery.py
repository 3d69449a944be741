"""Delivers episodes to a real collector in any order and cut, with resends and kills, and tells whether two lakes agree.

As a program it derives a lake with whatever DuckDB its interpreter has and prints the hashes of every table:

    python delivery.py LAKE NOW CONFIG.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

# Which table, and what names a row of it. What else is a table of the lake is compared too, in the order of all columns.
KEYS = {
    "calls": "trace_id, span_id",
    "scopes": "trace_id, span_id",
    "tools": "trace_id, span_id",
    "rollouts": "rollout_id",
    "rewards": "reward_id, rollout_id",
    "returns": "rollout_id, agent",
    "credits": "trace_id, span_id, choice",
    "samples": "trace_id, span_id, choice",
    "trajectories": "trajectory_id",
}
# When and in which run a row came.
NOT_COMPARED = ("revision", "received_unix_nano", "seq", "collector_id", "live_key", "run")
RAW = ("spans", "events", "metrics")
LARGEST_REQUEST = 60


def tables(lake: Path, *, threads: int = 1) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every derived table, sorted, less what says when it came."""
    with open_tables(lake, threads=threads) as connection:
        views = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
        names = sorted(
            row[0] for row in views if row[0] not in (*RAW, "live_keys") and not row[0].startswith("stored_")
        )
        found = {}
        for name in names:
            columns = [
                row[0] for row in connection.execute(f'describe "{name}"').fetchall() if row[0] not in NOT_COMPARED
            ]
            listed = ", ".join(f'"{column}"' for column in columns)
            order = KEYS.get(name, "all")
            found[name] = [
                tuple(columns),
                *connection.execute(f'select {listed} from "{name}" order by {order}').fetchall(),
            ]
        return found


def hashes(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, str]:
    return {name: hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest() for name, rows in found.items()}


def difference(one: dict[str, list[tuple[Any, ...]]], other: dict[str, list[tuple[Any, ...]]]) -> str | None:
    """The first rows in which two lakes differ, table by table; None when all hashes are equal."""
    ours, theirs = hashes(one), hashes(other)
    if ours == theirs:
        return None
    lines = [
        f"tables differ: {', '.join(sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)))}"
    ]
    for name in sorted({*ours, *theirs}):
        if ours.get(name) == theirs.get(name):
            continue
        a, b = one.get(name, [()]), other.get(name, [()])
        left, right = set(map(repr, a)) - set(map(repr, b)), set(map(repr, b)) - set(map(repr, a))
        lines.append(f"{name}: {len(a) - 1} and {len(b) - 1} rows, {len(left)} and {len(right)} of them only there")
        columns = a[0]
        row = next((row for row in a if repr(row) in left), None)
        twin = row and min(
            (r for r in b if repr(r) in right),
            key=lambda r: sum(x != y for x, y in zip(r, row, strict=True)),
            default=None,
        )
        if row and twin:
            unequal = [(c, x, y) for c, x, y in zip(columns, row, twin, strict=True) if repr(x) != repr(y)]
            lines.append(f"  {row[:2]}: " + "; ".join(f"{c}: {str(x)[:300]} | {str(y)[:300]}" for c, x, y in unequal))
        else:
            lines += [
                f"  only in one: {str(dict(zip(columns, r, strict=True)))[:600]}"
                for r in (a if left else b)
                if repr(r) in (left or right)
            ][:2]
    return "\n".join(lines)


def agree(one: dict[str, list[tuple[Any, ...]]], other: dict[str, list[tuple[Any, ...]]]) -> None:
    """Fail with the first rows in which two lakes differ."""
    if unlike := difference(one, other):
        raise AssertionError(unlike)


class Delivery:
    """Parcels in random order and pieces to a collector that is killed on the way; every piece acknowledged in the end."""

    def __init__(
        self, start: Callable[..., Any], lake: Path, seed: str, *, kills: int = 0, resends: float = 0.1
    ) -> None:
        self.start, self.lake = start, lake
        self.rng = random.Random(seed)
        self.kills, self.resends = kills, resends
        self.killed = 0
        self.collector = self._collector()

    def _collector(self) -> Any:
        return self.start(
            "lightning-collect", "--lake", str(self.lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
        )

    def send(self, parcels: list[Any], portions: int, between: Callable[[int], None]) -> None:
        """Everything, in `portions`; after each, once what was acknowledged is in Parquet, `between(portion)`."""
        from episodes import requests

        rng = self.rng
        queue = [*parcels, *rng.sample(parcels, int(len(parcels) * self.resends))]
        rng.shuffle(queue)
        cuts = sorted(rng.sample(range(1, len(queue)), portions - 1))
        kill_at = set(rng.sample(range(portions), min(self.kills, portions)))
        for portion, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(queue)], strict=True)):
            bodies: list[tuple[str, bytes]] = []
            while begin < end:
                size = rng.choice([1, 2, 5, LARGEST_REQUEST])
                bodies += list(requests(queue[begin : min(begin + size, end)]))
                begin += size
            dies_in = rng.randrange(len(bodies)) if portion in kill_at else -1
            for number, (path, body) in enumerate(bodies):
                if number == dies_in:
                    self._kill_while_sending(path, body)
                self.collector.post(path, body, "application/x-protobuf")
            self.collector.post("/flush")
            between(portion)

    def _kill_while_sending(self, path: str, body: bytes) -> None:
        """kill -9 with a request on its way; whether it was acknowledged or not, it is sent again."""

        def post() -> None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, OSError):
                self.collector.post(path, body, "application/x-protobuf")

        sender = threading.Thread(target=post)
        sender.start()
        time.sleep(self.rng.random() * 0.01)
        self.collector.kill()
        sender.join()
        self.killed += 1
        self.collector = self._collector()


def main() -> None:
    lake, now, config = Path(sys.argv[1]), int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    run_transform(lake, TransformConfig.model_validate(config), now_unix_nano=now)
    import duckdb

    print(json.dumps({"duckdb": duckdb.__version__, "hashes": hashes(tables(lake))}))


if __name__ == "__main__":
    main()
