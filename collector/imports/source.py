"""Files as the readers see them: plain, .gz or .zst; as bytes, as lines, as JSON records."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from otel_lightning.app.errors import LightningError

CHUNK_BYTES = 1 << 20


class Skipped:
    """What was left out, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def count(self, why: str, number: int = 1) -> None:
        """`number` more for this reason."""
        self.reasons[why] = self.reasons.get(why, 0) + number


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, inflated; LightningError in one line when it cannot be read."""
    try:
        with open(path, "rb") as raw:
            if path.suffix == ".gz":
                yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
            elif path.suffix in (".zst", ".zstd"):
                import pyarrow as pa

                yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), CHUNK_BYTES)  # type: ignore[arg-type]
            else:
                yield raw
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is cut off or not what its ending says"
        raise LightningError(f"{path}: cannot be read ({reason})") from None


def read(path: Path) -> bytes:
    """The whole file."""
    with opened(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Of the file as it lies there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise LightningError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def parse(text: bytes) -> Any:
    """JSON; ValueError when it is none. Half a surrogate pair, which JavaScript writes, is let through."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def lines(path: Path) -> Iterator[bytes]:
    """JSON documents, one a line; the whole file when its first line is not one by itself."""
    with opened(path) as file:
        first = file.readline()
        while first and not first.strip():
            first = file.readline()
        if not first:
            return
        try:
            parse(first)
        except ValueError:
            whole = first + file.read()
            try:
                parse(whole)
            except ValueError:
                # Lines after all, of which the first is damaged.
                yield from (line for line in whole.splitlines() if line.strip())
                return
            yield whole
            return
        yield first
        for line in file:
            if line.strip():
                yield line


def records(path: Path, skipped: Skipped) -> Iterator[dict[str, Any]]:
    """JSON objects: of lines, of one list, of one page of an API (`data`), or the one that the file is."""
    for line in lines(path):
        try:
            value = parse(line)
        except ValueError:
            skipped.count("lines that are no JSON")
            continue
        if isinstance(value, dict) and isinstance(value.get("data"), list):
            value = value["data"]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield item
            else:
                skipped.count("records that are no JSON objects")
