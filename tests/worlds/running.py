"""Real processes, small real checkpoints and hand-written OTLP, for tests. Nothing of ours is mocked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Process:
    """A server of ours as a user would start it; `url` is its HTTP address."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("listening http"):
                self.url = line.split()[-1]
                break
        else:
            self.popen.wait()
            self.popen.stdout.close()
            raise RuntimeError("\n".join(self.lines))

    def post(self, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type}, method="POST")
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def line(self, start: str) -> str:
        """The first line it prints that begins with `start`; waits for it."""
        found = next((line for line in self.lines if line.startswith(start)), None)
        while found is None:
            assert self.popen.stdout is not None
            line = self.popen.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip())
            found = line.rstrip() if line.startswith(start) else None
        return found

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            rest, _ = self.popen.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            rest, _ = self.popen.communicate()
        self.lines += rest.splitlines()
        return self.popen.returncode

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


Starter = Callable[..., Process]


def starter() -> Iterator[Starter]:
    running: list[Process] = []

    def begin(script: str, *arguments: str, **environment: str) -> Process:
        process = Process([str(SCRIPTS / script), *arguments], **environment)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.stop()


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a console script to its end."""
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{%- for c in m.get('tool_calls') or [] -%}<tool_call>{{ {'name': c['function']['name'], 'arguments': "
    "c['function']['arguments']} | tojson }}</tool_call>{%- endfor -%}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama with a byte-level tokenizer and a ChatML template, as a plain Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.chat_template = CHATML
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def lake_of(folder: Path, checkpoint: Path) -> Path:
    """A lake in `folder` whose current policy is `checkpoint`."""
    import shutil

    from otel_lightning.store.policies import Policies, tokenizer_sha256

    policies = Policies(folder / "lake" / "policies")
    policies.publish(
        lambda folder: shutil.copytree(checkpoint, folder, dirs_exist_ok=True),
        {"tokenizer": tokenizer_sha256(checkpoint)},
    )
    policies.point("current", "v0001", who="test", why="first")
    return folder / "lake"


class Otlp:
    """Spans and records written by hand and posted as OTLP/JSON, for tables small enough to check by hand."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._clock = time.time_ns() - 3_600_000_000_000

    def tick(self, milliseconds: float = 10) -> int:
        """The next moment of the test's own clock, an hour ago."""
        self._clock += int(milliseconds * 1e6)
        return self._clock

    def send(
        self,
        spans: list[dict[str, Any]] = (),
        records: list[dict[str, Any]] = (),
        resource: dict[str, Any] | None = None,
    ) -> None:  # type: ignore[assignment]
        """Post spans and records; each must be acknowledged. A span may name its `_scope` and its process, `_instance`."""
        described = {"attributes": attributes(resource or {"service.name": "test", "service.instance.id": "i-1"})}
        if spans:
            by_process: dict[str | None, list[dict[str, Any]]] = {}
            for span in map(dict, spans):
                scope = {"scope": {"name": span.pop("_scope", "test.llm")}, "spans": [span]}
                by_process.setdefault(span.pop("_instance", None), []).append(scope)
            body = {
                "resourceSpans": [
                    {
                        "resource": described
                        if instance is None
                        else {"attributes": attributes({"service.name": "test", "service.instance.id": instance})},
                        "scopeSpans": scopes,
                    }
                    for instance, scopes in by_process.items()
                ]
            }
            self._post("traces", body)
        if records:
            body = {
                "resourceLogs": [
                    {
                        "resource": described,
                        "scopeLogs": [{"scope": {"name": "test.judge"}, "logRecords": list(records)}],
                    }
                ]
            }
            self._post("logs", body)

    def flush(self) -> None:
        """Everything sent is in Parquet."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/flush", b"", method="POST"), timeout=60).read()

    def _post(self, signal_name: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.url}/v1/{signal_name}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.loads(response.read() or b"{}")
        assert not answer, answer


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """A dictionary as OTLP/JSON attributes."""

    def value(item: Any) -> dict[str, Any]:
        if isinstance(item, bool):
            return {"boolValue": item}
        if isinstance(item, int):
            return {"intValue": str(item)}
        if isinstance(item, float):
            return {"doubleValue": item if item == item else "NaN"}
        if isinstance(item, list):
            return {"arrayValue": {"values": [value(part) for part in item]}}
        return {"stringValue": item}

    return [{"key": key, "value": value(item)} for key, item in values.items()]
