"""What the base policy is made from: noisy transcripts, a tokenizer trained on them, and a model with random weights.

    python examples/support/base.py --out runs/base --seed 0

writes transcripts.jsonl (OpenAI chat form) and model/ (a Hugging Face folder to start from). Training itself is
train.py with configs/support_base.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bot.desk import ACTIONS, SYSTEM, run_tool
from bot.store import Store
from world import OUTDATED, SLIP_SHARE, Ticket, look_ups, tickets

TRANSCRIPTS = 8000
VOCABULARY = 720
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<tool_call>", "</tool_call>")
# Tool schemas are left out of the prompt: the model knows its tools, and episodes stay short.
TEMPLATE = (
    "{%- for m in messages -%}"
    "<|{{ m['role'] }}|>{{ m['content'] or '' }}"
    "{%- for c in m.get('tool_calls') or [] -%}"
    '<tool_call>{"name":"{{ c[\'function\'][\'name\'] }}","arguments":'
    "{{ c['function']['arguments'] | tojson(separators=(',', ':')) }}}</tool_call>"
    "{%- endfor -%}"
    "<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def transcript(ticket: Ticket, rng: random.Random) -> list[dict[str, Any]]:
    """How a person at the desk handled a ticket, right or wrong, in OpenAI chat form."""
    action = ticket.right
    outdated = OUTDATED.get((ticket.issue, ticket.fact))
    if outdated is not None:
        if rng.random() >= outdated.right_share:
            action = outdated.old_action
    elif rng.random() < SLIP_SHARE:
        action = rng.choice(sorted(ACTIONS))
    store = Store(":memory:")
    store.open_account("c", "a", ticket.order)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for number, text in enumerate(ticket.messages):
        if number:
            messages.append({"role": "assistant", "content": "which order is it?"})
        messages.append({"role": "user", "content": text})
    for index, (name, argument) in enumerate([*look_ups(ticket.issue, ticket.order), (action, ticket.order["number"])]):
        key = "topic" if name == "search_policy" else "order"
        function = {"name": name, "arguments": json.dumps({key: argument})}
        call = {"id": f"call_{index}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append(
            {"role": "tool", "tool_call_id": f"call_{index}", "content": run_tool(store, "c", name, argument)}
        )
    messages.append({"role": "assistant", "content": f"all done: {action} for order {ticket.order['number']}"})
    return messages


def build_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer in which every capital and digit is a token, so that order numbers can be copied."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The tool call markers are ordinary text to a reader of the answer, so they are not special when decoding.
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_with_plain_markers(tokenizer), pad_token="<|pad|>", eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def _with_plain_markers(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    value = json.loads(tokenizer.to_str())
    for token in value["added_tokens"]:
        if token["content"] in ("<tool_call>", "</tool_call>"):
            token["special"] = False
    return Tokenizer.from_str(json.dumps(value))


def build_model(vocabulary: int, seed: int) -> Any:
    """A small Qwen2-type model with random weights."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    # initializer_range: with the usual 0.02 a model this small does not learn to copy within the demo's budget.
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=352, max_position_embeddings=320, tie_word_embeddings=True, initializer_range=0.08,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, max_new_tokens=48, do_sample=True)
    return model


def main() -> int:
    """Write transcripts and the model to start from."""
    parser = argparse.ArgumentParser(description="Make noisy transcripts, a tokenizer and a model with random weights.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transcripts", type=int, default=TRANSCRIPTS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rng = random.Random(f"transcripts/{options.seed}")
    # Their own range of seeds: logged tickets are other tickets than the ones the base has learnt from.
    conversations = [transcript(t, rng) for t in tickets("train", options.transcripts, 1_000_000 + options.seed)]
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "transcripts.jsonl", "w", encoding="utf-8") as file:
        for messages in conversations:
            file.write(json.dumps({"messages": messages}) + "\n")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value, separators=None: json.dumps(value, separators=separators)
    template = environment.from_string(TEMPLATE)
    texts = [template.render(messages=_parsed(messages)) for messages in conversations]
    tokenizer = build_tokenizer(texts)
    folder = options.out / "model"
    build_model(len(tokenizer), options.seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{len(conversations)} transcripts, vocabulary {len(tokenizer)}, in {options.out}")
    return 0


def _parsed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as objects, as chat templates expect them."""
    parsed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        parsed.append({**message, **({"tool_calls": calls} if calls else {})})
    return parsed


if __name__ == "__main__":
    sys.exit(main())
