"""The same bot on the plain OpenAI SDK: its own tool loop, its own history.

OPENAI_BASE_URL=… OPENAI_API_KEY=… OPENAI_MODEL=… SHOP_DB=shop.db python -m bot.openai_bot
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from openai import AsyncOpenAI

from bot.desk import ACTIONS, SYSTEM, run_tool
from bot.queue import answer_lines
from bot.store import Store

MAX_CALLS = 6


def tool(name: str, description: str, argument: str = "order") -> dict[str, Any]:
    """A function in the API's form."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("find_order", "Look an order up."),
    tool("find_payment", "Look up how an order was paid."),
    tool("search_policy", "Search the shop's policies.", "topic"),
    *(tool(name, description) for name, description in ACTIONS.items()),
]


def main() -> None:
    """Answer customers until the queue closes."""
    store = Store(os.environ["SHOP_DB"])
    client = AsyncOpenAI()
    model = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
    temperature = float(os.environ.get("OPENAI_TEMPERATURE", "1"))
    histories: dict[str, list[Any]] = {}

    async def reply(conversation: str, message: str) -> str:
        messages = histories.setdefault(conversation, [{"role": "system", "content": SYSTEM}])
        messages.append({"role": "user", "content": message})
        for _ in range(MAX_CALLS):
            completion = await client.chat.completions.create(
                model=model,
                messages=messages,
                tools=TOOLS,
                temperature=temperature,
                metadata={"session_id": conversation},
            )
            answer = completion.choices[0].message
            messages.append(answer.model_dump(exclude_none=True))
            if not answer.tool_calls:
                return answer.content or ""
            for call in answer.tool_calls:
                arguments = json.loads(call.function.arguments)
                argument = str(next(iter(arguments.values()), ""))
                result = run_tool(store, conversation, call.function.name, argument)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return ""

    asyncio.run(answer_lines(reply))


if __name__ == "__main__":
    main()
