"""Senders that post spans until the collector dies, and what they were told."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing
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
