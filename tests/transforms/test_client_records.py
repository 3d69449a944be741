"""Token records that an agent makes, and what a process says of its own spans: small enough to check by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from running import Otlp, attributes

from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(otlp: Otlp, span_id: str, parent: str | None, **values: Any) -> dict[str, Any]:
    start = otlp.tick()
    made = {
        "traceId": TRACE, "spanId": span_id, "name": "x", "kind": 1, "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(otlp.tick()), "attributes": attributes(values),
    }  # fmt: skip
    return {**made, "parentSpanId": parent} if parent else made


def call(otlp: Otlp, span_id: str, parent: str | None, response_id: str, *messages: str) -> dict[str, Any]:
    values: dict[str, Any] = {"openinference.span.kind": "LLM", "gen_ai.response.id": response_id}
    for number, text in enumerate(messages[:-1]):
        values[f"llm.input_messages.{number}.message.role"] = ("user", "assistant")[number % 2]
        values[f"llm.input_messages.{number}.message.content"] = text
    values |= {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": messages[-1]}
    return span(otlp, span_id, parent, **values)


def record(
    otlp: Otlp, span_id: str, parent: str, response_id: str, ids: list[int], answer: list[int], **more: Any
) -> Any:
    return span(otlp, span_id, parent, **{
        "lightning.capture": "client", "gen_ai.response.id": response_id, "lightning.prompt.token_ids": ids,
        "lightning.choice.0.token_ids": answer, "lightning.choice.0.logprobs": [-0.5] * len(answer), **more,
    })  # fmt: skip


def calls(otlp: Otlp, lake: Path, columns: str) -> list[Any]:
    otlp.flush()
    run_transform(lake, TransformConfig(), now_unix_nano=time.time_ns())
    with open_tables(lake) as connection:
        return connection.execute(
            f"select {columns} from calls left join rollouts using (rollout_id) order by step"
        ).fetchall()


def test_a_prompt_is_put_together_from_the_calls_that_it_continues(otlp: Otlp, tmp_path: Path) -> None:
    more = lambda prefix, length: {"lightning.prompt.prefix_response_id": prefix, "lightning.prompt.length": length}  # noqa: E731
    otlp.send([
        record(otlp, "c" * 15 + "3", "a" * 15 + "3", "r3", [8], [9], **more("r2", 8)),  # arrives first
        span(otlp, "f" * 16, None, **{"lightning.span.count": 7}),
        call(otlp, "a" * 15 + "1", "f" * 16, "r1", "hi", "yo"),
        record(otlp, "c" * 15 + "1", "a" * 15 + "1", "r1", [1, 2], [3], **{"lightning.prompt.length": 2}),
        call(otlp, "a" * 15 + "2", "f" * 16, "r2", "hi", "yo", "more", "sure"),
        record(otlp, "c" * 15 + "2", "a" * 15 + "2", "r2", [4, 5], [6, 7], **more("r1", 5)),
        call(otlp, "a" * 15 + "3", "f" * 16, "r3", "hi", "yo", "more", "sure", "and", "yes"),
    ])  # fmt: skip
    rows = calls(otlp, tmp_path / "lake", "prompt_ids, response_ids, token_source, spans_declared")
    assert rows == [
        ([1, 2], [[3]], "captured", 7),
        ([1, 2, 3, 4, 5], [[6, 7]], "captured", 7),
        ([1, 2, 3, 4, 5, 6, 7, 8], [[9]], "captured", 7),
    ]


def test_a_lost_link_or_a_wrong_length_leaves_a_prompt_unknown_and_a_server_that_knows_wins(
    otlp: Otlp, tmp_path: Path
) -> None:
    served = {
        "lightning.capture": "serve", "gen_ai.response.id": "r2", "lightning.prompt.token_ids": [1, 2, 3, 4],
        "lightning.choice.0.token_ids": [5], "lightning.choice.0.logprobs": [-0.1], "gen_ai.operation.name": "chat",
    }  # fmt: skip
    otlp.send([
        span(otlp, "f" * 16, None),
        call(otlp, "a" * 15 + "1", "f" * 16, "r1", "one", "1"),
        record(otlp, "c" * 15 + "1", "a" * 15 + "1", "r1", [9], [3], **{"lightning.prompt.prefix_response_id": "r0", "lightning.prompt.length": 4}),
        call(otlp, "a" * 15 + "2", "f" * 16, "r2", "two", "2"),
        span(otlp, "d" * 16, "a" * 15 + "2", **served),
        record(otlp, "c" * 15 + "2", "a" * 15 + "2", "r2", [4], [5], **{"lightning.prompt.prefix_response_id": "r1", "lightning.prompt.length": 4}),
        call(otlp, "a" * 15 + "3", "f" * 16, "r3", "three", "3"),
        record(otlp, "c" * 15 + "3", "a" * 15 + "3", "r3", [9, 9], [3], **{"lightning.prompt.length": 3}),
    ])  # fmt: skip
    rows = calls(otlp, tmp_path / "lake", "prompt_ids, response_logprobs, token_source")
    assert rows == [(None, [[-0.5]], "none"), ([1, 2, 3, 4], [[-0.1]], "engine"), (None, [[-0.5]], "none")]


def test_a_servers_spans_make_up_for_none_that_a_process_lost(otlp: Otlp, tmp_path: Path) -> None:
    agent, server = (
        {"service.name": "a", "service.instance.id": "i-1"},
        {"service.name": "s", "service.instance.id": "i-2"},
    )
    otlp.send(
        [span(otlp, "f" * 16, None, **{"lightning.span.count": 3}), call(otlp, "a" * 16, "f" * 16, "r1", "one", "1")],
        resource=agent,
    )
    otlp.send([span(otlp, c * 16, "a" * 16) for c in "bcd"], resource=server)
    ((spans, declared, complete),) = calls(otlp, tmp_path / "lake", "spans, spans_declared, complete")
    assert (spans, declared, complete) == (5, 3, False)  # an hour old, so quiet for long: only the count holds it back
    otlp.send([span(otlp, "e" * 16, "f" * 16)], resource=agent)
    ((spans, declared, complete),) = calls(otlp, tmp_path / "lake", "spans, spans_declared, complete")
    assert (spans, declared, complete) == (6, 3, True)


def test_langchains_agents_have_names(otlp: Otlp, tmp_path: Path) -> None:
    named = call(otlp, "a" * 16, "f" * 16, "r1", "one", "1")
    named["attributes"] += attributes({"metadata": '{"lc_agent_name": "weatherman", "thread_id": "t"}'})
    otlp.send([span(otlp, "f" * 16, None, **{"openinference.span.kind": "CHAIN"}), named])
    assert calls(otlp, tmp_path / "lake", "agent") == [("weatherman",)]
