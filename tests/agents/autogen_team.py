"""An AutoGen assistant with a tool and a team of two, as their author wrote them. python autogen_team.py SCENARIO…"""

import asyncio
import os
import sys
import warnings

if os.environ.get("WAY_IN") == "code":
    from otel_lightning.instrumentation import instrument

    instrument(tokens=True)

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import SingleThreadedAgentRuntime
from autogen_ext.models.openai import OpenAIChatCompletionClient

warnings.filterwarnings("ignore", "Resolved model mismatch")


def client():
    information = {
        "vision": False,
        "function_calling": True,
        "json_output": False,
        "structured_output": False,
        "family": "unknown",
    }
    return OpenAIChatCompletionClient(
        model=os.environ.get("OPENAI_MODEL", "scripted"), max_tokens=12, model_info=information
    )


async def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"22C in {city}"


async def tools(model):
    agent = AssistantAgent(
        "weatherman", model, tools=[get_weather], system_message="You are a weather agent.", reflect_on_tool_use=True
    )
    await agent.run(task="Weather in Paris?")


async def plain(model):
    await AssistantAgent("greeter", model, system_message="Be brief.").run(task="Hello plain")


async def team(model):
    """Two who speak in turn, read as a stream."""
    members = [
        AssistantAgent("writer", model, system_message="You write."),
        AssistantAgent("critic", model, system_message="You criticise."),
    ]
    group = RoundRobinGroupChat(members, termination_condition=MaxMessageTermination(4))
    async for _ in group.run_stream(task="Hello team"):
        pass


async def shared_runtime(model):
    """Two teams' runs on a runtime that was started before any of them."""
    runtime = SingleThreadedAgentRuntime()
    runtime.start()
    for name in ("first", "second"):
        members = [AssistantAgent(f"{name}_{role}", model, system_message=role) for role in ("writer", "critic")]
        group = RoundRobinGroupChat(members, runtime=runtime, termination_condition=MaxMessageTermination(3))
        await group.run(task=f"Hello {name}")
    await runtime.stop_when_idle()


async def main(scenarios):
    for name in scenarios:
        if name == "@served":  # from here on against the other model server
            os.environ |= {"OPENAI_BASE_URL": os.environ["SERVED_URL"], "OPENAI_MODEL": "current"}
            continue
        model = client()
        await globals()[name](model)
        await model.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
