"""Files of many small runs become few: each table's files of one size are merged when there are enough of them.

Only live rows are kept. A merged file is written, fsynced and named by the next manifest before any file that it replaces is
removed, and a file goes only when no kept manifest names it: the newest few, those of the last hour (a reader may have begun
with one), and those that a policy or a training run was made from. Killed anywhere, the next run does the rest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path

import duckdb

from otel_lightning.store.lake import Lake
from otel_lightning.transforms.derived import STORED, Manifest, live_keys, live_rows, write_parquet

FILES = 8  # so many files of one size become one: a row is rewritten once for each eightfold growth of its table
SMALLEST_BYTES = 1 << 20  # below this all are of one size
LARGEST_BYTES = 256 << 20  # a file of this size is not rewritten
KEPT_MANIFESTS = 3
KEPT_S = 3600.0
ORDERED = {"calls": "live_key, step", "trajectories": "trajectory_id", "rewards": "reward_id"}
NAMED = re.compile(r"run=(\d+)")


def merge_files(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest) -> int:
    """Merge what has become many in the files that `manifest` names, and name the merged ones; how many were replaced."""
    replaced = 0
    for table in STORED:
        for paths in _many(lake, manifest.files[table]):
            of_these = Manifest(**{**manifest.__dict__, "files": {**manifest.files, table: paths}})
            path = f"derived/{table}/run={manifest.run:06d}/merged-{_number(paths)}.parquet"
            order = ORDERED.get(table, "live_key")
            write_parquet(
                connection, lake, f"{live_rows(lake, of_these, table)} order by {order}", path, compression_level=3
            )
            manifest.files[table] = [name for name in manifest.files[table] if name not in paths] + [path]
            replaced += len(paths)
    if len(manifest.files["live"]) > FILES:
        path = f"derived/live/run={manifest.run:06d}-merged.parquet"
        query = f"select table_name, key, revision as run, false as gone from ({live_keys(lake, manifest)}) order by key, table_name"
        replaced += len(manifest.files["live"])
        write_parquet(connection, lake, query, path, compression_level=3)
        manifest.files["live"] = [path]
    replaced += _merge_keys(connection, lake, manifest)
    return replaced


def _merge_keys(connection: duckdb.DuckDBPyConnection, lake: Lake, manifest: Manifest) -> int:
    """The index as one file, without what the raw files no longer hold; `keys` is the whole of it."""
    paths = manifest.files["keys"]
    if len(paths) <= FILES:
        return 0
    path = f"derived/keys/run={manifest.run:06d}/merged.parquet"
    manifest.files["keys"] = [
        write_parquet(
            connection, lake, "select distinct * from keys order by node, kind, key", path, compression_level=3
        )
    ]
    return len(paths)


def remove_unnamed(lake: Lake) -> int:
    """Remove the files of earlier runs that no kept manifest names, and the manifests that are not kept; how many files."""
    folder = lake.derived / "manifests"
    manifests = sorted(folder.glob("run=*.json"))
    wanted = _named_by_policies(lake)
    young = time.time() - KEPT_S
    kept = {
        path
        for place, path in enumerate(manifests)
        if place >= len(manifests) - KEPT_MANIFESTS or path.stem in wanted or path.stat().st_mtime > young
    }
    named: set[str] = set()
    for path in (*kept, lake.derived / "manifest.json"):
        named |= {name for names in json.loads(path.read_text(encoding="utf-8"))["files"].values() for name in names}
    removed = 0
    for path in lake.derived.rglob("*.parquet"):
        relative = path.relative_to(lake.root).as_posix()
        if relative not in named and not relative.startswith("derived/tmp/"):
            path.unlink(missing_ok=True)
            removed += 1
    for path in set(manifests) - kept:
        path.unlink(missing_ok=True)
    for path in sorted(lake.derived.glob("*/run=*")):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return removed


def _many(lake: Lake, paths: list[str]) -> Iterable[list[str]]:
    """Groups of files of one size that at least FILES runs wrote, the smallest first."""
    sizes: dict[int, list[str]] = {}
    for path in paths:
        size = (lake.root / path).stat().st_size
        if size < LARGEST_BYTES:
            sizes.setdefault(max(0, (size // SMALLEST_BYTES).bit_length() - 1) // 3, []).append(path)
    return [group for _, group in sorted(sizes.items()) if len(_runs(group)) >= FILES]


def _number(paths: list[str]) -> str:
    """A name that says how far a merged file reaches back."""
    return f"{_runs(paths)[0]:06d}-{len(paths):04d}"


def _runs(paths: list[str]) -> list[int]:
    return sorted({int(found[1]) for path in paths if (found := NAMED.search(path))})


def _named_by_policies(lake: Lake) -> set[str]:
    """The runs (run=000042) that a published policy or a training run beside the lake says it was made from."""
    found: set[str] = set()
    for path in (
        *lake.policies.glob("*/policy.json"),
        *lake.root.glob("runs/*/*.json"),
        *Path("runs").glob("*/*.json"),
    ):
        try:
            found |= {f"run={number}" for number in NAMED.findall(path.read_text(encoding="utf-8"))}
        except (OSError, UnicodeDecodeError):
            continue
    return found
