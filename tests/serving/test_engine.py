"""Batches of unlike prompts and prompts that were half read before are answered as if each were alone and read whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otel_lightning.serving.cache import Prefixes
from otel_lightning.serving.engine import Answer, Engine, Sampling
from otel_lightning.serving.pool import Pool

VERSION = "model"  # a single folder is named after itself


@pytest.fixture
def pool(checkpoint: Path) -> Pool:
    return Pool(folder=checkpoint)


@pytest.fixture
def engine(pool: Pool) -> Iterator[Engine]:
    engine = Engine(pool, window_s=0.05)
    yield engine
    engine.stop()


def ask(engine: Engine, prompts: list[list[int]], **sampling: Any) -> list[Answer]:
    futures = [engine.submit(VERSION, prompt, Sampling(**{"max_tokens": 12, **sampling})) for prompt in prompts]
    return [future.result(60) for future in futures]


def drawn(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(200) for _ in range(length)] for length in lengths]


def worst(pool: Pool, prompts: list[list[int]], answers: list[Answer]) -> float:
    """The largest difference between a recorded log-probability and that of a full forward pass of the one sequence."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = pool.get(VERSION).model(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        found.append(float((expected - torch.tensor(answer.logprobs)).abs().max()))
    return max(found)


def test_a_batch_of_unlike_prompts_has_each_ones_own_logprobs(engine: Engine, pool: Pool) -> None:
    prompts = drawn(0, [1, 2, 3, 9, 10, 11, 40, 41, 120, 121, 300])
    answers = ask(engine, prompts)
    assert engine.batches == 1, "they were answered together"
    assert worst(pool, prompts, answers) < 1e-4


def test_what_was_read_in_an_earlier_turn_is_not_read_again_and_changes_nothing(engine: Engine, pool: Pool) -> None:
    talks = drawn(1, [5, 17, 33, 60])
    for turn in range(4):
        fresh = drawn(10 + turn, [3, 25, 80])
        prompts = [*talks, *fresh]
        before = engine.reused_tokens
        answers = ask(engine, prompts)
        assert worst(pool, prompts, answers) < 1e-4
        known = sum(len(talk) for talk in talks) - (len(talks) * 4)  # the last answer's end, and what the user added
        assert engine.reused_tokens - before == (known if turn else 0)
        talks = [talk + answer.ids + [7, 8, 9] for talk, answer in zip(talks, answers[: len(talks)], strict=True)]


def test_at_least_the_last_token_of_a_prompt_is_read(engine: Engine) -> None:
    (prompt,) = drawn(2, [30])
    (first,) = ask(engine, [prompt], temperature=0.0)
    known = prompt + first.ids[:-1]
    again = ask(engine, [prompt, known, prompt[:20]], temperature=0.0)
    assert engine.reused_tokens == 0, "each of these is known to its end or not at all"
    assert again[0].ids == first.ids
    assert again[1].ids[0] == first.ids[-1]
    (beyond,) = ask(engine, [[*known, first.ids[-1]]], temperature=0.0)
    assert engine.reused_tokens == len(known)
    assert len(beyond.ids) == 12


def test_without_room_nothing_is_kept_and_answers_are_the_same(pool: Pool, engine: Engine) -> None:
    bare = Engine(pool, window_s=0.05, prefix_bytes=0)
    try:
        prompts = drawn(3, [6, 12])
        longer = [[*prompt, 1, 2] for prompt in prompts]
        for batch in (prompts, longer):
            kept, read = (ask(e, batch, temperature=0.0) for e in (engine, bare))
            assert [answer.ids for answer in kept] == [answer.ids for answer in read]
        assert bare.reused_tokens == 0
    finally:
        bare.stop()


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    def columns(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(2, tokens, 4), torch.zeros(2, tokens, 4))]

    prefixes = Prefixes(3 * 64 * 10)  # 64 bytes a token: three sequences of ten
    for number in range(3):
        prefixes.keep("v1", tuple(range(number, number + 10)), columns(10))
    assert prefixes.longest("v1", [*range(0, 10), 99]) is not None, "used again"
    prefixes.keep("v1", tuple(range(3, 13)), columns(10))
    assert prefixes.longest("v1", [*range(1, 11), 99]) is None
    assert prefixes.longest("v1", [*range(0, 10), 99]) is not None
    assert prefixes.longest("v2", [*range(0, 10), 99]) is None, "another version computed nothing of it"
    assert prefixes.longest("v1", [*range(0, 10)]) is None, "the last token must be read"
    prefixes.keep("v1", tuple(range(500, 1500)), columns(1000))
    assert prefixes.longest("v1", [*range(500, 1500), 1]) is None, "larger than the bound"
