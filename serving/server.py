"""HTTP in front of the models: OpenAI paths, rollout paths, health, flush. A plain ASGI application under uvicorn."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from otel_lightning.app.errors import LightningError, SenderError
from otel_lightning.serving.chat import Chat
from otel_lightning.serving.engine import Engine
from otel_lightning.serving.pool import Pool
from otel_lightning.serving.records import Records

LOG = logging.getLogger("lightning-serve")
MAX_BODY_BYTES = 16 << 20
JSON = b"application/json"

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """The ASGI application."""

    def __init__(self, chat: Chat, pool: Pool, engine: Engine, records: Records, token: str | None) -> None:
        self._chat, self._pool, self._engine, self._records = chat, pool, engine, records
        self._token = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        method, path = scope["method"], scope["path"].rstrip("/")
        rollout_id = None
        if path.startswith("/r/"):
            rollout_id, _, rest = path[3:].partition("/")
            path = f"/{rest}" if rest else "/r"
        try:
            if method == "GET":
                await self._get(path, rollout_id, send)
            elif method != "POST":
                await _error(send, 405, f"{method} is not served here")
            elif self._token and not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
                await _error(send, 401, "a bearer token is needed: set OPENAI_API_KEY", kind="authentication_error")
            elif path == "/v1/chat/completions":
                await self._complete(headers, rollout_id, receive, send)
            elif path == "/flush":
                await self._flush(send)
            else:
                await _error(
                    send, 404, "nothing is here; chat completions are at /v1/chat/completions", kind="not_found_error"
                )
        except SenderError as error:
            await _error(send, 400, str(error))
        except LightningError as error:
            await _error(send, 404, str(error), kind="not_found_error")

    async def _complete(
        self, headers: dict[bytes, bytes], rollout_id: str | None, receive: Receive, send: Send
    ) -> None:
        try:
            body = orjson.loads(await _body(receive))
        except ValueError:
            raise SenderError("the body is not JSON") from None
        request = self._chat.read(body, rollout_id, headers)
        if not request.stream:
            await _send(send, 200, orjson.dumps(await self._chat.complete(request)))
            return
        chunks = self._chat.stream(request)
        # The first chunk is made before the answer begins, so that a bad request is still a 400.
        first = await anext(chunks)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send(_event(first))
        async for chunk in chunks:
            await send(_event(chunk))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _get(self, path: str, rollout_id: str | None, send: Send) -> None:
        if path == "/r" and rollout_id:
            await _send(send, 200, orjson.dumps({"calls": self._chat.count(rollout_id)}))
        elif path == "/v1/models":
            data = [
                {
                    "id": name,
                    "object": "model",
                    "created": 0,
                    "owned_by": "otel-lightning",
                    "root": self._pool.resolve(name),
                }
                for name in self._pool.names()
            ]
            await _send(send, 200, orjson.dumps({"object": "list", "data": data}))
        elif path == "/healthz":
            await _send(send, 200, b'{"status":"ok"}')
        elif path == "/readyz":
            self._pool.resolve("current")
            await _send(send, 200, b'{"status":"ready"}')
        elif path == "/metrics":
            text = (
                f"lightning_serve_calls_total {self._chat.calls}\n"
                f"lightning_serve_tokens_total {self._engine.tokens}\n"
                f"lightning_serve_batches_total {self._engine.batches}\n"
                f"lightning_serve_prompt_tokens_reused_total {self._engine.reused_tokens}\n"
                f"lightning_serve_records_total {self._records.emitted}\n"
                f"lightning_serve_records_lost_total {self._records.lost}\n"
            )
            await _send(send, 200, text.encode(), b"text/plain; version=0.0.4")
        else:
            await _error(send, 404, "nothing is here", kind="not_found_error")

    async def _flush(self, send: Send) -> None:
        import asyncio

        if await asyncio.to_thread(self._records.flush):
            await _send(send, 200, b'{"flushed":true}')
        else:
            await _error(send, 503, "the collector did not take the token records; is it running?", kind="server_error")


def _event(chunk: dict[str, Any]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + orjson.dumps(chunk) + b"\n\n", "more_body": True}


async def _body(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise SenderError("the sender went away")
        piece = message.get("body", b"")
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise SenderError(f"the body is larger than {MAX_BODY_BYTES} bytes")
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)


async def _error(send: Send, status: int, text: str, kind: str = "invalid_request_error") -> None:
    body = {"error": {"message": text, "type": kind, "param": None, "code": status}}
    await _send(send, status, orjson.dumps(body))


async def _send(send: Send, status: int, body: bytes, content_type: bytes = JSON) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
