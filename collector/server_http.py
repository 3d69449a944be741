"""OTLP over HTTP: POST …/v1/{traces,logs,metrics} (protobuf or JSON, identity or gzip), plus /flush, health, metrics.

A plain ASGI application under uvicorn, in a thread of its own. Answers follow the OTLP specification: 200 only
after the bytes are durable, 503 with Retry-After: 1 when full (older exporters drop their batch on 429).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import threading
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from otel_lightning.app.errors import BusyError, SenderError
from otel_lightning.app.listen import Address, bound
from otel_lightning.collector.answers import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    encode,
    export_response,
    status,
)
from otel_lightning.collector.check import Accepted, check_json, check_protobuf
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.ingest import Ingest
from otel_lightning.collector.metrics import prometheus

PATHS = {"traces": "spans", "logs": "events", "metrics": "metrics"}
PROTOBUF, JSON = "application/x-protobuf", "application/json"
LARGE_BODY_BYTES = 256 << 10  # checking more than this would stall other connections: use a thread
FLUSH_TIMEOUT_S = 60.0

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Refused(Exception):
    def __init__(self, http_status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.http_status, self.code, self.text = http_status, code, text


class HttpServer:
    """The HTTP listener; `start` returns when it answers, `stop` when open requests are done."""

    def __init__(self, ingest: Ingest, config: CollectConfig, listener: socket.socket) -> None:
        self.address: Address = bound(listener)
        self._ingest, self._config, self._listener = ingest, config, listener
        self._token = config.token.get_secret_value().encode() if config.token else None
        # At info level uvicorn would log one line a request.
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._answer,
                interface="asgi3",
                http="httptools",
                proxy_headers=False,
                loop="auto",
                lifespan="off",
                log_config=None,
                log_level=logging.ERROR,
                access_log=False,
                server_header=False,
                limit_concurrency=config.max_connections,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=10,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to listen in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, let open requests finish."""
        self._server.should_exit = True
        self._thread.join(timeout=15)

    def _run(self) -> None:
        # Signals belong to the main thread; uvicorn only takes them when it runs there.
        asyncio.run(self._server.serve(sockets=[self._listener]))

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        is_json = content_type == JSON
        try:
            await self._route(scope, headers, content_type, receive, send)
        except _Refused as refused:
            if refused.http_status >= 500:
                await self._drain(receive)
            else:
                self._ingest.counters.refuse(f"http_{refused.http_status}")
            body = encode(status(refused.code, refused.text), is_json)
            extra = [(b"retry-after", b"1")] if refused.http_status == 503 else []
            if refused.http_status == 413:
                extra.append((b"connection", b"close"))
            await _send(send, refused.http_status, JSON if is_json else PROTOBUF, body, extra)

    async def _route(
        self,
        scope: dict[str, Any],
        headers: dict[bytes, bytes],
        content_type: str,
        receive: Receive,
        send: Send,
    ) -> None:
        method, path = scope["method"], scope["path"].rstrip("/")
        if method == "GET" and path in ("/healthz", "/readyz", "/metrics"):
            await self._operate(path, send)
            return
        self._authorize(headers)
        if path.endswith("/v1development/profiles"):
            raise _Refused(501, UNIMPLEMENTED, "profiles are not stored; turn that exporter off")
        prefix, _, last = path.rpartition("/")
        signal = PATHS.get(last) if prefix.endswith("/v1") else None
        if signal is None and path != "/flush":
            raise _Refused(404, UNIMPLEMENTED, "nothing is here; send OTLP to /v1/traces, /v1/logs or /v1/metrics")
        if method != "POST":
            raise _Refused(405, UNIMPLEMENTED, f"{method} is not served here; use POST")
        if signal is None:
            await self._flush(send)
        else:
            await self._export(signal, headers, content_type, receive, send)

    async def _export(
        self, signal: str, headers: dict[bytes, bytes], content_type: str, receive: Receive, send: Send
    ) -> None:
        if content_type not in (PROTOBUF, JSON):
            raise _Refused(415, INVALID_ARGUMENT, f"content type must be {PROTOBUF} or {JSON}")
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise _Refused(415, INVALID_ARGUMENT, "content encoding must be identity or gzip")
        limit = self._config.max_body_bytes
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        body = await self._body(receive, limit)

        check = check_json if content_type == JSON else check_protobuf

        def read() -> Accepted:
            return check(signal, inflate(body, limit) if encoding == "gzip" else body)

        try:
            accepted = await asyncio.to_thread(read) if len(body) > LARGE_BODY_BYTES else read()
        except SenderError as error:
            raise _Refused(400, INVALID_ARGUMENT, str(error)) from None
        if accepted.rows:
            try:
                await asyncio.wrap_future(self._ingest.submit(accepted))
            except BusyError as error:
                raise _Refused(503, UNAVAILABLE, str(error)) from None
        await _send(send, 200, content_type, encode(export_response(accepted), content_type == JSON))

    async def _body(self, receive: Receive, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), self._config.read_timeout_s)
            except TimeoutError:
                raise _Refused(408, INVALID_ARGUMENT, "the body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise _Refused(400, INVALID_ARGUMENT, "the sender went away before the body was complete")
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _drain(self, receive: Receive) -> None:
        """Read what is left of a body, so that the answer reaches a sender still writing."""
        try:
            async with asyncio.timeout(1.0):
                while (await receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass

    async def _flush(self, send: Send) -> None:
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await asyncio.wrap_future(self._ingest.flush())
        except (BusyError, TimeoutError) as error:
            raise _Refused(503, UNAVAILABLE, str(error) or "the disk does not keep up; try again") from None
        await _send(send, 200, JSON, b'{"flushed":true}')

    async def _operate(self, path: str, send: Send) -> None:
        if path == "/metrics":
            await _send(send, 200, "text/plain; version=0.0.4", prometheus(self._ingest).encode())
        elif path == "/readyz" and self._ingest.problem is not None:
            await _send(send, 503, "text/plain", self._ingest.problem.encode())
        else:
            await _send(send, 200, "text/plain", b"ok")

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            return
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise _Refused(401, UNAUTHENTICATED, "a bearer token is needed: set OTEL_EXPORTER_OTLP_HEADERS")


def inflate(body: bytes, limit: int) -> bytes:
    """A gzip body, never inflated past `limit` bytes; SenderError when it is not gzip or is cut off."""
    engine = zlib.decompressobj(wbits=31)
    try:
        data = engine.decompress(body, limit + 1)
    except zlib.error:
        raise SenderError("the body is not valid gzip") from None
    if len(data) > limit:
        raise _too_large(limit)
    if not engine.eof:
        raise SenderError("the gzip body is cut off")
    return data


def _too_large(limit: int) -> _Refused:
    return _Refused(413, RESOURCE_EXHAUSTED, f"the body is larger than {limit} bytes; send smaller batches")


async def _send(
    send: Send,
    http_status: int,
    content_type: str,
    body: bytes,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
