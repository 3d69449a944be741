"""A LangChain agent and a LangGraph graph, as their author wrote them. python langchain_agent.py SCENARIO…"""

import asyncio
import os
import sys
from typing import TypedDict

if os.environ.get("WAY_IN") == "code":
    from otel_lightning.instrumentation import instrument

    instrument(tokens=True)

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"22C in {city}"


def model(**options):
    return ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "scripted"), max_tokens=12, max_retries=2, **options)


def agent(tools=(get_weather,)):
    return create_agent(model(), list(tools), system_prompt="You are a weather agent.", name="weatherman")


def user(text):
    return {"messages": [{"role": "user", "content": text}]}


def tools():
    agent().invoke(user("Weather in Paris?"))


def plain():
    agent(()).invoke(user("Hello plain"))


async def streamed():
    """Tokens as they come, through the agent and from the model itself."""
    async for _ in agent(()).astream(user("Hello streamed"), stream_mode="messages"):
        pass


def model_stream():
    for _ in model().stream([("user", "Hello model")]):
        pass


class State(TypedDict):
    topic: str
    draft: str
    text: str


def graph():
    """A writer and an editor: two calls that do not continue one another, one run."""

    def write(state):
        return {"draft": model().invoke(f"Write about {state['topic']}").content}

    def edit(state):
        return {"text": model().invoke([("system", "You edit."), ("user", state["draft"] or "empty")]).content}

    builder = StateGraph(State)
    builder.add_node("write", write)
    builder.add_node("edit", edit)
    builder.add_edge(START, "write")
    builder.add_edge("write", "edit")
    builder.add_edge("edit", END)
    builder.compile().invoke({"topic": "rain", "draft": "", "text": ""})


def failing():
    try:
        model().with_config(run_name="failing").invoke("FAIL500")
    except Exception as error:
        print("failed:", type(error).__name__)
    model().invoke(f"FAIL429ONCE lc {os.getpid()}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name == "@served":  # from here on against the other model server
            os.environ |= {"OPENAI_BASE_URL": os.environ["SERVED_URL"], "OPENAI_MODEL": "current"}
            continue
        result = globals()[name]()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
