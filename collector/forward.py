"""The tee: what was stored goes on to another OTLP endpoint, from the log, after redaction, each target by itself.

    forward: [{endpoint: "http://127.0.0.1:6006"}]

A target that is away costs nothing but disk up to its limit: senders never wait for it. Delivery is at least once: a
crash may send the last second again, as any OTLP client may. Redirects are not followed, proxies of the environment are
not used, and an address that only a machine's own network answers (169.254.0.0/16, where clouds keep credentials) is
refused after the name was resolved, on every connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import json
import logging
import random
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from otel_lightning.app.errors import ConfigError
from otel_lightning.app.listen import Address
from otel_lightning.collector.answers import RESPONSES
from otel_lightning.collector.backlog import Backlog
from otel_lightning.collector.config import ForwardConfig
from otel_lightning.collector.wal import Frame
from otel_lightning.store.files import write_json
from otel_lightning.store.lake import Lake

LOG = logging.getLogger("lightning-collect")
PATHS = {"spans": "/v1/traces", "events": "/v1/logs", "metrics": "/v1/metrics"}
RETRYABLE = frozenset({408, 429, 502, 503, 504})
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
SAVE_S = 1.0  # a crash sends again what was sent since
DRAIN_S = 5.0  # a target that answers gets the rest when the collector stops, for this long
MAX_ANSWER_BYTES = 4 << 20


@dataclass
class Counters:
    """What happened to rows since start, for one target."""

    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 0))
    refused: dict[str, int] = field(default_factory=dict)  # by HTTP status, or `partial`
    retries: int = 0


class Target:
    """Where to: address, headers and trust of one `forward` entry. ConfigError when it may not be used."""

    def __init__(self, config: ForwardConfig) -> None:
        self.config = config
        parts = urlsplit(config.endpoint)
        self.host, self.secure, self.prefix = parts.hostname or "", parts.scheme == "https", parts.path.rstrip("/")
        self.port = parts.port or (443 if self.secure else 4318)
        self.name = f"{self.host}:{self.port}{self.prefix}"
        self.headers = _headers(config.headers_file)
        if not self.secure and not config.insecure and not Address(self.host, self.port).is_loopback:
            raise ConfigError(
                f"forward: {config.endpoint} would carry content unencrypted to another machine; use https, "
                "or say insecure: true there if the network between is trusted"
            )
        self.tls: ssl.SSLContext | None = None
        if self.secure:
            try:
                self.tls = ssl.create_default_context(cafile=config.ca_file)
            except OSError as error:
                raise ConfigError(f"forward: {config.ca_file} holds no PEM certificates ({error.strerror})") from None

    def connect(self) -> http.client.HTTPConnection:
        """A connection to an address that was checked after the name was resolved."""
        timeout = self.config.timeout_s
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        allowed = [item for item in found if not is_forbidden(str(item[4][0]))]
        if not allowed:
            raise OSError(f"{self.host} resolves to an address that is never forwarded to")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        connection.auto_open = 0  # never by itself, to an address nobody checked
        raw = _first_that_answers([str(item[4][0]) for item in allowed], self.port, timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.sock = self.tls.wrap_socket(raw, server_hostname=self.host) if self.tls else raw
        except BaseException:
            raw.close()
            raise
        return connection


def _first_that_answers(addresses: list[str], port: int, timeout: float) -> socket.socket:
    """`localhost` is often two addresses of which one has a listener."""
    for number, address in enumerate(addresses, 1):
        try:
            return socket.create_connection((address, port), timeout)
        except OSError:
            if number == len(addresses):
                raise
    raise AssertionError("no address")


def is_forbidden(address: str) -> bool:
    """Link-local, multicast and unspecified addresses: no OTLP endpoint, but where clouds keep credentials."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or found
    return inner.is_link_local or inner.is_multicast or inner.is_unspecified


class Forwarder:
    """Sends the segments of a backlog to one target, in a thread of its own, from where it stopped."""

    def __init__(self, lake: Lake, backlog: Backlog, target: Target) -> None:
        self.target, self.counters = target, Counters()
        self._backlog, self._stop, self._drain_until = backlog, threading.Event(), float("inf")
        self._connection: http.client.HTTPConnection | None = None
        self._cursor_path = cursor_path(lake, target.config)
        self._segment, self._seq = _read_cursor(self._cursor_path)
        self._saved = time.monotonic()
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    def start(self) -> None:
        """Begin where an earlier process stopped."""
        self._backlog.skip_to(self.target.name, self._segment)
        self._thread.start()

    def stop(self) -> None:
        """Send what is left while the target answers, for a few seconds; the rest waits for the next start."""
        self._drain_until = time.monotonic() + DRAIN_S
        self._stop.set()
        self._thread.join(DRAIN_S + self.target.config.timeout_s)

    @property
    def waiting_bytes(self) -> int:
        """How much the target does not have yet."""
        return self._backlog.waiting_bytes(self.target.name)

    def _run(self) -> None:
        try:
            while self._goes_on():
                segment = self._backlog.next(self.target.name, 0.0 if self._stop.is_set() else 0.5)
                if segment is not None:
                    if not self._send_segment(segment):
                        break
                elif self._stop.is_set():
                    break
        finally:
            self._save()
            self._hang_up()

    def _goes_on(self) -> bool:
        return time.monotonic() < self._drain_until

    def _send_segment(self, segment: int) -> bool:
        """True when the target has all of it, or will not take it; False when we must stop first."""
        for frame in self._backlog.frames(segment):
            if (
                segment == self._segment and frame.last_seq <= self._seq
            ) or frame.signal not in self.target.config.signals:
                continue
            if not self._deliver(frame):
                return False
            self._segment, self._seq = segment, frame.last_seq
            if time.monotonic() - self._saved > SAVE_S:
                self._save()
        self._segment, self._seq = segment + 1, 0
        # The cursor first: a segment that is gone must not be expected again.
        self._save()
        self._backlog.finish(self.target.name, segment)
        return True

    def _deliver(self, frame: Frame) -> bool:
        delay = FIRST_RETRY_S
        while True:
            try:
                status, asked_s, partial = self._post(frame)
            except (OSError, http.client.HTTPException) as error:
                self._hang_up()
                status, asked_s, partial, problem = 0, None, 0, type(error).__name__
            else:
                problem = f"HTTP {status}"
            if status == 200:
                self._worked(frame, partial)
                return True
            if status and status not in RETRYABLE:
                self._count_refused(str(status), frame.rows)
                LOG.warning(
                    "%s refuses what is forwarded (%s); those rows stay in the lake only", self.target.name, problem
                )
                return True
            if self.problem is None:
                LOG.warning(
                    "%s does not take what is forwarded (%s); it is kept and tried again", self.target.name, problem
                )
            self.problem = problem
            self.counters.retries += 1
            if self._stop.is_set():
                return False
            # Half of it at random, so that many collectors do not return to one target in step.
            self._stop.wait(min(asked_s if asked_s is not None else delay * (0.5 + random.random() / 2), LAST_RETRY_S))
            delay = min(delay * 2, LAST_RETRY_S)

    def _worked(self, frame: Frame, partial: int) -> None:
        if self.problem is not None:
            LOG.info("%s takes what is forwarded again", self.target.name)
        self.problem = None
        if partial:
            self._count_refused("partial", partial)
        self.counters.sent[frame.signal] += frame.rows - min(partial, frame.rows)

    def _count_refused(self, why: str, rows: int) -> None:
        self.counters.refused[why] = self.counters.refused.get(why, 0) + rows

    def _post(self, frame: Frame) -> tuple[int, float | None, int]:
        """Status, the delay it asks for, and how many rows it rejected out of an accepted request."""
        kept_alive = self._connection is not None
        try:
            return self._request(frame)
        except (ConnectionError, http.client.HTTPException):
            if not kept_alive:
                raise
            self._hang_up()  # it closed a connection that was idle, as it may
        return self._request(frame)

    def _request(self, frame: Frame) -> tuple[int, float | None, int]:
        if self._connection is None:
            self._connection = self.target.connect()
        headers = {**self.target.headers, "Content-Type": "application/x-protobuf", "User-Agent": "lightning-collect"}
        self._connection.request("POST", self.target.prefix + PATHS[frame.signal], frame.body, headers)
        response = self._connection.getresponse()
        with contextlib.closing(response):
            answer = response.read(MAX_ANSWER_BYTES)
        if response.will_close:
            self._hang_up()
        partial = 0
        if response.status == 200:
            message, rejected = RESPONSES[frame.signal]
            with contextlib.suppress(Exception):  # what an endpoint answers beside 200 is its own affair
                partial = int(getattr(message.FromString(answer).partial_success, rejected))
        return response.status, _seconds(response.headers.get("Retry-After")), partial

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _save(self) -> None:
        self._saved = time.monotonic()
        with contextlib.suppress(Exception):  # a full disk: what was sent since the last time is sent again
            write_json(
                self._cursor_path, {"endpoint": self.target.config.endpoint, "segment": self._segment, "seq": self._seq}
            )


def cursor_path(lake: Lake, config: ForwardConfig) -> Path:
    """Where it is noted how far a target is."""
    return lake.wal / f"forward-{hashlib.sha256(config.endpoint.encode()).hexdigest()[:16]}.json"


def _read_cursor(path: Path) -> tuple[int, int]:
    try:
        value = json.loads(path.read_text())
        return int(value["segment"]), int(value["seq"])
    except FileNotFoundError:
        return 0, 0
    except (OSError, ValueError, KeyError, TypeError):
        LOG.warning("%s cannot be read; everything that still waits is forwarded", path)
        return 0, 0


def _headers(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"forward: headers_file {path} cannot be read as text") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip().isascii() or not value.strip().isascii():
            raise ConfigError(f"forward: {path}:{number} is no `name: value` line in plain ASCII")
        found[name.strip()] = value.strip()
    return found


def _seconds(text: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
