"""OTLP over HTTP: POST …/v1/{traces,logs,metrics} (protobuf or JSON, identity or gzip), plus /flush, health, metrics.

Answers follow the OTLP specification: 200 only after the bytes are durable, 503 with Retry-After: 1 when
full (older exporters drop their batch on 429), google.rpc.Status bodies in the request's encoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from otel_lightning.app.errors import BusyError, SenderError
from otel_lightning.app.listen import Address, bound
from otel_lightning.collector import native
from otel_lightning.collector.answers import STATUS_CODES, encode, export_response, status
from otel_lightning.collector.check import Accepted
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.forward import Forwarder
from otel_lightning.collector.http_connection import Connection, Limits, Request, Response
from otel_lightning.collector.ingest import Done, Ingest, call_all
from otel_lightning.collector.metrics import prometheus

PATHS = {"traces": "spans", "logs": "events", "metrics": "metrics"}
PROTOBUF, JSON, TEXT = "application/x-protobuf", "application/json", "text/plain; version=0.0.4"
LARGE_BODY_BYTES = 256 << 10  # checking more than this would stall other connections: use a thread
LARGE_PLAIN_BYTES = 1 << 20  # the native check takes half a millisecond for this, less than handing it over and back
RULED_BODY_BYTES = 16 << 10  # the same where every text is searched for what rules name
FLUSH_TIMEOUT_S = 60.0
STOP_S = 10.0  # requests under way get this long when the collector stops
MAX_GZIP_MEMBERS = 64  # nobody sends more, and each costs a pass over what is left

Reply = Callable[[Response], None]
# What nearly every request is answered.
SUCCESS = {
    (signal, is_json): Response(
        200, JSON if is_json else PROTOBUF, encode(export_response(Accepted(signal, b"", 0)), is_json)
    )
    for signal in PATHS.values()
    for is_json in (False, True)
}


class TooLarge(SenderError):
    """A body that inflates past the limit."""


class HttpServer:
    """The HTTP listener; `start` returns when it answers, `stop` when open requests are done."""

    def __init__(
        self,
        ingest: Ingest,
        config: CollectConfig,
        listener: socket.socket,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address: Address = bound(listener)
        self.scheme = "http" if tls is None else "https"
        self._ingest, self._listener, self._tls = ingest, listener, tls
        self._token = token.encode() if token else None
        self._allowed_hosts = frozenset(name.lower() for name in config.allowed_hosts)
        self.forwarders: tuple[Forwarder, ...] = ()
        self._limits = Limits(config.max_body_bytes, config.queued_bytes, config.max_connections, config.read_timeout_s)
        self._connections: set[Connection] = set()
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="check")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="http", daemon=True)
        self._ready = threading.Event()

    def start(self) -> None:
        """Begin to listen in a thread of its own."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Stop accepting, let open requests finish."""
        with contextlib.suppress(RuntimeError):  # the loop ended by itself
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_S + 5)
        self._workers.shutdown()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(
            lambda: Connection(self, self._limits, self._connections), sock=self._listener, ssl=self._tls
        )
        self._ready.set()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)
            now = self._loop.time()
            for connection in list(self._connections):
                connection.check_deadline(now)
        server.close()
        for connection in list(self._connections):
            connection.finish()
        until = self._loop.time() + STOP_S
        while self._connections and self._loop.time() < until:
            await asyncio.sleep(0.02)

    # What a connection asks of its application

    def admit(self, request: Request) -> Response | None:
        """Refuse what its headers already condemn, before the body is read."""
        headers, path = request.headers, request.path.rstrip("/")
        if b"origin" in headers:
            return self.problem(403, "browsers may not send here", request)
        # A name that public DNS gives out may be a web page's, pointed at this machine (DNS rebinding).
        if self._token is None and not is_private_name(headers.get(b"host", b""), self._allowed_hosts):
            return self.problem(403, "this host name is not served; add it to allowed_hosts, or use a token", request)
        if request.method == "GET" and path in ("/healthz", "/readyz"):
            return None
        if self._token is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                return self.problem(401, "a bearer token is needed: set OTEL_EXPORTER_OTLP_HEADERS", request)
        if request.method == "GET" and path == "/metrics":
            return None
        if path.endswith("/v1development/profiles"):
            return self.problem(404, "profiles are not collected; turn that exporter off", request)
        signal = _signal(path)
        if signal is None and path != "/flush":
            return self.problem(404, "nothing is here; send OTLP to /v1/traces, /v1/logs or /v1/metrics", request)
        if request.method != "POST":
            return self.problem(405, f"{request.method} is not served here; use POST", request)
        if signal is None:
            if self._token is None and not _is_loopback(request.peer):
                return self.problem(403, "/flush is for this machine, or with a token", request)
            return None
        if _content_type(request) not in (PROTOBUF, JSON):
            return self.problem(415, f"content type must be {PROTOBUF} or {JSON}", request)
        if _encoding(request) not in ("", "identity", "gzip"):
            return self.problem(415, "content encoding must be identity or gzip", request)
        declared = headers.get(b"content-length", b"")
        busy = self._ingest.refusal(int(declared) if declared.isdigit() else 0)
        return None if busy is None else self.problem(503, busy, request, counted=True)

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request that is whole."""
        path = request.path.rstrip("/")
        signal = _signal(path)
        if signal is not None:
            self._export(signal, request, reply)
        elif path == "/flush":
            self._flush(request, reply)
        elif path == "/metrics":
            reply(Response(200, TEXT, prometheus(self._ingest, len(self._connections), self.forwarders).encode()))
        elif path == "/readyz" and self._ingest.problem is not None:
            reply(Response(503, TEXT, self._ingest.problem.encode()))
        else:
            reply(Response(200, TEXT, b"ok"))

    def problem(self, http_status: int, text: str, request: Request | None, *, counted: bool = False) -> Response:
        """An error as google.rpc.Status in the request's encoding; counted unless it was before."""
        if not counted:
            self._ingest.count_refusal(f"http_{http_status}")
        is_json = request is not None and _content_type(request) == JSON
        extra: tuple[tuple[str, str], ...] = ()
        if http_status == 503:
            extra = (("Retry-After", "1"),)
        elif http_status == 405:
            extra = (("Allow", "POST"),)
        elif http_status == 401:
            extra = (("WWW-Authenticate", "Bearer"),)
        body = encode(status(STATUS_CODES[http_status], text), is_json)
        return Response(http_status, JSON if is_json else PROTOBUF, body, extra)

    # Exports

    def _export(self, signal: str, request: Request, reply: Reply) -> None:
        rules = self._ingest.acceptance.rules is not None
        small = RULED_BODY_BYTES if rules else LARGE_BODY_BYTES
        plain = _content_type(request) == PROTOBUF and not _encoding(request)
        if signal == "spans" and not rules and plain and native.available():
            small = LARGE_PLAIN_BYTES
        if len(request.body) <= small:
            self._submit(self._check(signal, request), request, reply)
            return
        checked = self._workers.submit(self._check, signal, request)
        checked.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._submit, done.result(), request, reply)
        )

    def _check(self, signal: str, request: Request) -> Accepted | Response:
        try:
            body = request.body
            if _encoding(request) == "gzip":
                body = inflate(body, self._limits.body_bytes)
            acceptance = self._ingest.acceptance
            return (acceptance.json if _content_type(request) == JSON else acceptance.protobuf)(signal, body)
        except TooLarge as error:
            return self.problem(413, str(error), request)
        except SenderError as error:
            return self.problem(400, str(error), request)

    def _submit(self, checked: Accepted | Response, request: Request, reply: Reply) -> None:
        if isinstance(checked, Response):
            reply(checked)
        elif not checked.rows:
            reply(self._acknowledged(checked, request))
        else:

            def done(error: BusyError | None) -> None:
                if error is None:
                    reply(self._acknowledged(checked, request))
                else:
                    reply(self.problem(503, str(error), request, counted=True))

            self._ingest.send(checked, done, self._deliver)

    def _deliver(self, done: list[Done], error: BusyError | None) -> None:
        """Called by the writer: what became durable together wakes the loop once."""
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who asked
            self._loop.call_soon_threadsafe(call_all, done, error)

    def _acknowledged(self, accepted: Accepted, request: Request) -> Response:
        is_json = _content_type(request) == JSON
        if not accepted.rejected:
            return SUCCESS[accepted.signal, is_json]
        self._ingest.count_rejected(accepted.rejected)
        return Response(200, JSON if is_json else PROTOBUF, encode(export_response(accepted), is_json))

    def _flush(self, request: Request, reply: Reply) -> None:
        answered = False

        def once(response: Response) -> None:
            nonlocal answered
            if not answered:
                answered = True
                timer.cancel()
                reply(response)

        def late() -> None:
            once(self.problem(503, "the disk does not keep up; flush again", request))

        timer = self._loop.call_later(FLUSH_TIMEOUT_S, late)
        self._when_done(self._ingest.flush(), request, once, lambda: once(Response(200, JSON, b'{"flushed":true}')))

    def _when_done(self, future: Future[None], request: Request, reply: Reply, success: Callable[[], None]) -> None:
        """Answer from the loop's thread once `future` is done: `success`, or why we are busy."""

        def finish() -> None:
            error = future.exception()
            if error is None:
                success()
            elif isinstance(error, BusyError):
                reply(self.problem(503, str(error), request, counted=True))
            else:
                raise error

        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(finish))


def inflate(body: native.Bytes, limit: int) -> bytes:
    """A gzip body, never inflated past `limit` bytes; SenderError when it is not gzip or is cut off."""
    pieces: list[bytes] = []
    left = limit
    for _ in range(MAX_GZIP_MEMBERS):
        engine = zlib.decompressobj(wbits=31)
        try:
            piece = engine.decompress(body, left + 1)
        except zlib.error:
            raise SenderError("the body is not valid gzip") from None
        left -= len(piece)
        if left < 0:
            raise TooLarge(f"the body inflates to more than {limit} bytes; send smaller batches")
        if not engine.eof:
            raise SenderError("the gzip body is cut off")
        pieces.append(piece)
        body = engine.unused_data
        if not body:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    raise SenderError(f"the gzip body has more than {MAX_GZIP_MEMBERS} members")


@functools.lru_cache(64)
def is_private_name(host: bytes, allowed: frozenset[str]) -> bool:
    """Whether a Host header names this machine in a way that no web page can: an address, a local or a known name."""
    name = host.decode("latin-1").strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    name = name.rstrip(".")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return "." not in name or name.endswith((".localhost", ".internal", ".cluster.local", ".svc")) or name in allowed


def _signal(path: str) -> str | None:
    prefix, _, last = path.rpartition("/")
    return PATHS.get(last) if prefix.endswith("/v1") else None


def _content_type(request: Request) -> str:
    return _media_type(request.headers.get(b"content-type", b""))


def _encoding(request: Request) -> str:
    found = request.headers.get(b"content-encoding")
    return "" if found is None else found.decode("latin-1").strip().lower()


@functools.lru_cache(64)  # senders say the same again and again
def _media_type(header: bytes) -> str:
    return header.decode("latin-1").partition(";")[0].strip().lower()


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
