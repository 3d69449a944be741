"""What the collector's tests share: plain HTTP, and a lake read back as any tool would read it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest

PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        with response:
            self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def post(
    url: str, path: str, body: Any = b"", content_type: str | None = PROTOBUF, *, method: str = "POST", **headers: str
) -> Answer:
    """One request on a connection of its own; keyword headers use _ for -."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        named["Content-Type"] = content_type
    try:
        connection.request(method, path, body, named)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(name="post")
def poster() -> Callable[..., Answer]:
    return post


class Reader:
    """SQL over the Parquet files of a lake, without any code of ours."""

    def __init__(self, lake: Path) -> None:
        self.lake = lake

    def rows(self, signal: str, columns: str = "*", where: str = "true") -> list[dict[str, Any]]:
        files = str(self.lake / signal / "*" / "*.parquet")
        connection = duckdb.connect()
        found = connection.execute(
            f"select {columns} from read_parquet(?, hive_partitioning = false) where {where} order by seq", [files]
        )
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Reader]:
    """The lake of the `collector` fixture."""
    yield Reader(tmp_path / "lake")
