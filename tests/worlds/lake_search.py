"""Everything that a folder holds, decoded: the search behind every claim that something is nowhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError

from otel_lightning.collector.check import REQUESTS
from otel_lightning.collector.wal import decode_frames


def forms(text: str, token_ids: Iterable[int] = ()) -> list[bytes]:
    """A secret as bytes: as it is, as JSON writes it once and twice, and its token ids however a list is printed."""
    once = [json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    twice = [json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in once for ascii_only in (True, False)]
    ids = list(token_ids)
    lists = [json.dumps(ids)[1:-1], json.dumps(ids, separators=(",", ":"))[1:-1]] if ids else []
    return sorted({form.encode() for form in (text, *once, *twice, *lists)})


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of `folder`: its bytes, and what they mean where they are encoded."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield path, str(path.relative_to(folder)).encode()
        yield path, data
        if path.suffix == ".parquet":
            try:
                table = pq.read_table(pa.BufferReader(data))
            except (pa.ArrowException, OSError):
                continue
            yield path, json.dumps(table.to_pylist(), ensure_ascii=False, default=_plain).encode("utf-8", "replace")
            yield path, repr(table.schema.metadata).encode()
        elif path.suffix in (".wal", ".frame", ".pb"):
            frames = decode_frames(data, data[:8])[0]
            bodies = [(frame.signal, frame.body) for frame in frames]
            bodies += [(path.suffixes[-2][1:], data)] if path.suffix == ".pb" and len(path.suffixes) > 1 else []
            for signal, body in bodies:
                # Ids as lists of numbers are varints on the wire: decoded they are digits.
                with contextlib.suppress(DecodeError):
                    yield path, _text(REQUESTS[signal].FromString(body)).encode("utf-8", "replace")


def found_in(folder: Path, needles: Iterable[bytes]) -> set[str]:
    """The files below `folder` in which one of `needles` occurs, however encoded."""
    wanted = list(needles)
    return {
        path.relative_to(folder).as_posix() for path, data in contents(folder) if any(one in data for one in wanted)
    }


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _text(message: Any) -> str:
    pieces: list[str] = []

    def walk(item: Any) -> None:
        values = [value for _, value in item.ListFields()]
        for value in values:
            for one in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                if hasattr(one, "ListFields"):
                    walk(one)
                else:
                    pieces.append(_plain(one))

    walk(message)
    numbers = ", ".join(piece for piece in pieces if piece.lstrip("-").isdigit())
    return "\n".join([*pieces, numbers])
