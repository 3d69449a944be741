"""The message queue that customers' messages arrive on: one JSON object a line in, one a line out."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable


async def answer_lines(reply: Callable[[str, str], Awaitable[str]]) -> None:
    """Answer each line of standard input as it comes, many at a time, until it closes."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def answer(line: bytes) -> None:
        given = json.loads(line)
        answered = {"conversation": given["conversation"]}
        try:
            answered["reply"] = await reply(given["conversation"], given["message"])
        except Exception as error:
            answered["error"] = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps(answered), flush=True)

    print(json.dumps({"ready": True}), flush=True)
    while line := await reader.readline():
        task = asyncio.create_task(answer(line))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.gather(*running)
