"""The native decoder (`wire.c`), where a compiler was at hand when this was installed.

`span_count` and `spans_table` answer only for plain requests and return None for the rest, or when there is no
library: the Python path then decides, and gives the same answer where both do. LIGHTNING_COLLECT_DECODER=python
turns the library off.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import orjson

from otel_lightning.collector.schema import (
    ATTRIBUTE_MAPS,
    CHOICE,
    CHOICE_PREFIX,
    DICTIONARY_BYTES,
    EVENT,
    LINK,
    MOVED,
    PROMPT_TOKEN_IDS,
    ROW_GROUP_ROWS,
    SHARED,
    SPANS,
    STR,
    WITHOUT_DICTIONARY,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from otel_lightning.collector.wal import Frame

Bytes = bytes | bytearray | memoryview
ABI = 4  # wire.c's WIRE_ABI: a library built from an older file is not used
SHORT_BYTES = 64 << 10
VARIABLE = "LIGHTNING_COLLECT_DECODER"
LIBRARY = Path(__file__).with_name("wire" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))


class _Str(ctypes.Structure):
    _fields_ = [("p", ctypes.c_void_p), ("n", ctypes.c_size_t)]


class _Buf(ctypes.Structure):
    _fields_ = [("p", ctypes.c_void_p), ("n", ctypes.c_int64), ("room", ctypes.c_int64)]


class _Column(ctypes.Structure):
    _fields_ = [
        ("data", _Buf),
        ("offsets", _Buf),
        ("valid", _Buf),
        ("index", _Buf),
        ("rows", ctypes.c_int64),
        ("nulls", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("shared", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("slot_room", ctypes.c_int64),
        ("last", ctypes.c_int64),
    ]


class _Frame(ctypes.Structure):
    _fields_ = [("body", _Str), ("received", ctypes.c_uint64), ("seq", ctypes.c_uint64)]


class _Moved(ctypes.Structure):
    _fields_ = [("key", _Str), ("kind", ctypes.c_int)]


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("columns", ctypes.POINTER(_Column)),
        ("column_count", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("slow_doubles", ctypes.c_int64),
        ("doubles", _Buf),
    ]


def _load(path: Path = LIBRARY) -> Any:
    if os.environ.get(VARIABLE) == "python":
        return None
    try:
        library: Any = ctypes.CDLL(str(path))
        if library.wire_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    # What is over in microseconds is called without giving up Python's lock: having it back would take longer.
    library.short = ctypes.PyDLL(str(path))
    for handle in (library, library.short):
        handle.wire_check.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
        handle.wire_check.restype = ctypes.c_int64
        handle.wire_crc32c.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64)
        handle.wire_crc32c.restype = ctypes.c_int64
    library.short.wire_crc32c_behind.argtypes = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int64)
    library.short.wire_crc32c_behind.restype = ctypes.c_uint32
    library.wire_decode.argtypes = (
        ctypes.POINTER(_Frame),
        ctypes.c_int64,
        ctypes.POINTER(_Moved),
        ctypes.c_int64,
        _Str,
        _Str,
        ctypes.c_uint64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_char_p,
    )
    library.wire_decode.restype = ctypes.POINTER(_Decoder)
    library.wire_free.argtypes = (ctypes.POINTER(_Decoder),)
    library.wire_free.restype = None
    return library


_library = _load()


def available() -> bool:
    """Whether requests are decoded natively in this process."""
    return _library is not None


def crc32c(data: Bytes, before: int = 0) -> int:
    """CRC32C of `data`, going on from the checksum of what lies `before` it."""
    if _library is not None:
        library = _library.short if len(data) <= SHORT_BYTES else _library
        found = library.wire_crc32c(before, _address(data), len(data))
        if found >= 0:
            return found
    return google_crc32c.extend(before, bytes(data))


def crc32c_behind(before: int, crc: int, length: int) -> int | None:
    """CRC32C of `length` bytes that alone have `crc`, behind bytes that have `before`; None without the library."""
    return None if _library is None else _library.short.wire_crc32c_behind(before, crc, length)


def span_count(body: Bytes) -> int | None:
    """How many spans a trace request holds, every one of them valid; None when the Python path must look."""
    found = check(body)
    return None if found is None else found[0]


def check(body: Bytes) -> tuple[int, int | None] | None:
    """`span_count` and the body's CRC32C, which costs next to nothing on the way; None where that cannot be had."""
    if _library is None:
        return None
    library, crc = _library.short if len(body) <= SHORT_BYTES else _library, ctypes.c_int64()
    found = library.wire_check(_address(body), len(body), crc)
    return None if found < 0 else (found, crc.value if crc.value >= 0 else None)


def spans_table(frames: Sequence[Frame], collector_id: str) -> pa.Table | None:
    """`decode`'s table of spans; None when the Python path must make it.

    Texts that rows share are a dictionary there, in order of appearance, just as Parquet stores them.
    """
    if _library is None:
        return None
    import pyarrow as pa

    decoded = _decode(frames)
    return None if decoded is None else _Table(pa, decoded).table(collector_id)


def _address(body: Bytes) -> int | bytes | None:
    """What ctypes takes as the address of `body`, which the caller keeps alive."""
    if isinstance(body, bytes):
        return body
    if not len(body):
        return None
    if isinstance(body, memoryview) and body.readonly:
        import pyarrow as pa

        return pa.py_buffer(body).address  # ctypes itself looks into writable memory only
    return ctypes.addressof(ctypes.c_char.from_buffer(body))


class _Decoded:
    """A decoder's memory; freed when the last Arrow buffer over it is gone."""

    def __init__(self, pointer: Any) -> None:
        self._pointer, self.content = pointer, pointer.contents

    def __del__(self) -> None:
        _library.wire_free(self._pointer)


# By length, as wire.c looks them up: (key, type, column).
_KEYS = sorted(((key.encode(), kind, column) for key, (column, kind) in MOVED.items()), key=lambda key: len(key[0]))
_SPECIAL = PROMPT_TOKEN_IDS.encode(), CHOICE_PREFIX.encode()


def _str(data: bytes) -> _Str:
    return _Str(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))


_SHARED_TEXT, _NUMBER, _OWN_TEXT = range(3)


def _kind(kind: str, column: str) -> int:
    return _NUMBER if kind != STR else _OWN_TEXT if column in WITHOUT_DICTIONARY else _SHARED_TEXT


_MOVED = (_Moved * len(_KEYS))(*(_Moved(_str(key), _kind(kind, column)) for key, kind, column in _KEYS))


def _decode(frames: Sequence[Frame]) -> _Decoded | None:
    given = (_Frame * len(frames))()
    for place, frame in zip(given, frames, strict=True):
        address = _address(frame.body)
        place.body.p = _str(address).p if isinstance(address, bytes) else address
        place.body.n, place.received, place.seq = len(frame.body), frame.received_unix_nano, frame.first_seq

    def run(written: bytes | None) -> _Decoded | None:
        prompt, choice = map(_str, _SPECIAL)
        seed = secrets.randbits(64)  # keys that collide cannot be made in advance
        pointer = _library.wire_decode(
            given, len(given), _MOVED, len(_KEYS), prompt, choice, seed, DICTIONARY_BYTES, ROW_GROUP_ROWS, written
        )
        return _Decoded(pointer) if pointer else None

    decoded = run(None)
    if decoded is None or not decoded.content.slow_doubles:
        return decoded
    # Shortest digits that read back are orjson's business: it writes all such doubles at once, and we go again.
    doubles = decoded.content.doubles
    numbers = memoryview((ctypes.c_double * (doubles.n // 8)).from_address(doubles.p)).cast("B").cast("d").tolist()
    return run(orjson.dumps(numbers)[1:-1].replace(b",", b"\0") + b"\0")


class _Table:
    """Arrow over a decoder's columns, taken in the order in which wire.c numbers them."""

    def __init__(self, pa: Any, decoded: _Decoded) -> None:
        self._pa, self._decoded, self._at = pa, decoded, 0

    def table(self, collector_id: str) -> pa.Table:
        pa, rows = self._pa, self._decoded.content.rows
        columns = {
            name: self._leaf(SPANS.field(name).type)
            for name in (
                *("seq", "received_unix_nano", "trace_id", "span_id", "parent_span_id", "trace_state", "flags"),
                *("name", "kind", "start_unix_nano", "end_unix_nano", "status_code", "status_message"),
                *("service_name", "service_instance_id", "scope_name", "scope_version"),
                *("resource_attributes", "scope_attributes", "resource_schema_url", "scope_schema_url"),
            )
        }
        columns["collector_id"] = pa.repeat(pa.scalar(collector_id, pa.string()), rows).dictionary_encode()
        maps = [(self._leaf(type_.key_type), self._leaf(type_.item_type)) for _, type_ in ATTRIBUTE_MAPS]
        columns["events"] = self._structs(SPANS.field("events").type, EVENT)
        columns["links"] = self._structs(SPANS.field("links").type, LINK)
        for name in ("dropped_attributes_count", "dropped_events_count", "dropped_links_count"):
            columns[name] = self._leaf(pa.uint32())
        columns["prompt_token_ids"] = self._list(SPANS.field("prompt_token_ids").type)
        choices = self._next()
        parts = [self._list(CHOICE.field(name).type) for name in ("token_ids", "logprobs")]
        structs = pa.Array.from_buffers(CHOICE, len(parts[0]), [None], children=parts)
        columns["choices"] = self._over(SPANS.field("choices").type, choices, structs)
        for (name, _), (keys, items) in zip(ATTRIBUTE_MAPS, maps, strict=True):
            offsets = pa.Array.from_buffers(pa.int32(), rows + 1, [None, self._buffer(self._next().offsets)])
            columns[name] = pa.MapArray.from_arrays(offsets, keys, items)
        for _, _, column in _KEYS:
            columns[column] = self._leaf(SPANS.field(column).type)
        arrays = [columns[field.name] for field in SPANS]
        schema = pa.schema([(f.name, a.type) for f, a in zip(SPANS, arrays, strict=True)], SPANS.metadata)
        return pa.Table.from_arrays(arrays, schema=schema)

    def _next(self) -> Any:
        self._at += 1
        return self._decoded.content.columns[self._at - 1]

    def _buffer(self, buf: Any) -> Any:
        if not buf.n:
            return self._pa.py_buffer(b"")
        return self._pa.foreign_buffer(buf.p, buf.n, base=self._decoded)

    def _valid(self, column: Any) -> Any:
        return self._buffer(column.valid) if column.nulls else None

    def _leaf(self, type_: Any) -> Any:
        column, pa = self._next(), self._pa
        buffers = [self._valid(column), self._buffer(column.data)]
        if type_ != pa.string():
            return pa.Array.from_buffers(type_, column.rows, buffers, column.nulls)
        if not column.shared:
            buffers.insert(1, self._buffer(column.offsets))
            return pa.Array.from_buffers(type_, column.rows, buffers, column.nulls)
        texts = pa.Array.from_buffers(type_, column.count, [None, self._buffer(column.offsets), buffers[1]], 0)
        index = [buffers[0], self._buffer(column.index)]
        return pa.DictionaryArray.from_buffers(SHARED, column.rows, index, texts, column.nulls)

    def _list(self, type_: Any) -> Any:
        column = self._next()
        return self._over(type_, column, self._leaf(type_.value_type))

    def _over(self, type_: Any, column: Any, children: Any) -> Any:
        buffers = [self._valid(column), self._buffer(column.offsets)]
        return self._pa.Array.from_buffers(type_, column.rows, buffers, column.nulls, children=[children])

    def _structs(self, type_: Any, struct: Any) -> Any:
        column = self._next()
        parts = [self._leaf(field.type) for field in struct]
        structs = self._pa.Array.from_buffers(struct, len(parts[0]), [None], children=parts)
        buffers = [None, self._buffer(column.offsets)]
        return self._pa.Array.from_buffers(type_, self._decoded.content.rows, buffers, children=[structs])
