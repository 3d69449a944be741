"""Senders may send again what they sent: the lake keeps every copy, and what transforms read has each thing once.

Read through the transforms' own SQL (`09_span_copies.sql`, `10_spans_unique.sql`), from Parquet that a real collector wrote.
"""

from __future__ import annotations

import ast
import random
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files, read_entries

ROOT = Path(__file__).parents[2]
COPIES, UNIQUE = (
    (ROOT / "transforms" / "sql" / name).read_text() for name in ("09_span_copies.sql", "10_spans_unique.sql")
)
TRACE = b"\1" * 16


def body(*spans: dict[str, Any]) -> bytes:
    request = ExportTraceServiceRequest()
    found = request.resource_spans.add().scope_spans.add().spans
    for fields in spans:
        span = found.add(trace_id=TRACE, span_id=fields["id"].to_bytes(8, "big"), name="n")
        span.start_time_unix_nano, span.end_time_unix_nano = 5, fields.get("end", 9)
        for key, value in fields.get("attributes", {}).items():
            span.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


def unique(lake: Path) -> list[dict[str, Any]]:
    connection = duckdb.connect()
    files = [str(path) for path in live_files(Lake(lake), "spans")]
    connection.from_parquet(files).create("spans")
    connection.execute(f"create table span_copies as {COPIES}")
    found = connection.execute(f"select * from ({UNIQUE}) order by span_id")
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.mark.row(29)
def test_a_request_sent_again_because_its_answer_was_lost(collector: Any, post: Any, tmp_path: Path) -> None:
    sent = body(*({"id": number} for number in range(1, 21)))
    parts = urlsplit(collector.url)
    head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: {len(sent)}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head.encode() + sent)
        time.sleep(0.05)  # gone before the answer: the bytes are the collector's all the same
    assert post(collector.url, "/v1/traces", sent).status == 200
    assert post(collector.url, "/flush").status == 200
    assert sum(pq.read_metadata(path).num_rows for path in live_files(Lake(tmp_path / "lake"), "spans")) > 20
    assert [int(row["span_id"], 16) for row in unique(tmp_path / "lake")] == list(range(1, 21))


@pytest.mark.row(30)
def test_spans_sent_again_in_other_requests_and_later(collector: Any, post: Any, tmp_path: Path) -> None:
    chance = random.Random(4)
    numbers = list(range(1, 41))
    for _ in range(6):
        chance.shuffle(numbers)
        rest = list(numbers)
        while rest:
            cut = chance.randrange(1, 12)
            assert post(collector.url, "/v1/traces", body(*({"id": n} for n in rest[:cut]))).status == 200
            rest = rest[cut:]
        assert post(collector.url, "/flush").status == 200  # the next copies lie in another file
    rows = unique(tmp_path / "lake")
    assert [int(row["span_id"], 16) for row in rows] == list(range(1, 41))
    assert not any(row["conflicting_copies"] for row in rows)


@pytest.mark.row(31)
@pytest.mark.parametrize("order", [1, -1])
def test_one_id_with_different_content_shows_the_fuller_copy_whatever_came_first(
    collector: Any, post: Any, tmp_path: Path, order: int
) -> None:
    copies = [
        {"id": 1, "attributes": {"answer": "yes"}},
        {"id": 1, "attributes": {"answer": "no", "more": "x"}},
        {"id": 2, "end": 0, "attributes": {"a": "1", "b": "2", "c": "3"}},  # a copy that was not finished yet
        {"id": 2, "attributes": {"a": "1"}},
        {"id": 3, "attributes": {"a": "1"}},
        {"id": 3, "attributes": {"a": "1", "late": "2"}},
    ]
    for copy in copies[::order]:
        assert post(collector.url, "/v1/traces", body(copy)).status == 200
    assert post(collector.url, "/flush").status == 200
    rows = {int(row["span_id"], 16): row for row in unique(tmp_path / "lake")}
    assert rows[1]["attributes_str"] == {"answer": "no", "more": "x"} and rows[1]["conflicting_copies"]
    assert rows[2]["attributes_str"] == {"a": "1"} and not rows[2]["conflicting_copies"]
    assert rows[3]["attributes_str"] == {"a": "1", "late": "2"} and not rows[3]["conflicting_copies"]


@pytest.mark.row(32)
def test_one_id_twice_in_one_request_costs_its_neighbours_nothing(collector: Any, post: Any, tmp_path: Path) -> None:
    sent = [{"id": 1}, {"id": 2, "attributes": {"a": "1"}}, {"id": 2, "attributes": {"a": "1"}}, {"id": 3}]
    answer = post(collector.url, "/v1/traces", body(*sent))
    assert (answer.status, answer.body) == (200, b"")
    assert post(collector.url, "/flush").status == 200
    assert [int(row["span_id"], 16) for row in unique(tmp_path / "lake")] == [1, 2, 3]


@pytest.mark.row(24)
def test_a_bit_flipped_in_a_live_file_is_noticed_by_its_hash_and_by_its_pages(
    collector: Any, post: Any, tmp_path: Path
) -> None:
    import hashlib

    assert (
        post(collector.url, "/v1/traces", body(*({"id": n, "attributes": {"k": "v" * n}} for n in range(1, 60)))).status
        == 200
    )
    assert collector.stop() == 0
    lake = Lake(tmp_path / "lake")
    (entry,) = read_entries(RealDisk(), lake)
    (file,) = entry.files
    data = (lake.root / file.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == file.sha256
    whole = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    chance = random.Random(1)
    wrong = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        assert hashlib.sha256(damaged).hexdigest() != file.sha256
        try:
            found = pq.read_table(pa.BufferReader(bytes(damaged)), page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError):
            continue
        wrong += not found.equals(whole)  # what only the hash notices lies in the footer: names, statistics
    assert wrong <= 3


@pytest.mark.row(28)
def test_the_collector_keeps_nothing_in_a_database_that_could_lock_or_break() -> None:
    for path in sorted((ROOT / "collector").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {"duckdb", "sqlite3"}, path
