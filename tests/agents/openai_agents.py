"""Agents of the OpenAI Agents SDK, one of which hands over to another. python openai_agents.py SCENARIO…"""

import asyncio
import os
import sys

if os.environ.get("WAY_IN") == "code":
    from otel_lightning.instrumentation import instrument

    instrument(tokens=True)

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_trace_processors,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

SETTINGS = ModelSettings(max_tokens=12)


@function_tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"22C in {city}"


async def handoff(model):
    """Triage hands over to the weatherman, who uses a tool."""
    weatherman = Agent(
        name="weatherman",
        instructions="You know the weather.",
        model=model,
        tools=[get_weather],
        model_settings=SETTINGS,
    )
    triage = Agent(
        name="triage", instructions="You hand over.", model=model, handoffs=[weatherman], model_settings=SETTINGS
    )
    await Runner.run(triage, "Weather in Paris?")


async def plain(model):
    agent = Agent(name="greeter", instructions="Be brief.", model=model, model_settings=SETTINGS)
    await Runner.run(agent, "Hello plain")


async def streamed(model):
    agent = Agent(name="streamer", instructions="Be brief.", model=model, model_settings=SETTINGS)
    async for _ in Runner.run_streamed(agent, "Hello streamed").stream_events():
        pass


async def replaced(model):
    """As those do who serve models of their own: nothing shall go to OpenAI."""
    set_trace_processors([])
    agent = Agent(name="replacer", instructions="Be brief.", model=model, model_settings=SETTINGS)
    await Runner.run(agent, "Hello replaced")


async def untraced(model):
    """Or so; once whole and once streamed."""
    set_tracing_disabled(True)
    await handoff(model)
    await streamed(model)
    set_tracing_disabled(False)


async def main(scenarios):
    for name in scenarios:
        if name == "@served":  # from here on against the other model server
            os.environ |= {"OPENAI_BASE_URL": os.environ["SERVED_URL"], "OPENAI_MODEL": "current"}
            continue
        # Not by OPENAI_API_KEY: the SDK would send its own traces to OpenAI with it.
        async with AsyncOpenAI(api_key=os.environ["MODEL_API_KEY"]) as client:
            chosen = os.environ.get("OPENAI_MODEL", "scripted")
            await globals()[name](OpenAIChatCompletionsModel(model=chosen, openai_client=client))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
