"""The desk's bot on LangChain. Reads {"conversation", "message"} lines, writes {"conversation", "reply"} lines.

OPENAI_BASE_URL=… OPENAI_API_KEY=… OPENAI_MODEL=… SHOP_DB=shop.db python -m bot.langchain_bot
"""

from __future__ import annotations

import asyncio
import os

from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from bot.desk import ACTIONS, SYSTEM, run_tool
from bot.queue import answer_lines
from bot.store import Store


def tools(store: Store) -> list[BaseTool]:
    """The desk's tools, each scoped to the customer of the conversation."""

    def on_order(name: str, description: str) -> BaseTool:
        async def use(order: str, config: RunnableConfig) -> str:
            return run_tool(store, config["configurable"]["thread_id"], name, order)

        return StructuredTool.from_function(coroutine=use, name=name, description=description)

    async def search(topic: str, config: RunnableConfig) -> str:
        return run_tool(store, config["configurable"]["thread_id"], "search_policy", topic)

    return [
        on_order("find_order", "Look an order up."),
        on_order("find_payment", "Look up how an order was paid."),
        StructuredTool.from_function(coroutine=search, name="search_policy", description="Search the shop's policies."),
        *(on_order(name, description) for name, description in ACTIONS.items()),
    ]


def main() -> None:
    """Answer customers until the queue closes."""
    store = Store(os.environ["SHOP_DB"])
    model = ChatOpenAI(
        model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        temperature=float(os.environ.get("OPENAI_TEMPERATURE", "1")),
        max_retries=2,
    )
    agent = create_agent(model, tools(store), system_prompt=SYSTEM, checkpointer=InMemorySaver())

    async def reply(conversation: str, message: str) -> str:
        config: RunnableConfig = {"configurable": {"thread_id": conversation}, "recursion_limit": 14}
        result = await agent.ainvoke({"messages": [{"role": "user", "content": message}]}, config)
        return result["messages"][-1].text

    asyncio.run(answer_lines(reply))


if __name__ == "__main__":
    main()
