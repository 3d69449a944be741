"""kill -9 under load, again and again: what was acknowledged is stored, and nothing twice."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SENDERS = 4
SPANS_PER_REQUEST = 7


class Load:
    """Senders that post spans until the collector dies; each id is used for one request only."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.sent: set[str] = set()
        self._lock, self._next = threading.Lock(), 0

    def run(self, url: str, kill: Any, seconds: float) -> None:
        threads = [threading.Thread(target=self._send, args=(urlsplit(url),)) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        kill()
        for thread in threads:
            thread.join()

    def _send(self, address: Any) -> None:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
        with closing(connection):
            while True:
                ids, body = self._request()
                try:
                    connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
                    with closing(connection.getresponse()) as response:
                        response.read()
                except (OSError, http.client.HTTPException):
                    return
                if response.status == 200:
                    with self._lock:
                        self.acknowledged |= ids

    def _request(self) -> tuple[set[str], bytes]:
        with self._lock:
            first, self._next = self._next, self._next + SPANS_PER_REQUEST
            request = ExportTraceServiceRequest()
            spans = request.resource_spans.add().scope_spans.add().spans
            ids = set()
            for number in range(first, first + SPANS_PER_REQUEST):
                span_id = (number + 1).to_bytes(8, "big")
                spans.add(trace_id=b"\1" * 16, span_id=span_id, name="x" * (number % 5000))
                ids.add(span_id.hex())
            self.sent |= ids
        return ids, request.SerializeToString()


def test_killed_under_load_and_started_again_nothing_acknowledged_is_lost_or_doubled(
    start: Any, tmp_path: Path, read: Any
) -> None:
    config = tmp_path / "collect.yaml"
    # Segments roll all the time, so that kills also hit conversions and manifest entries.
    config.write_text(f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 0.05\n")
    load = Load()
    for seconds in (0.3, 0.55, 0.8):
        collector = start("lightning-collect", "--config", str(config))
        load.run(collector.url, collector.kill, seconds)
    collector = start("lightning-collect", "--config", str(config))
    assert collector.stop() == 0
    rows = read.rows("spans", "span_id, seq")
    stored = [row["span_id"] for row in rows]
    assert len(load.acknowledged) > 500
    assert load.acknowledged <= set(stored) <= load.sent
    assert len(stored) == len(set(stored))
    assert len({row["seq"] for row in rows}) == len(rows)
    assert not list((tmp_path / "lake" / "wal").glob("*.wal"))
    assert not list((tmp_path / "lake").rglob("*.tmp"))


def test_stopped_politely_under_load_everything_acknowledged_is_parquet(start: Any, tmp_path: Path, read: Any) -> None:
    collector = start(
        "lightning-collect", "--lake", str(tmp_path / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    load, codes = Load(), []
    load.run(collector.url, lambda: codes.append(collector.stop()), 0.4)
    assert codes == [0]
    assert collector.lines[-1].startswith("stored ")
    stored = [row["span_id"] for row in read.rows("spans", "span_id, seq")]
    assert load.acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    assert f"stored {len(stored)} spans" in collector.lines[-1]
