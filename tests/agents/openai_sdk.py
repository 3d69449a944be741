"""An agent on the plain OpenAI SDK, as its author wrote it: no import of ours. python openai_sdk.py SCENARIO…"""

import asyncio
import contextlib
import json
import os
import sys

import openai

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": TOOL}]


def model():
    return os.environ.get("OPENAI_MODEL", "scripted")


def get_weather(city):
    return f"22C in {city}"


def said(answer):
    return answer.choices[0].message.model_dump(exclude_none=True)


def sync(client):
    """Two turns of one conversation."""
    messages = [{"role": "system", "content": "You are a weather agent."}, {"role": "user", "content": "Hello sync"}]
    answer = client.chat.completions.create(model=model(), messages=messages, max_tokens=12)
    messages += [said(answer), {"role": "user", "content": "And tomorrow?"}]
    client.chat.completions.create(model=model(), messages=messages, max_tokens=12)


async def asynchronous(client):
    """Three conversations at once."""

    async def one(number):
        messages = [{"role": "user", "content": f"async {number}"}]
        return await client.chat.completions.create(model=model(), messages=messages, max_tokens=12)

    await asyncio.gather(*(one(number) for number in range(3)))
    stream = await client.chat.completions.create(
        model=model(), messages=[{"role": "user", "content": "async stream"}], max_tokens=12, stream=True
    )
    async for _ in stream:
        pass


def stream(client):
    """With and without usage."""
    for text, options in (("stream usage", {"stream_options": {"include_usage": True}}), ("stream bare", {})):
        parts = client.chat.completions.create(
            model=model(), messages=[{"role": "user", "content": text}], max_tokens=12, stream=True, **options
        )
        "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


def tools(client):
    """The usual loop."""
    messages = [{"role": "user", "content": "Weather in Paris?"}]
    while True:
        answer = client.chat.completions.create(model=model(), messages=messages, tools=TOOLS, temperature=0.7)
        messages.append(said(answer))
        calls = answer.choices[0].message.tool_calls
        if not calls:
            return
        for call in calls:
            result = get_weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def responses(client):
    """The Responses API with a tool."""
    items = [{"role": "user", "content": "Weather by responses?"}]
    answer = client.responses.create(model=model(), input=items, tools=[{"type": "function", "strict": None, **TOOL}])
    call = answer.output[0]
    items += [
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "22C"},
    ]
    client.responses.create(model=model(), input=items, tools=[{"type": "function", "strict": None, **TOOL}])


def failing(client):
    """A server error, a retry that succeeds, a stream that is cut."""
    with contextlib.suppress(openai.InternalServerError):
        client.with_options(max_retries=0).chat.completions.create(
            model=model(), messages=[{"role": "user", "content": "FAIL500"}]
        )
    client.chat.completions.create(model=model(), messages=[{"role": "user", "content": f"FAIL429ONCE {os.getpid()}"}])
    try:
        for _ in client.chat.completions.create(
            model=model(), messages=[{"role": "user", "content": "FAILMID"}], stream=True
        ):
            pass
    except Exception as error:
        print("cut:", type(error).__name__)


def main(scenarios):
    for name in scenarios:
        if name == "@served":  # from here on against the other model server
            os.environ |= {"OPENAI_BASE_URL": os.environ["SERVED_URL"], "OPENAI_MODEL": "current"}
        elif name == "asynchronous":

            async def run():
                async with openai.AsyncOpenAI() as client:
                    await asynchronous(client)

            asyncio.run(run())
        else:
            with openai.OpenAI() as client:
                globals()[name](client)


if __name__ == "__main__":
    if os.environ.get("WAY_IN") == "code":
        from otel_lightning.instrumentation import instrument

        instrument(tokens=True)
    main(sys.argv[1:])
