"""OTLP attribute values as columns: typed maps, and JSON text for what has no scalar type.

JSON text keeps every kind of value apart: arrays and key-value lists as JSON, bytes as
{"bytesValue": base64}, an empty value as null, NaN and infinities as the strings OTLP/JSON uses.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from otel_lightning.collector.schema import ATTRIBUTE_MAPS

MAP_TYPES = dict(ATTRIBUTE_MAPS)
NON_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def plain(value: Any) -> Any:
    """An AnyValue message as plain Python that JSON can hold."""
    kind = value.WhichOneof("value")
    if kind is None or kind == "string_value_strindex":
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return {"bytesValue": base64.b64encode(value.bytes_value).decode()}
    scalar = getattr(value, kind)
    if kind == "double_value" and not math.isfinite(scalar):
        return NON_FINITE.get(scalar, "NaN")
    return scalar


def json_text(value: Any) -> str:
    """Plain Python as compact JSON text."""
    return orjson.dumps(value).decode()


def attributes_json(attributes: Iterable[Any]) -> str:
    """A list of KeyValue messages as the text of one JSON object; `{}` when there are none."""
    return json_text({item.key: plain(item.value) for item in attributes})


@dataclass(slots=True)
class Attributes:
    """One row's attributes by type; `others` holds AnyValue messages of what is no scalar."""

    texts: dict[str, str]
    ints: dict[str, int]
    doubles: dict[str, float]
    bools: dict[str, bool]
    others: dict[str, Any]


def by_type(attributes: Iterable[Any]) -> Attributes:
    """KeyValue messages by type. OTLP's keys are unique; of a key sent twice the last value of a type stands."""
    texts: dict[str, str] = {}
    ints: dict[str, int] = {}
    doubles: dict[str, float] = {}
    bools: dict[str, bool] = {}
    others: dict[str, Any] = {}
    # The innermost loop of ingest: dictionaries, because whole ones are moved to columns faster than items.
    for item in attributes:
        value = item.value
        text = value.string_value
        if text:  # most are; no other member of the oneof is set then, so it need not be asked for
            texts[item.key] = text
            continue
        kind = value.WhichOneof("value")
        if kind == "string_value":
            texts[item.key] = text
        elif kind == "int_value":
            ints[item.key] = value.int_value
        elif kind == "double_value":
            doubles[item.key] = value.double_value
        elif kind == "bool_value":
            bools[item.key] = value.bool_value
        else:
            others[item.key] = value
    return Attributes(texts, ints, doubles, bools, others)


class TypedMaps:
    """The five attribute maps of a table, filled row by row; `arrays` gives one MapArray a type."""

    def __init__(self) -> None:
        self._columns = {name: _MapColumn() for name in MAP_TYPES}

    def add_row(self, row: Attributes) -> None:
        """Add what is left in `row` as the next row."""
        columns = self._columns
        columns["attributes_str"].add(row.texts)
        columns["attributes_int"].add(row.ints)
        columns["attributes_dbl"].add(row.doubles)
        columns["attributes_bool"].add(row.bools)
        columns["attributes_json"].add({key: json_text(plain(value)) for key, value in row.others.items()})

    def arrays(self) -> dict[str, pa.MapArray]:
        """One array a map column, as long as rows were added."""
        return {name: column.array(MAP_TYPES[name]) for name, column in self._columns.items()}


class _MapColumn:
    def __init__(self) -> None:
        self._keys: list[str] = []
        self._items: list[Any] = []
        self._offsets = [0]

    def add(self, row: dict[str, Any]) -> None:
        if row:
            self._keys.extend(row)
            self._items.extend(row.values())
        self._offsets.append(len(self._keys))

    def array(self, type_: pa.MapType) -> pa.MapArray:
        return pa.MapArray.from_arrays(
            pa.array(self._offsets, pa.int32()),
            pa.array(self._keys, pa.string()),
            pa.array(self._items, type_.item_type),
        )
