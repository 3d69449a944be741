"""lightning-collect compact: many small files of a day become few big ones, while the collector goes on.

Files of one collector, signal and ingest day are merged in the order of the log, as many as fit the memory allowed,
sorted by (trace, start), zstd 3. Copies that are equal in everything but their time of arrival become one: sent twice,
stored once. Old files stay for a grace period, for readers that have begun with them, and go then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_lightning.app.errors import LightningError
from otel_lightning.collector.recovery import Content, Converter, Origin
from otel_lightning.collector.rewrite import (
    Live,
    Make,
    drawers,
    maintenance,
    remove_replaced,
    remove_unfinished,
    replace_files,
)
from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake

if TYPE_CHECKING:
    import pyarrow as pa

SORTED_BY = {
    "spans": ("trace_id", "start_unix_nano", "received_unix_nano", "seq"),
    "events": ("received_unix_nano", "seq"),
    "metrics": ("received_unix_nano", "seq"),
}
OURS = ("collector_id", "seq", "received_unix_nano")


@dataclass
class Compacted:
    """What one run did."""

    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    copies: int = 0
    removed: int = 0


@dataclass(frozen=True)
class Tools:
    """What a compaction needs beside a disk: how bytes become rows and back, and who else must wait."""

    converter: Converter
    merge: Callable[[str, Compacted], Make]
    loaded_bytes: Callable[[Live], int]
    lock: Callable[[Lake], AbstractContextManager[None]]


def parquet_tools(lake: Lake) -> Tools:
    """Real Parquet, and the lake's lock."""
    from otel_lightning.collector.parquet import ParquetConverter

    sizes: dict[str, int] = {}

    def loaded_bytes(item: Live) -> int:
        path = item[1].path
        if path not in sizes:
            sizes[path] = _loaded_bytes(lake, item)
        return sizes[path]

    return Tools(ParquetConverter(), merge, loaded_bytes, maintenance)


def compact(
    disk: Disk,
    lake: Lake,
    tools: Tools,
    *,
    memory_bytes: int,
    grace_s: float,
    say: Callable[[str], None] = lambda text: None,
    wait: Callable[[float], None] = time.sleep,
) -> Compacted:
    """Merge what can be merged, wait `grace_s`, remove what was replaced. Safe to interrupt anywhere and to repeat."""
    done = Compacted()
    with tools.lock(lake):
        remove_unfinished(disk, lake, tools.converter)
        done.removed = remove_replaced(disk, lake, time.time_ns() - int(grace_s * 1e9))
    for drawer, found in drawers(disk, lake).items():
        # What arrives meanwhile is the next run's: a collector that writes files as fast as they are merged never ended this one.
        newest = max(entry.segment for entry, _ in found)
        # The lock is held for one merge at a time: a collector that starts waits no longer than that.
        while True:
            with tools.lock(lake):
                files = [item for item in drawers(disk, lake).get(drawer, []) if item[0].segment <= newest]
                group = next(groups(files, tools.loaded_bytes, memory_bytes), None)
                if group is None:
                    break
                entry = replace_files(disk, lake, drawer, group, tools.merge(drawer.signal, done), time.time_ns())
            done.files_before += len(group)
            done.files_after += len(entry.files)
            say(f"{drawer.signal} day={drawer.day}: {len(group)} files became {len(entry.files)}")
    if done.files_before:
        wait(grace_s)
        with tools.lock(lake):
            done.removed += remove_replaced(disk, lake, time.time_ns() - int(grace_s * 1e9))
    return done


def groups(files: Sequence[Live], loaded_bytes: Callable[[Live], int], memory_bytes: int) -> Iterator[list[Live]]:
    """Runs of neighbouring files that are worth merging: at least two, together within `memory_bytes`."""
    group: list[Live] = []
    size = 0
    for file in files:
        own = loaded_bytes(file)
        # One that fills half of the space by itself is big enough.
        if own > memory_bytes // 2 or size + own > memory_bytes:
            if len(group) > 1:
                yield group
            group, size = [], 0
        if own <= memory_bytes // 2:
            group.append(file)
            size += own
    if len(group) > 1:
        yield group


def merge(signal: str, done: Compacted) -> Make:
    """The Parquet way from several files' bytes to one's."""
    import pyarrow as pa

    from otel_lightning.collector.parquet import parquet_bytes, read_rows

    def make(contents: Sequence[bytes], origin: Origin) -> Content | None:
        try:
            tables = [read_rows(data) for data in contents]
        except (pa.ArrowException, OSError):
            raise LightningError("a data file cannot be read; run lightning-collect check") from None
        # Files of an older version may lack columns that newer ones have.
        table = pa.concat_tables(tables, promote_options="default").replace_schema_metadata(tables[-1].schema.metadata)
        table = table.sort_by([(column, "ascending") for column in SORTED_BY[signal]])
        kept = without_copies(table, signal)
        done.copies += table.num_rows - kept.num_rows
        content = Content(parquet_bytes(kept, origin, compression_level=3), kept.num_rows)
        done.bytes_before += sum(map(len, contents))
        done.bytes_after += len(content.data)
        return content

    return make


def without_copies(table: pa.Table, signal: str) -> pa.Table:
    """Each row once: of rows that are equal in everything their sender said, the first to arrive."""
    identity = ["trace_id", "span_id"] if signal == "spans" else ["content_sha256"]
    counted = table.select(identity).group_by(identity).aggregate([([], "count_all")])
    if counted.num_rows == table.num_rows:
        return table
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    seen: dict[bytes, tuple[int, int, int]] = {}
    suspects = counted.filter(pc.greater(counted["count_all"], 1)).drop_columns("count_all")
    numbered = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    rows = numbered.select([*identity, "_row"]).join(suspects, identity, join_type="inner")["_row"].to_pylist()
    said = [name for name in table.column_names if name not in OURS]
    gone: set[int] = set()
    for index in rows:
        row = table.slice(index, 1)
        key = hashlib.sha256(repr(row.select(said).to_pylist()).encode("utf-8", "surrogatepass")).digest()
        arrival = (row["received_unix_nano"][0].as_py(), row["seq"][0].as_py(), index)
        first = seen.setdefault(key, arrival)
        if first != arrival:
            gone.add(max(first, arrival)[2])
            seen[key] = min(first, arrival)
    return table.take([index for index in range(table.num_rows) if index not in gone]) if gone else table


def _loaded_bytes(lake: Lake, live: Live) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = lake.root / live[1].path
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise  # the disk's, not the file's
        raise LightningError(
            f"{path}: is not what was written there; run lightning-collect check --lake {lake.root}"
        ) from None
    return sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
