"""Traces that nobody means to send: all depth, all width, all cycle, no clock, no number; and plain ones to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .traces import Writer, reward

DEPTH, WIDTH, OTHERS = 20_000, 100_000, 50_000
BEGIN_NANO = 1_790_000_000_000_000_000
YEAR_2100_NANO = 4_102_444_800_000_000_000

Shape = Iterator[tuple[int, int, int | None, int, int]]  # trace, span, parent, start, end


def plain() -> Shape:
    for number in range(OTHERS):
        trace, place = divmod(number, 10)
        yield (
            trace + 1,
            number + 1,
            None if place == 0 else trace * 10 + 1,
            BEGIN_NANO + number,
            BEGIN_NANO + number + 1,
        )


def chain() -> Shape:
    for number in range(DEPTH):
        yield 1, number + 1, number or None, BEGIN_NANO + number, BEGIN_NANO + 10 * DEPTH - number


def wide() -> Shape:
    yield 1, 1, None, BEGIN_NANO, BEGIN_NANO + 10**9
    for number in range(1, WIDTH):
        yield 1, number + 1, 1, BEGIN_NANO + number, BEGIN_NANO + number + 10


def cycles() -> Shape:
    for number in range(OTHERS):
        ring, place = divmod(number, 100)
        yield 1, number + 1, ring * 100 + (place + 1) % 100 + 1, BEGIN_NANO + number, BEGIN_NANO + number + 1


def no_clock() -> Shape:
    for number in range(OTHERS):
        trace, place = divmod(number, 10)
        start = (0, YEAR_2100_NANO, BEGIN_NANO, (1 << 64) - 1)[number % 4]
        yield trace + 1, number + 1, None if place == 0 else trace * 10 + 1, start, (0, 1, (1 << 64) - 1)[number % 3]


SHAPES = {"chain": chain, "wide": wide, "cycles": cycles, "no_clock": no_clock}


def write(lake: Path, name: str, spans: int | None = None) -> int:
    """A lake of one shape, every second span a call with the same short text; how many spans it has."""
    writer = Writer(lake)
    count = 0
    for trace, span, parent, start, end in {"plain": plain, **SHAPES}[name]():
        if spans is not None and count >= spans:
            break
        count += 1
        request = ExportTraceServiceRequest()
        made = request.resource_spans.add().scope_spans.add().spans.add(
            trace_id=trace.to_bytes(16, "big"), span_id=span.to_bytes(8, "big"), name="'; drop table spans --",
            start_time_unix_nano=start, end_time_unix_nano=end,
        )  # fmt: skip
        if parent is not None:
            made.parent_span_id = parent.to_bytes(8, "big")
        values: dict[str, Any] = {"openinference.span.kind": "CHAIN"}
        if span % 2:
            values = {
                "openinference.span.kind": "LLM",
                "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "the same words",
                "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": f"answer {span}",
            }  # fmt: skip
        for key, value in values.items():
            made.attributes.add(key=key).value.string_value = value
        writer.traces += request.SerializeToString()
        if parent is None:
            value = math.nan if trace % 2 else 1.0
            writer.logs += reward(
                BEGIN_NANO, value, trace_id=trace.to_bytes(16, "big"), span_id=span.to_bytes(8, "big")
            )
        writer.offer()
    writer.close()
    return count
