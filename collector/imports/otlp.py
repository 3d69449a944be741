"""OTLP files: JSON lines as the OpenTelemetry Collector's file exporter writes them, and protobuf bodies.

A protobuf file is one request body, or many, each behind its length in four bytes (the file exporter's `format: proto`).
Protobuf does not say which signal it is: the file's name does (traces, logs, metrics), or `--signal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from otel_lightning.app.errors import UsageError
from otel_lightning.collector.check import REQUESTS
from otel_lightning.collector.imports.build import Piece
from otel_lightning.collector.imports.source import Skipped, lines, parse, read

KEYS = {"resourceSpans": "spans", "resourceLogs": "events", "resourceMetrics": "metrics"}
NAMES = {"spans": r"traces?|spans?", "events": r"logs?|events?", "metrics": r"metrics?"}


def json_pieces(path: Path, skipped: Skipped) -> Iterator[Piece]:
    """One request a line; a document over several lines is one as well."""
    for line in lines(path):
        try:
            record = parse(line)
        except ValueError:
            skipped.count("lines that are no JSON")
            continue
        found = [signal for key, signal in KEYS.items() if isinstance(record, dict) and key in record]
        if not found:
            skipped.count("lines without resourceSpans, resourceLogs or resourceMetrics")
        for signal in found:
            yield Piece(signal, line, is_json=True)


def protobuf_pieces(path: Path, signal: str | None) -> Iterator[Piece]:
    """The body of a file, or its bodies."""
    signal = signal or _signal(path)
    data = read(path)
    bodies = _framed(data, signal)
    yield from (Piece(signal, body) for body in (bodies if bodies is not None else [data]))


def _signal(path: Path) -> str:
    words = re.split(r"[^a-z]+", path.name.lower())
    for signal, names in NAMES.items():
        if any(re.fullmatch(names, word) for word in words):
            return signal
    raise UsageError(f"{path}: protobuf does not say what it holds and neither does the name; give --signal")


def _framed(data: bytes, signal: str) -> list[bytes] | None:
    """Bodies behind their lengths; None when the file is no such thing."""
    bodies: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if length == 0 or at + length > len(data):
            return None
        bodies.append(data[at : at + length])
        at += length
    try:
        for body in bodies:
            REQUESTS[signal].FromString(body)
    except DecodeError:
        return None
    return bodies
