"""Which components are worked on together, and their raw rows: as many as fit the memory, each file read as seldom as can be.

A bucket holds whole components, so no step ever misses what it needs and any number of buckets gives the same rows.
Components that lie in one file each stay with their neighbours in it; those that lie in several (a conversation that goes on
next day) come last, and are first sorted into buckets on disk if there are too many of them for one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb

from otel_lightning.store.lake import Lake
from otel_lightning.transforms import steps
from otel_lightning.transforms.touched import count, raw_rows

MIB = 1 << 20
# Steps hold what was said several times over while they run (spans, messages, calls), joins and sorts aside. A bucket that
# takes DuckDB to its limit costs a tenth more: each block put out gives the freed pages back to the system, to be faulted in anew.
COPIES = 8
# Records are sorted into buckets on disk, once, if the buckets would read them more often than this.
READS = 2.0


@dataclass(frozen=True)
class Bucket:
    """One share of a run: its number, the files of spans to read, or the folder where its rows were sorted into."""

    number: int
    files: list[str]
    sorted_spans: Path | None
    sorted_events: Path | None


def plan(
    connection: duckdb.DuckDBPyConnection, lake: Lake, folder: Path, memory_mb: int, number: int | None
) -> list[Bucket]:
    """`bucket_of` (node, bucket) over `working`, and the buckets. `number` forces so many, wherever their rows lie.

    `folder` takes what has to be sorted; the caller removes it.
    """
    connection.execute(
        "create or replace temp table lies as "
        "select node, signal, file, sum(rows)::bigint as rows from keys semi join working using (node) "
        "where rows > 0 group by all"
    )
    files = [row[0] for row in connection.execute("select distinct file from lies where signal = 'spans'").fetchall()]
    connection.execute("create or replace temp table row_bytes (file varchar, bytes double)")
    if files:
        source = steps.path_list([str(lake.root / file) for file in files])
        connection.execute(
            f"insert into row_bytes select substr(file_name, {len(str(lake.root)) + 2}), "
            f"sum(total_uncompressed_size) / any_value(file_rows) from parquet_metadata({source}) join ("
            f"select file_name as name, num_rows as file_rows from parquet_file_metadata({source})) "
            "on name = file_name group by file_name"
        )
    limit = memory_mb * MIB / COPIES
    connection.execute(
        f"""
        create or replace temp table weighed as
        select
            working.part, coalesce(sum(lies.rows * row_bytes.bytes), 0)::double as bytes,
            coalesce(min(row_bytes.file), '') as file, count(distinct row_bytes.file) > 1 as roams
        from working
        left join lies on lies.node = working.node and lies.signal = 'spans'
        left join row_bytes using (file)
        group by working.part;
        -- What fits together is one bucket, wherever it lies.
        update weighed set roams = false where (select sum(bytes) from weighed) <= {limit}
        """
    )
    order = "chosen.share" if number is not None else "chosen.roams, chosen.share"
    if number is not None:
        chosen = f"('0x' || right(sha256(part), 4))::int % {number:d}"
    else:
        # A file that fits is never torn.
        chosen = f"""
            case when roams then floor(sum(bytes) over (partition by roams order by file, part) / {limit})
                when sum(bytes) over (partition by roams, file) <= {limit}
                    then floor(min(before) over (partition by roams, file) / {limit})
                else floor(before / {limit}) end"""
    connection.execute(
        f"""
        create or replace temp table bucket_of as
        with running as (
            select *, sum(bytes) over (partition by roams order by file, part) - bytes as before from weighed
        ),
        chosen as (select part, roams, {chosen} as share from running)
        select working.node, chosen.roams, (dense_rank() over (order by {order}))::int as bucket
        from working join chosen using (part)
        """
    )
    found = connection.execute(
        """
        select bucket, bool_or(roams), coalesce(list(distinct file order by file) filter (where signal = 'spans'), [])
        from bucket_of left join lies using (node)
        group by bucket order by bucket
        """
    ).fetchall()
    wanders = [row for row in found if row[1] or number is not None]
    sorted_folders: dict[str, Path | None] = {"spans": None, "events": None}
    if len(wanders) > 1:
        of = {file for row in wanders for file in row[2]}
        numbers = ", ".join(str(row[0]) for row in wanders)
        sorted_folders["spans"] = _sort(connection, lake, folder, "spans", sorted(of), f"bucket in ({numbers})")
    if _reads_of_events(connection) > READS:
        rows = connection.execute("select distinct file from lies where signal = 'events' order by 1").fetchall()
        sorted_folders["events"] = _sort(connection, lake, folder, "events", [row[0] for row in rows], "true")
    return [
        Bucket(
            bucket,
            paths,
            sorted_folders["spans"] if len(wanders) > 1 and (roams or number is not None) else None,
            sorted_folders["events"],
        )
        for bucket, roams, paths in found
    ]


def _reads_of_events(connection: duckdb.DuckDBPyConnection) -> float:
    """How often records would be read if every bucket read the whole files that it has any in."""
    row = connection.execute(
        """
        with of_file as (
            select file, sum(rows) as rows, count(distinct bucket) as buckets
            from lies join bucket_of using (node)
            where signal = 'events'
            group by file
        )
        select coalesce(sum(rows * buckets) / sum(rows), 0)::double from of_file
        """
    ).fetchone()
    return float(row[0]) if row else 0.0


NODE = {"spans": "trace_id", "events": "'e:' || content_sha256"}


def _sort(
    connection: duckdb.DuckDBPyConnection, lake: Lake, folder: Path, signal: str, files: list[str], which: str
) -> Path:
    """The rows of some buckets, each bucket's in a folder of its own."""
    target = folder / signal
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    connection.execute(
        f"copy (select raw.* exclude (file), bucket from ({raw_rows(lake, signal, files)}) as raw "
        f"join bucket_of on bucket_of.node = {NODE[signal]} where {which}) "
        f"to {steps.literal(str(target))} (format parquet, partition_by (bucket), compression lz4, overwrite_or_ignore)"
    )
    return target


def load(connection: duckdb.DuckDBPyConnection, lake: Lake, bucket: Bucket) -> None:
    """`spans` and `events` of a bucket, and `bucket_nodes`."""
    connection.execute(
        f"create or replace temp table bucket_nodes as select node from bucket_of where bucket = {bucket.number:d}"
    )
    events = connection.execute(
        "select distinct file from lies semi join bucket_nodes using (node) where signal = 'events' order by 1"
    ).fetchall()
    for signal, folder, files in (
        ("spans", bucket.sorted_spans, bucket.files),
        ("events", bucket.sorted_events, [row[0] for row in events]),
    ):
        parts = [] if folder is None else sorted((folder / f"bucket={bucket.number}").glob("*.parquet"))
        if folder is not None and parts:
            source = steps.path_list([str(path) for path in parts])
            query = f"select * from read_parquet({source}, hive_partitioning = false)"
        elif folder is not None or not files:
            query = f"select * exclude (file) from ({raw_rows(lake, signal, [])})"
        else:
            query = (
                f"select * exclude (file) from ({raw_rows(lake, signal, files)}) where {NODE[signal]} in "
                "(select node from bucket_nodes)"
            )
            if signal == "spans":
                # A big file is sorted by trace: what lies outside of the bucket's range is not even decompressed.
                low, high = connection.execute("select min(node), max(node) from bucket_nodes where node not like 'e:%'").fetchone() or ("", "")  # fmt: skip
                query += f" and trace_id between {steps.literal(low or '')} and {steps.literal(high or '')}"
        connection.execute(f"create or replace temp table {signal} as {query}")


def loaded_spans(connection: duckdb.DuckDBPyConnection) -> int:
    """How many spans the bucket holds, copies included."""
    return count(connection, "select count(*) from spans")
