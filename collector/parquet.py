"""Frames to Parquet bytes: zstd 1, 4 MiB checksummed pages, row groups of 64 k."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from otel_lightning.collector.decode import decode
from otel_lightning.collector.wal import Frame

ROW_GROUP_ROWS = 64 * 1024
PAGE_BYTES = 4 << 20


def convert(frames: Sequence[Frame], collector_id: str) -> dict[str, tuple[bytes, int]]:
    """`{signal: (Parquet file, rows)}` for the frames of one segment; equal frames give equal bytes."""
    return {signal: (parquet_bytes(table), table.num_rows) for signal, table in decode(frames, collector_id).items()}


def parquet_bytes(table: pa.Table) -> bytes:
    """`table` as one Parquet file in memory."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP_ROWS,
        data_page_size=PAGE_BYTES,
        write_page_checksum=True,
        store_schema=True,
    )
    return sink.getvalue().to_pybytes()
