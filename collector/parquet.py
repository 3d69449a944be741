"""Frames to Parquet bytes: zstd 1 (3 when files are merged), 4 MiB checksummed pages, row groups of 64 k, origin in the file's metadata."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from otel_lightning.collector.decode import decode
from otel_lightning.collector.recovery import Content, Origin
from otel_lightning.collector.schema import DICTIONARY_BYTES, ROW_GROUP_ROWS, WITHOUT_DICTIONARY
from otel_lightning.collector.wal import Frame

# Minimum and maximum help to skip row groups by what is looked for; of long texts nobody looks for them.
WITHOUT_STATISTICS = ("attributes_", "resource_attributes", "scope_attributes", "events", "links", "body", "point")
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
    said = {**brought, **named}
    # As `store_schema` writes it, but for the texts that came as dictionaries: readers get them as texts.
    plain = table.schema.remove_metadata()  # with it, a schema cannot be looked up in older Arrow
    stored = _with_texts(plain).with_metadata(said).serialize()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=compression_level,
        data_page_size=PAGE_BYTES,
        write_page_checksum=True,
        use_dictionary=_with_dictionary(plain),  # type: ignore[arg-type]
        dictionary_pagesize_limit=DICTIONARY_BYTES,
        write_statistics=_with_statistics(plain),  # type: ignore[arg-type]
        store_schema=False,
    ) as writer:
        writer.write_table(table, ROW_GROUP_ROWS)
        writer.add_key_value_metadata({**said, "ARROW:schema": base64.b64encode(stored.to_pybytes()).decode()})
    return sink.getvalue().to_pybytes()


@functools.cache
def _with_texts(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_as_texts(field.type)) for field in schema])


def _as_texts(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_map(type_):
        return pa.map_(_as_texts(type_.key_type), _as_texts(type_.item_type))
    return type_.value_type if pa.types.is_dictionary(type_) else type_


@functools.cache
def _with_statistics(schema: pa.Schema) -> list[str]:
    return [
        field.name
        for field in schema
        if not field.name.startswith(WITHOUT_STATISTICS) and not pa.types.is_nested(field.type)
    ]


@functools.cache
def _with_dictionary(schema: pa.Schema) -> list[str]:
    return [path for path in _leaves(schema) if path not in WITHOUT_DICTIONARY]


def _leaves(schema: pa.Schema) -> list[str]:
    """Column paths as Parquet names them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    found = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [found.column(index).path for index in range(len(found))]
