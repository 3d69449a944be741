"""OTLP attribute values as columns: typed maps, and JSON text for what has no scalar type.

JSON text keeps every kind of value apart: arrays and key-value lists as JSON, bytes as
{"bytesValue": base64}, an empty value as null, NaN and infinities as the strings OTLP/JSON uses.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
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


class TypedMaps:
    """The five attribute maps of a table, filled row by row.

    `add` each attribute of a row, then `end_row`; `arrays` gives one MapArray a type.
    """

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {name: [] for name in MAP_TYPES}
        self._items: dict[str, list[Any]] = {name: [] for name in MAP_TYPES}
        self._offsets: dict[str, list[int]] = {name: [0] for name in MAP_TYPES}
        # Bound once: this is the innermost loop of ingest.
        self._add = {
            kind: (self._keys[column].append, self._items[column].append)
            for kind, column in (
                ("string_value", "attributes_str"),
                ("int_value", "attributes_int"),
                ("double_value", "attributes_dbl"),
                ("bool_value", "attributes_bool"),
            )
        }
        self._add_json = (self._keys["attributes_json"].append, self._items["attributes_json"].append)

    def add(self, key: str, kind: str | None, value: Any) -> None:
        """Put the AnyValue `value`, whose set field is `kind`, under `key` in the current row."""
        adders = self._add.get(kind)  # type: ignore[arg-type]
        if adders is not None:
            adders[0](key)
            adders[1](getattr(value, kind))  # type: ignore[arg-type]
        else:
            self._add_json[0](key)
            self._add_json[1](json_text(plain(value)))

    def end_row(self) -> None:
        """Close the current row; the next `add` belongs to the next one."""
        for name, offsets in self._offsets.items():
            offsets.append(len(self._keys[name]))

    def arrays(self) -> dict[str, pa.MapArray]:
        """One array a map column, as long as rows were ended."""
        return {
            name: pa.MapArray.from_arrays(
                pa.array(self._offsets[name], pa.int32()),
                pa.array(self._keys[name], pa.string()),
                pa.array(self._items[name], type_.item_type),
            )
            for name, type_ in MAP_TYPES.items()
        }


def unique_keys(attributes: Any) -> Any:
    """`attributes` as they are when every key occurs once, as OTLP demands; else the last of each key."""
    if len({item.key for item in attributes}) == len(attributes):
        return attributes
    return list({item.key: item for item in attributes}.values())
