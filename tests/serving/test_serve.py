"""lightning-serve as an OpenAI client meets it, on a small real checkpoint."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from running import SCRIPTS, Process, lake_of

from otel_lightning.store.policies import Policies
from otel_lightning.training.models import load

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Any:
    """One server for the tests that only ask."""
    running = Process(
        [
            str(SCRIPTS / "lightning-serve"),
            "--lake",
            str(lake_of(tmp_path_factory.mktemp("served"), checkpoint)),
            "--port",
            "0",
        ]
    )
    yield running
    running.stop()


@pytest.fixture
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "current", "messages": MESSAGES, "max_tokens": 12, **options})


def test_logprobs_are_those_of_a_full_forward_pass(client: openai.OpenAI, checkpoint: Path) -> None:
    model, _, _ = load(checkpoint)
    for temperature in (1.0, 0.7):
        answer = chat(client, temperature=temperature, logprobs=True, extra_body={"return_token_ids": True})
        prompt, ids = answer.prompt_token_ids, answer.choices[0].token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        recorded = torch.tensor([item.logprob for item in answer.choices[0].logprobs.content])
        assert torch.allclose(recorded, expected, atol=1e-4)
        # A shifted id or another temperature must be caught by this very comparison.
        assert not torch.allclose(
            recorded,
            torch.log_softmax(logits * temperature * 0.5, -1).gather(1, torch.tensor(ids)[:, None])[:, 0],
            atol=1e-4,
        )
        assert not torch.allclose(recorded.roll(1), expected, atol=1e-4)


def test_a_seed_gives_the_same_answer_alone_and_in_company(client: openai.OpenAI) -> None:
    alone = chat(client, seed=7, temperature=1.0).choices[0].message.content
    answers: list[str] = []

    def ask(seed: int) -> None:
        text = chat(client, seed=seed, temperature=1.0).choices[0].message.content
        if seed == 7:
            answers.append(text)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 7, 3, 7, 5, 7, 2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 4


def test_temperature_zero_is_the_most_likely_token(client: openai.OpenAI, checkpoint: Path) -> None:
    answer = chat(client, temperature=0.0, extra_body={"return_token_ids": True})
    model, _, _ = load(checkpoint)
    ids = list(answer.prompt_token_ids)
    for token in answer.choices[0].token_ids:
        with torch.no_grad():
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_n_choices_stop_strings_and_usage(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, seed=1, extra_body={"return_token_ids": True})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens == sum(len(choice.token_ids) for choice in answer.choices)
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
    whole = chat(client, seed=3, max_tokens=30).choices[0].message.content
    stop = whole[5]
    cut = chat(client, seed=3, max_tokens=30, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    whole = chat(client, seed=11, max_tokens=20)
    chunks = list(chat(client, seed=11, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]


def test_prompts_of_a_conversation_extend_one_another_token_for_token(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    so_far: list[int] = []
    for turn in range(3):
        answer = chat(client, messages=messages, seed=turn, temperature=1.5, extra_body={"return_token_ids": True})
        assert answer.prompt_token_ids[: len(so_far)] == so_far
        so_far = answer.prompt_token_ids + answer.choices[0].token_ids
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": f"again {turn}"},
        ]


def test_a_rollout_path_counts_its_answers(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/r/ticket-17/v1", api_key="unused") as client:
        chat(client), chat(client)
    with urllib.request.urlopen(f"{server.url}/r/ticket-17") as answer:
        assert json.load(answer) == {"calls": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": []}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role must be one of"),
        ({"temperature": -3}, "temperature must be a number from 0"),
        ({"n": 0}, "n must be a whole number"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "context 1024; shorten"),
        (
            {"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
            "tool_choice must be",
        ),
    ],
)
def test_a_bad_request_is_a_400_that_says_what_to_do(
    client: openai.OpenAI, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    assert words in str(caught.value)


def test_an_unknown_version_is_a_404_with_the_nearest(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="v0001"):
        chat(client, model="v0011")


def test_moving_the_pointer_changes_the_answers_and_loses_no_request(
    start: Any, lake_with_policy: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    import shutil

    server = start("lightning-serve", "--lake", str(lake_with_policy), "--port", "0")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    policies = Policies(lake_with_policy / "policies")
    other = make_checkpoint(tmp_path / "other", seed=9)
    policies.publish(lambda folder: shutil.copytree(other, folder, dirs_exist_ok=True), {})
    models: list[str] = []
    stop = threading.Event()

    def load_on() -> None:
        while not stop.is_set():
            models.append(chat(client, max_tokens=4).model)

    threads = [threading.Thread(target=load_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(models) < 20:
        stop.wait(0.01)
    policies.point("current", "v0002", who="test", why="swap")
    while models[-1] != "v0002":
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    client.close()
    assert set(models) == {"v0001", "v0002"}


def test_a_token_record_reaches_the_lake(start: Any, collector: Any, lake_with_policy: Path, tmp_path: Path) -> None:
    server = start("lightning-serve", "--lake", str(lake_with_policy), "--port", "0", "--otlp", collector.url)
    with openai.OpenAI(base_url=f"{server.url}/r/r-1/v1", api_key="unused") as client:
        answer = chat(client, temperature=0.9, logprobs=True, extra_body={"return_token_ids": True})
    server.post("/flush"), collector.post("/flush")
    from otel_lightning.transforms.tables import open_tables

    with open_tables(tmp_path / "lake") as connection:
        row = connection.execute(
            "select capture, rollout_id, response_id, policy_version, prompt_token_ids, choices, logprobs_mode, output_tokens, "
            "attributes_dbl['gen_ai.request.temperature'] from spans"
        ).fetchone()
    assert row is not None
    choice = answer.choices[0]
    assert row[:5] == ("serve", "r-1", answer.id, "v0001", answer.prompt_token_ids)
    assert row[5][0]["token_ids"] == choice.token_ids
    assert row[5][0]["logprobs"] == [item.logprob for item in choice.logprobs.content]
    assert row[6:] == ("sampling", len(choice.token_ids), 0.9)


def test_without_a_collector_answers_go_on_and_losses_are_counted(start: Any, lake_with_policy: Path) -> None:
    server = start("lightning-serve", "--lake", str(lake_with_policy), "--port", "0", "--otlp", "http://127.0.0.1:9")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        assert chat(client).choices
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post("/flush")
    assert caught.value.code == 503
    caught.value.close()
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        assert b"lightning_serve_records_lost_total 1" in answer.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "/nowhere"], "there is no model folder at /nowhere"),
        (["--lake", "/nowhere"], "there is no lake at /nowhere"),
        ([], "give either --lake"),
        (["--policy", ".", "--host", "0.0.0.0"], "can be reached from other machines"),
    ],
)
def test_a_start_that_cannot_work_is_one_line(
    script: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str], words: str
) -> None:
    done = script("lightning-serve", *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
