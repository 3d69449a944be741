"""Frames to Parquet bytes: zstd 1 (3 when files are merged), 4 MiB checksummed pages, row groups of 64 k, origin in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from otel_lightning.collector.decode import decode
from otel_lightning.collector.recovery import Content, Origin
from otel_lightning.collector.wal import Frame

ROW_GROUP_ROWS = 64 * 1024
PAGE_BYTES = 4 << 20  # 8% smaller files than with 1 MiB pages, at no cost to queries


class ParquetConverter:
    """The real converter: OTLP in, one Parquet file a signal out."""

    def convert(self, frames: Sequence[Frame], origin: Origin) -> dict[str, Content]:
        """A file for each signal that has rows; equal frames give equal bytes."""
        return {
            signal: Content(parquet_bytes(table, origin), table.num_rows)
            for signal, table in decode(frames, origin.collector_id).items()
        }

    def inspect(self, data: bytes) -> tuple[Origin, int] | None:
        """Origin and rows from a file's footer; None when it is not whole or not ours."""
        try:
            footer = pq.read_metadata(pa.BufferReader(data))
            named = footer.metadata or {}
            origin = Origin(
                named[b"lightning.collector_id"].decode(),
                int(named[b"lightning.segment"]),
                int(named[b"lightning.first_seq"]),
                int(named[b"lightning.last_seq"]),
                named.get(b"lightning.stem", b"").decode(),
                tuple(json.loads(named.get(b"lightning.replaces", b"[]"))),
            )
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return None
        return origin, footer.num_rows


def read_rows(source: Path | bytes, columns: list[str] | None = None) -> pa.Table:
    """The rows of one data file, every page's checksum verified; ArrowException or OSError when it is damaged."""
    return pq.read_table(
        pa.BufferReader(source) if isinstance(source, bytes) else source,
        columns=columns,
        partitioning=None,  # type: ignore[arg-type]  # `day=` in the path is no column
        page_checksum_verification=True,
        # One thread: commands are short, and one that ends while Arrow's pool still starts is aborted now and then.
        use_threads=False,
        pre_buffer=False,
    )


def parquet_bytes(table: pa.Table, origin: Origin, compression_level: int = 1) -> bytes:
    """`table` as one Parquet file in memory."""
    named = {f"lightning.{key}": str(value) for key, value in vars(origin).items() if key not in ("stem", "replaces")}
    if origin.stem:
        named |= {"lightning.stem": origin.stem, "lightning.replaces": json.dumps(origin.replaces)}
    # A table that was read from other files brings along what they said of themselves.
    brought = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({**brought, **named}),
        sink,
        compression="zstd",
        compression_level=compression_level,
        row_group_size=ROW_GROUP_ROWS,
        data_page_size=PAGE_BYTES,
        write_page_checksum=True,
        store_schema=True,
    )
    return sink.getvalue().to_pybytes()
