"""Headers that came before are not parsed again; whatever a sender does, it is answered as if they were."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from otel_lightning.collector import http_connection
from otel_lightning.collector.http_connection import Connection, Limits, Request, Response

PLAIN = b"POST /v1/traces HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\nContent-Type: application/x-protobuf\r\n\r\n"
HEADERS = [
    PLAIN,
    b"POST /v1/traces HTTP/1.1\r\nHost: here\r\ncontent-length: %d\r\n\r\n",
    b"POST /refused HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n",
    b"POST /v1/logs HTTP/1.1\r\nX: Content-Length: 7\r\nContent-Length: %d\r\nY: z\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
    b"POST /v1/traces HTTP/1.0\r\nContent-Length: %d\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: %d\r\nContent-Length: 3\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: %d \r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: 0%d\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: +%d\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nContent-Length: %d\r\n folded\r\n\r\n",
]


class Application:
    def __init__(self) -> None:
        self.handled: list[tuple[str, str, dict[bytes, bytes], bytes]] = []
        self.open: list[Callable[[Response], None]] = []

    def admit(self, request: Request) -> Response | None:
        return Response(403, "text/plain", b"no") if request.path == "/refused" else None

    def handle(self, request: Request, reply: Callable[[Response], None]) -> None:
        self.handled.append((request.method, request.path, request.headers, bytes(request.body)))
        self.open.append(reply)

    def problem(self, http_status: int, text: str, request: Request | None) -> Response:
        return Response(http_status, "text/plain", text.encode())


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written, self.paused, self.closed = b"", False, False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def conversation(pieces: list[bytes]) -> tuple[list[Any], bytes, bool, int, int]:
    """What is handled, what is answered, whether it ended in hanging up, what is still counted; and headers known."""

    async def talk() -> tuple[list[Any], bytes, bool, int, int]:
        application, transport = Application(), Transport()
        limits = Limits(5000, 1 << 20, 10, 30.0)
        connection = Connection(application, limits, set())
        connection.connection_made(transport)
        taken = 0
        take = connection._repeated

        def counted(data: bytes) -> bool:
            nonlocal taken
            found = take(data)
            taken += found
            return found

        connection._repeated = counted  # type: ignore[method-assign]
        for piece in pieces:
            left = memoryview(piece)
            while len(left) and not transport.closed:
                while transport.paused and application.open:
                    application.open.pop(0)(Response(200, "text/plain", b"ok"))
                into = connection.get_buffer(-1)
                size = min(len(into), len(left))
                into[:size] = left[:size]
                connection.buffer_updated(size)
                left = left[size:]
            while application.open:
                application.open.pop(0)(Response(200, "text/plain", b"ok"))
        connection.connection_lost(None)
        return application.handled, transport.written, transport.closed, limits.buffered, taken

    return asyncio.run(talk())


@pytest.mark.row(42)
def test_a_stream_of_requests_cut_anywhere_is_answered_as_the_parser_alone_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "DIRECT_BYTES", 3000)
    taken = odd = 0
    for seed in range(1500):
        chance = random.Random(seed)
        kinds = [PLAIN, PLAIN, chance.choice(HEADERS[:4]), chance.choice(HEADERS)]
        stream, borders = b"", [0]
        for _ in range(chance.randrange(2, 9)):
            length = chance.choice([0, 1, 9, 10, 99, 100, 999, 2999, 3000, 3001, 5000, 5001])
            head = chance.choice(kinds) % length
            stream += head + b"POST /v1/traces HTTP/1.1\r\nContent-Length: 3\r\n\r\n".ljust(length, b"x")[:length]
            borders += [len(stream) - length, len(stream)]
        if chance.random() < 0.3:
            borders = [0]
        cuts = sorted({*borders, *(chance.randrange(len(stream)) for _ in range(chance.randrange(6))), len(stream)})
        pieces = [stream[begin:end] for begin, end in itertools.pairwise(cuts)]
        *found, known = conversation(pieces)
        taken += known
        odd += b" 200 " not in found[1]
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_learn", lambda *_: None)
            *expected, known = conversation(pieces)
        assert known == 0
        assert found == expected, f"seed {seed}"
    assert taken > 500 and odd


def test_headers_are_known_by_their_bytes_alone() -> None:
    for headers in HEADERS:
        *_, taken = conversation([headers % 5 + b"12345", headers % 4 + b"1234", PLAIN % 3 + b"123"])
        known = headers in (PLAIN, *HEADERS[1:4], HEADERS[10])
        assert taken == (2 if headers == PLAIN else known), headers
