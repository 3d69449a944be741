"""OTLP/JSON to protobuf messages, by OTLP's own rules rather than protobuf's canonical JSON.

Ids are hex in any case (other bytes base64), 64-bit integers are strings or numbers, enums are integers,
unknown keys are ignored, null is absence. Half a surrogate pair, which JavaScript leaves when it cuts a
text, becomes U+FFFD instead of costing the whole request.

The slow path: a JSON request costs several times what the same protobuf request costs.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Field names whose bytes are ids: hex, not base64.
ID_FIELDS = frozenset({"trace_id", "span_id", "parent_span_id"})
# An id that is no hex at all must reject its span, not its request: one byte has no id's length.
NO_ID = b"\0"
MAX_DEPTH = 90  # protobuf refuses to parse messages nested deeper than 100
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
SURROGATES = {code: "\ufffd" for code in range(0xD800, 0xE000)}

_Setter = Callable[[Message, Any, int], None]


class JsonError(ValueError):
    """The text is not OTLP/JSON; the message names the field, never its value."""


def parse(text: bytes | memoryview, message: Message) -> None:
    """Fill `message` from OTLP/JSON `text`; JsonError when it is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _lenient(text)
    if not isinstance(value, dict):
        raise JsonError("is not a JSON object")
    _fill(message, value, MAX_DEPTH)


def _lenient(text: bytes | memoryview) -> Any:
    """What orjson refuses but JavaScript writes: unpaired surrogates, which become U+FFFD."""
    try:
        return _mended(json.loads(bytes(text).decode("utf-8")))
    except (ValueError, RecursionError):
        raise JsonError("is not JSON") from None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(SURROGATES)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {key.translate(SURROGATES): _mended(item) for key, item in value.items()}
    return value


def _fill(message: Message, value: dict[str, Any], depth: int) -> None:
    if depth == 0:
        raise JsonError("is nested too deeply")
    setters = _setters(message.DESCRIPTOR)
    for key, item in value.items():
        setter = setters.get(key)
        if setter is not None and item is not None:
            setter(message, item, depth)


_SETTERS: dict[str, dict[str, _Setter]] = {}


def _setters(descriptor: Any) -> dict[str, _Setter]:
    known = _SETTERS.get(descriptor.full_name)
    if known is None:
        known = _SETTERS[descriptor.full_name] = {field.json_name: _setter(field) for field in descriptor.fields}
    return known


def _setter(field: FieldDescriptor) -> _Setter:
    name = field.name
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _messages(name) if field.is_repeated else _message(name)
    scalar = _scalar(field)
    if field.is_repeated:

        def extend(message: Message, value: Any, _: int) -> None:
            if not isinstance(value, list):
                raise JsonError(f"has no list at '{name}'")
            getattr(message, name).extend(map(scalar, value))

        return extend

    def put(message: Message, value: Any, _: int) -> None:
        try:
            setattr(message, name, scalar(value))
        except (ValueError, TypeError, binascii.Error) as error:
            if isinstance(error, JsonError):
                raise
            raise JsonError(f"has a value of the wrong type at '{name}'") from None

    return put


def _message(name: str) -> _Setter:
    def put(message: Message, value: Any, depth: int) -> None:
        if not isinstance(value, dict):
            raise JsonError(f"has no object at '{name}'")
        inner = getattr(message, name)
        inner.SetInParent()
        _fill(inner, value, depth - 1)

    return put


def _messages(name: str) -> _Setter:
    def put(message: Message, value: Any, depth: int) -> None:
        if not isinstance(value, list):
            raise JsonError(f"has no list at '{name}'")
        add = getattr(message, name).add
        for item in value:
            if item is None:
                continue
            if not isinstance(item, dict):
                raise JsonError(f"has no object in '{name}'")
            _fill(add(), item, depth - 1)

    return put


def _scalar(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _id if field.name in ID_FIELDS else _base64
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _double
    if field.cpp_type in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_BOOL):
        return _as_it_is
    return _integer


def _as_it_is(value: Any) -> Any:
    return value


def _id(value: Any) -> bytes:
    if not isinstance(value, str):
        raise JsonError("has an id that is no text")
    try:
        return bytes.fromhex(value)
    except ValueError:
        return NO_ID


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise JsonError("has bytes that are no base64 text")
    # Both alphabets, with or without padding, as protobuf's own JSON reader takes them.
    return base64.urlsafe_b64decode(value.replace("+", "-").replace("/", "_") + "=" * (-len(value) % 4))


def _double(value: Any) -> float:
    if isinstance(value, str):
        return NON_FINITE[value] if value in NON_FINITE else float(value)
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise JsonError("has a fraction where an integer belongs")
        return int(value)
    if isinstance(value, bool):
        raise JsonError("has a truth value where an integer belongs")
    return value
