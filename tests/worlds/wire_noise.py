"""Trace requests as bytes, from ordinary to barely protobuf: each seed is one request.

`plain` requests hold every kind of value, odd doubles, keys sent twice, deep lists, token ids. With `noise` the
same bytes are strewn with what protobuf also reads or must refuse: fields sent twice, unknown ones, other wire
types, groups, long varints, broken UTF-8, ids of the wrong length, a cut end.
"""

from __future__ import annotations

import random
import struct

KEYS = (
    *("a", "b", "llm.input_messages.0.message.content", "gen_ai.operation.name", "gen_ai.usage.input_tokens"),
    *("session.id", "lightning.attempt", "lightning.prompt.token_ids", "lightning.choice.0.token_ids", "service.name"),
    *("lightning.choice.0.logprobs", "lightning.choice.1.token_ids", "lightning.choice.2.logprobs", "", "k\0é"),
    *("service.instance.id", "lightning.choice.01.token_ids", "lightning.choice.1.logprobs"),
)
TEXTS = ("", "text", 'say "hi"\\\n\t\b\f\r\0\x1b\x7f', "ü€😀\u2028", "x" * 300, "1.5")
DOUBLES = (0.0, -0.0, 1.0, -2.5, 0.1, 1e-3, 123456.789, 1e15, 1e16, 1e-7, 5e-324, 1.7976931348623157e308, 0.001, 2**53)
INTS = (0, 1, -1, 7, 2**31 - 1, 2**31, -(2**63), 2**63 - 1)


class Request:
    """A request's bytes from one seed."""

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        self.chance, self.noise = random.Random(seed), noise

    def body(self) -> bytes:
        data = self._many(1, self._resource_spans, 2)
        if self.noise and data and self.chance.random() < 0.2:
            data = data[: self.chance.randrange(len(data))]
        return data

    def _resource_spans(self) -> bytes:
        resource = self._many(1, self._key_value, 3) + self._maybe(2, 0, 5) + self._many(3, self._entity, 1)
        return self._maybe(1, 2, resource) + self._many(2, self._scope_spans, 2) + self._maybe(3, 2, self._text())

    def _entity(self) -> bytes:
        return b"".join(self._maybe(n, 2, self._text()) for n in (1, 2, 3, 3, 4))

    def _scope_spans(self) -> bytes:
        scope = self._maybe(1, 2, self._text()) + self._maybe(2, 2, self._text()) + self._many(3, self._key_value, 2)
        return self._maybe(1, 2, scope) + self._many(2, self._span, 4) + self._maybe(3, 2, self._text())

    def _span(self) -> bytes:
        chance = self.chance
        parts = [
            self._field(1, 2, self._id(16)),
            self._field(2, 2, self._id(8)),
            self._maybe(3, 2, self._text()),
            self._maybe(4, 2, chance.choice((self._id(8), b"", bytes(8)))),
            self._maybe(5, 2, self._text()),
            self._maybe(6, 0, chance.choice((0, 1, 5, 127, 128, 300))),
            self._maybe(7, 1, chance.choice((0, 5, 10**18, 2**64 - 1))),
            self._maybe(8, 1, chance.choice((0, 2**63))),
            self._many(9, self._key_value, 12),
            self._maybe(10, 0, chance.choice((0, 3, 2**32 - 1))),
            self._many(11, self._event, 2),
            self._maybe(12, 0, 1),
            self._many(13, self._link, 2),
            self._maybe(14, 0, 2),
            self._maybe(15, 2, self._maybe(2, 2, self._text()) + self._maybe(3, 0, chance.choice((0, 1, 2, 200)))),
            self._maybe(16, 5, chance.choice((0, 1, 2**32 - 1))),
        ]
        if chance.random() < 0.2:
            chance.shuffle(parts)
        return b"".join(parts)

    def _event(self) -> bytes:
        return (
            self._maybe(1, 1, 9)
            + self._maybe(2, 2, self._text())
            + self._many(3, self._key_value, 3)
            + self._maybe(4, 0, 1)
        )

    def _link(self) -> bytes:
        ids = self._field(1, 2, self._id(16)) + self._field(2, 2, self._id(8)) + self._maybe(3, 2, self._text())
        return ids + self._many(4, self._key_value, 2) + self._maybe(5, 0, 4) + self._maybe(6, 5, 3)

    def _key_value(self, depth: int = 0) -> bytes:
        return (
            self._maybe(1, 2, self.chance.choice(KEYS).encode())
            + self._maybe(2, 2, self._any(depth))
            + (self._field(3, 0, 3) if self._odd() else b"")
        )

    def _any(self, depth: int = 0) -> bytes:
        chance = self.chance
        kind = chance.choice((0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8)) if depth < 3 else chance.choice((1, 3, 4))
        if kind == 5:
            if chance.random() < 0.4:  # token ids, or nearly
                return self._field(5, 2, self._many(1, lambda: self._field(3, 0, chance.choice(INTS[:5])), 4))
            if chance.random() < 0.4:  # log-probabilities
                return self._field(5, 2, self._many(1, lambda: self._field(4, 1, chance.random() - 2), 4))
            return self._field(5, 2, self._many(1, lambda: self._any(depth + 1), 3))
        if kind == 6:
            most = 12 if chance.random() < 0.1 else 3
            return self._field(6, 2, self._many(1, lambda: self._key_value(depth + 1), most))
        if kind == 4:
            return self._field(4, 1, self._double())
        if kind in (1, 7):
            return self._field(kind, 2, self._text() if kind == 1 else chance.randbytes(chance.randrange(5)))
        return self._field(kind, 0, chance.choice(INTS) if kind == 3 else chance.randrange(2)) if kind else b""

    def _double(self) -> float:
        chance = self.chance
        if chance.random() < 0.3:
            return struct.unpack("<d", chance.randbytes(8))[0]
        return chance.choice((*DOUBLES, chance.random(), round(chance.uniform(-1e4, 1e4), 3), float(2**70)))

    def _text(self) -> bytes:
        text = self.chance.choice(TEXTS).encode()
        if self._odd():
            text += self.chance.choice(
                (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\xc3")
            )
        return text

    def _id(self, length: int) -> bytes:
        if self._odd():
            return self.chance.choice((b"", bytes(length), b"\1" * (length - 1), b"\1" * (length + 1)))
        return self.chance.randrange(1, 4).to_bytes(length, "big")

    # The wire

    def _odd(self) -> bool:
        return self.chance.random() < self.noise

    def _many(self, number: int, make, most: int) -> bytes:
        return b"".join(self._field(number, 2, make()) for _ in range(self.chance.randrange(most + 1)))

    def _maybe(self, number: int, wire: int, value: bytes | float) -> bytes:
        if self.chance.random() < 0.2:
            return b""
        field = self._field(number, wire, value)
        return field + self._field(number, wire, value) if self._odd() else field

    def _field(self, number: int, wire: int, value: bytes | float) -> bytes:
        chance = self.chance
        before = b""
        if self._odd():
            kind = chance.randrange(5)
            if kind == 0:
                before = self._plain(
                    chance.choice((17, 99, 1000)), *chance.choice(((0, 5), (2, b"zz"), (1, 3), (5, 4)))
                )
            elif kind == 1:
                before = self._varint(number << 3 | chance.choice((3, 4, 6, 7)))
            elif kind == 2:
                wire, value = chance.choice(((0, 5), (2, b"zz"), (1, 3), (5, 4)))
            elif kind == 3:
                return (
                    self._varint(number << 3 | wire, long=True)
                    + self._plain(number, wire, value)[len(self._varint(number << 3)) :]
                )
            else:
                number = chance.choice((0, number, 2**29 - 1))
        return before + self._plain(number, wire, value)

    def _plain(self, number: int, wire: int, value: bytes | float) -> bytes:
        tag = self._varint(number << 3 | wire)
        if isinstance(value, bytes):
            return tag + self._varint(len(value)) + value
        if isinstance(value, float):
            return tag + struct.pack("<d", value)
        if wire == 1:
            return tag + struct.pack("<Q", value)
        if wire == 5:
            return tag + struct.pack("<I", value)
        return tag + self._varint(value & (2**64 - 1), long=self._odd())

    def _varint(self, number: int, long: bool = False) -> bytes:
        out = b""
        while number > 127:
            out += bytes([number & 127 | 128])
            number >>= 7
        return out + (bytes([number | 128, 0]) if long else bytes([number]))


def nested(levels: int) -> bytes:
    """A span whose attribute is a list in a list in a list …, as protobuf bytes."""
    value = b""
    for _ in range(levels):
        array = b"\x0a" + _varint(len(value)) + value
        value = b"\x2a" + _varint(len(array)) + array
    attribute = b"\x0a\x01a\x12" + _varint(len(value)) + value
    span = b"\x0a\x10" + b"\1" * 16 + b"\x12\x08" + b"\2" * 8 + b"\x4a" + _varint(len(attribute)) + attribute
    scope = b"\x12" + _varint(len(span)) + span
    of = b"\x12" + _varint(len(scope)) + scope
    return b"\x0a" + _varint(len(of)) + of


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])
