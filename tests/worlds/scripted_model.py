"""A model server that answers what the fixtures recorded: tool calls, hand-offs, Responses, 429, 500 and cut streams.

    python scripted_model.py LOG [--refuse-token-ids | --ignore-token-ids]

Chat completions and Responses, whole and streamed. Replies are those of tests/fixtures/otlp/openai-sdk/openinference-openai;
ids are fresh. Token ids are a hash of each word, so that a prompt which continues another continues its ids too. LOG gets
one JSON line a request: the ground truth.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDED = (
    Path(__file__).parents[1] / "fixtures" / "otlp" / "openai-sdk" / "openinference-openai" / "server_requests.jsonl"
)
EXCHANGES = [json.loads(line) for line in RECORDED.read_text().splitlines()]
CHATS = [e for e in EXCHANGES if e["path"].endswith("/chat/completions") and e["status"] == 200]
TOOL_REPLY = next(e["reply"] for e in CHATS if len(e["reply"]["tool_calls"]) == 1)
ANSWERS = [e["reply"] for e in CHATS if (e["reply"]["content"] or "").startswith("ANSWER turn") and not e["stream"]]
RESPONSES = [e["reply"] for e in EXCHANGES if e["path"].endswith("/responses") and not e["stream"]]
LOGPROBS = TOOL_REPLY["logprobs"]
LOCK = threading.Lock()
SEEN: set[str] = set()


def ids_of(message: dict[str, Any]) -> list[int]:
    """The same ids for the same message, wherever it stands."""
    calls = [
        [c["function"]["name"], json.loads(c["function"]["arguments"] or "{}")] for c in message.get("tool_calls") or ()
    ]
    text = f"{message['role']} {text_of(message)} {json.dumps(calls, sort_keys=True) if calls else ''} END"
    return [zlib.crc32(word.encode()) % 50_000 for word in text.split()]


def text_of(message: dict[str, Any]) -> str:
    """The text of a message."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def chat_reply(body: dict[str, Any]) -> dict[str, Any]:
    """The recorded reply that fits: a tool call when a tool is offered and the user has just spoken, else the answer."""
    messages = body["messages"]
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    handed_over = (
        messages[-1]["role"] == "tool"
        and not any(name.startswith("transfer_to_") for name in tools)
        and _asked(messages)
    )
    if tools and (messages[-1]["role"] == "user" or handed_over):
        transfer = next((name for name in tools if name.startswith("transfer_to_")), None)
        call = json.loads(json.dumps(TOOL_REPLY["tool_calls"][0]))
        call["id"] = f"call_{uuid.uuid4().hex[:8]}"
        if transfer:
            call["function"] = {"name": transfer, "arguments": "{}"}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    turn = max(1, sum(message["role"] == "user" for message in messages))
    recorded = next((a for a in ANSWERS if f"turn {turn}:" in a["content"]), ANSWERS[0])
    ending = " TERMINATE" if "TERMINATE" in text_of(messages[0]) else ""
    return {"role": "assistant", "content": recorded["content"] + ending}


def _asked(messages: list[dict[str, Any]]) -> bool:
    """Whether the last tool message answers a hand-off."""
    calls = [c for m in messages for c in m.get("tool_calls") or () if c["id"] == messages[-1].get("tool_call_id")]
    return any(call["function"]["name"].startswith("transfer_to_") for call in calls)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for a delayed acknowledgement
    log_file: Path
    refuse = ignore = False

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: standard output is the test's."""

    def do_GET(self) -> None:
        """The list of models."""
        self._json(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self) -> None:
        """Answer, or fail as the user asks."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        last = text_of((body["messages"] if chat else [{"content": str(body.get("input"))}])[-1])
        self.exchange = {
            "path": self.path,
            "request": body,
            "traceparent": self.headers.get("traceparent"),
            "stream": bool(body.get("stream")),
        }
        if self.refuse and "return_token_ids" in body:
            self._fail(400, "unknown parameter: return_token_ids")
        elif "FAIL500" in last:
            self._fail(500, "recorded failure")
        elif "FAIL429ONCE" in last and self._first(last):
            self._fail(429, "slow down")
        elif chat:
            self._chat(body, cut="FAILMID" in last)
        else:
            self._responses(body)

    def _first(self, text: str) -> bool:
        with LOCK:
            first = text not in SEEN
            SEEN.add(text)
        return first

    def _chat(self, body: dict[str, Any], cut: bool) -> None:
        message = chat_reply(body)
        prompt = [token for m in body["messages"] for token in ids_of(m)]
        ids = ids_of(message)
        logprobs = [LOGPROBS[i % len(LOGPROBS)] for i in range(len(ids))]
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": "scripted-2024-07-18",
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(ids),
                "total_tokens": len(prompt) + len(ids),
            },
        }
        self.exchange |= {"response_id": answer["id"], "reply": message, "finish_reason": finish}
        self.exchange |= {"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs}
        content = [
            {"token": str(i), "logprob": p, "bytes": [], "top_logprobs": []} for i, p in zip(ids, logprobs, strict=True)
        ]
        asked = bool(body.get("return_token_ids")) and not self.ignore
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": content}
            if asked:
                choice["token_ids"] = ids
                answer["prompt_token_ids"] = prompt
            self._json(200, {**answer, "object": "chat.completion", "choices": [choice]})
            return
        usage = answer.pop("usage")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if message.get("tool_calls"):
            deltas.append({"tool_calls": [{"index": k, **call} for k, call in enumerate(message["tool_calls"])]})
        else:
            deltas += [{"content": part} for part in _parts(message["content"])]
        chunks: list[dict[str, Any]] = []
        for number, delta in enumerate(deltas):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            if number == 1 and body.get("logprobs"):
                choice["logprobs"] = {"content": content}
            if number == 1 and asked:
                choice["token_ids"] = ids
            chunks.append({**answer, "object": "chat.completion.chunk", "choices": [choice]})
        if asked:
            chunks[0]["prompt_token_ids"] = prompt
        chunks.append(
            {
                **answer,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {}, "finish_reason": finish}],
            }
        )
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**answer, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self._stream([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"], cut)

    def _responses(self, body: dict[str, Any]) -> None:
        given = body.get("input")
        answered = isinstance(given, list) and given[-1].get("type") == "function_call_output"
        wants_tool = bool(body.get("tools")) and not answered
        kind = "function_call" if wants_tool else "message"
        recorded = next(r for r in RESPONSES if r["output"][0]["type"] == kind)
        output = json.loads(json.dumps(recorded["output"]))
        if wants_tool:
            output[0]["call_id"] = f"call_{uuid.uuid4().hex[:8]}"
        response_id = f"resp_{uuid.uuid4().hex}"
        self.exchange |= {"response_id": response_id, "reply": output}
        self._json(200, {
            "id": response_id, "object": "response", "created_at": int(time.time()), "status": "completed",
            "model": "scripted-2024-07-18", "output": output, "parallel_tool_calls": True, "tool_choice": "auto",
            "tools": body.get("tools") or [], "error": None, "incomplete_details": None, "instructions": None,
            "metadata": {}, "temperature": 1.0, "top_p": 1.0,
            "usage": {"input_tokens": 9, "output_tokens": 8, "total_tokens": 17,
                      "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
        })  # fmt: skip

    def _fail(self, status: int, words: str) -> None:
        self._json(status, {"error": {"message": words, "type": "server_error", "code": None, "param": None}})

    def _json(self, status: int, value: Any) -> None:
        self._log(status)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("retry-after-ms", "50")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: list[str], cut: bool) -> None:
        self.exchange["cut"] = cut
        self._log(200)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events[: 3 if cut else None]:
            data = event.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        if cut:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _log(self, status: int) -> None:
        if self.command != "POST":
            return
        with LOCK, open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps({**self.exchange, "status": status}) + "\n")


def _parts(text: str) -> list[str]:
    words = text.split(" ")
    return [word if not i else f" {word}" for i, word in enumerate(words)]


if __name__ == "__main__":
    Handler.log_file = Path(sys.argv[1])
    Handler.refuse = "--refuse-token-ids" in sys.argv
    Handler.ignore = "--ignore-token-ids" in sys.argv
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"listening http http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
