"""The README's five steps, executed literally: an empty folder, an environment of its own, a bot that knows nothing of us.

What a reader must fill in is filled in (TRACE_ID, RESPONSE_ID), and ports that may be busy are replaced by free ones; a
server's line is left running. Nothing else is changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import make_checkpoint
from wheel import ROOT, build_wheel

README = (ROOT / "README.md").read_text()
STEPS = README[README.index("## Your own agent in five steps") : README.index("## What the parts promise")]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", STEPS, re.DOTALL | re.MULTILINE)
INSTALL, COLLECT, CHECK, REWARD, OFFLINE, ONLINE = (text for kind, text in BLOCKS if not kind)
SERVERS = ("lightning-collect", "lightning-serve")
TORCH_INDEX = re.search(r"^TORCH_INDEX \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
CONVERSATIONS, CALLS = 4, 12  # what agent.py does
QUIET_S = 7.0  # the sidecar's log becomes Parquet every five seconds, the README's episodes are over after five

# The judge is the reader's own. This one likes what the bot said to every second customer.
JUDGE = """
import json
for number, line in enumerate(open("said.jsonl")):
    print(json.dumps({"response": json.loads(line)["response"], "name": "resolved", "value": number % 2}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment made as the README says; the package comes from this checkout, not from an index."""
    folder = tmp_path_factory.mktemp("environment")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = {**os.environ, "PIP_QUIET": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
    assert TORCH_INDEX is not None
    torch = ["torch==2.13.0", "--no-deps", "--retries", "1", "--extra-index-url", TORCH_INDEX[1]]
    subprocess.run([venv / "bin" / "pip", "install", *torch], check=True, env=pip)
    pip["PIP_FIND_LINKS"] = str(build_wheel(folder).parent)
    for line in ("pip install openai", *INSTALL.splitlines()):  # the agent was there before us
        subprocess.run(line, shell=True, check=True, env={**pip, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"})
    return venv


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model behind the bot: a tiny one that was taught to answer in a word or two, and to stop."""
    folder = tmp_path_factory.mktemp("model")
    talk = folder / "talk.jsonl"
    answers = ("yes of course", "no sorry", "done")
    talk.write_text(
        "\n".join(
            json.dumps(
                {
                    "messages": [
                        {"role": role, "content": text}
                        for turn in range(3)
                        for role, text in (("user", f"please {n * turn}"), ("assistant", answers[(n + turn) % 3]))
                    ]
                }
            )
            for n in range(48)
        )
    )
    config = {
        "model": {"path": str(make_checkpoint(folder / "random"))},
        "data": {"messages": str(talk)},
        "algorithm": {"name": "sft"},
        "optim": {"lr": 5e-3, "steps": 60, "batch_rollouts": 16},
        "tensorboard": False,
        "output": str(folder),
    }
    (folder / "talk.yaml").write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(folder / "talk.yaml")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "model"


class Shell:
    """A reader in an empty folder: what they type, and the servers that they leave running."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder = folder
        self.ports = {port: str(_free_port()) for port in ("4317", "4318", "8000")}
        self.variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_", "PYTHON"))},
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(environment),
        }
        self.servers: dict[str, subprocess.Popen[bytes]] = {}

    def type(self, block: str) -> str:
        """Run a block line by line; what it printed. A command that fails is shown whole."""
        said = ""
        for line in self._here(block).replace("\\\n", "").splitlines():
            words = line.split()
            if words[0] == "export":
                self.variables |= dict(word.split("=", 1) for word in words[1:])
            elif words[0] in SERVERS:
                self.serve(line)
            else:
                done = self.run(line)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said += done.stdout
        return said

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {self._here(line)}"],
            cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def serve(self, line: str) -> None:
        """Start a server and wait for it; it takes the place of one of the same name."""
        name = line.split()[0]
        self.stop(name)
        line = self._here(line)
        if name == "lightning-collect":
            line += f" --http 127.0.0.1:{self.ports['4318']} --grpc 127.0.0.1:{self.ports['4317']}"
        else:
            line += f" --port {self.ports['8000']}"
        log = self.folder / f"{name}.log"
        with open(log, "wb") as file:
            self.servers[name] = subprocess.Popen(
                line.split(), cwd=self.folder, env=self.variables, stdout=file, stderr=subprocess.STDOUT
            )
        while "listening http" not in log.read_text():
            assert self.servers[name].poll() is None, log.read_text()
            time.sleep(0.05)

    def stop(self, name: str) -> None:
        """End a server, if it runs."""
        if (server := self.servers.pop(name, None)) is not None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)

    def rows(self, query: str) -> list[dict[str, object]]:
        """What `lightning-transform sql` answers."""
        done = self.run(f"lightning-transform sql --lake lake --json {json.dumps(query)}")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _here(self, text: str) -> str:
        for readmes, ours in self.ports.items():
            text = text.replace(f":{readmes}", f":{ours}")
        return text


@pytest.fixture
def shell(tmp_path: Path, environment: Path, model: Path) -> Iterator[Shell]:
    """A reader's shell: an empty folder with their bot, their judge and their model in it."""
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(Path(__file__).with_name("agent.py"), tmp_path)
    (tmp_path / "judge.py").write_text(JUDGE)
    reader = Shell(tmp_path, environment)
    for kind, text in BLOCKS:
        if kind in ("yaml", "python"):
            name = text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(reader._here(text))
    yield reader
    for name in list(reader.servers):
        reader.stop(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_bot_is_short_and_knows_nothing_of_us() -> None:
    text = Path(__file__).with_name("agent.py").read_text()
    assert not re.search(r"lightning|otel|opentelemetry|trace|span|reward|rollout|episode", text, re.IGNORECASE)
    assert len([line for line in text.splitlines() if line.strip()]) <= 22


def test_the_five_steps_end_with_a_better_policy_that_answers(shell: Shell) -> None:
    said = [json.loads(line) for line in shell.type(COLLECT).splitlines()]  # step 1
    assert len(said) == CONVERSATIONS
    (shell.folder / "said.jsonl").write_text("\n".join(map(json.dumps, said)))
    time.sleep(QUIET_S)
    shell.type("lightning-transform run --lake lake")
    trace = shell.rows("select trace_id from calls order by start_unix_nano limit 1")[0]["trace_id"]

    checked = shell.type(CHECK.replace("TRACE_ID", str(trace)))  # step 2
    assert f"tokens of calls from: engine {CALLS}" in checked
    rollouts = shell.rows("select calls, keyed_by from rollouts order by start_unix_nano")
    assert rollouts == [{"calls": CALLS // CONVERSATIONS, "keyed_by": "continuation"}] * CONVERSATIONS
    assert shell.rows("select count(*) as n from events where event_name like 'lightning.%'") == [{"n": 0}]

    acknowledged = shell.type(REWARD.replace("RESPONSE_ID", said[0]["response"]))  # step 3
    assert "1 evaluation acknowledged" in acknowledged
    assert f"{CONVERSATIONS} evaluations acknowledged" in acknowledged

    time.sleep(QUIET_S)
    trained = shell.type(OFFLINE)  # step 4
    assert "published v0001" in trained
    assert "current is v0001" in trained
    credited = shell.rows("select distinct n_steps, reward, token_source from samples order by reward")
    assert credited == [{"n_steps": 3, "reward": value, "token_source": "engine"} for value in (0.0, 1.0)]
    answered = shell.run(
        "python -c \"import openai; print(openai.OpenAI().chat.completions.create(model='gpt-4o-mini', max_tokens=4, "
        "messages=[{'role': 'user', 'content': 'hi'}]).model)\""
    )
    assert answered.stdout.strip() == "v0001", answered.stderr

    (shell.folder / "tasks.jsonl").write_text(
        "\n".join(json.dumps({"task_id": f"t{n}", "question": f"my lamp {n} is broken"}) for n in range(2))
    )
    listed = shell.type(ONLINE)  # step 5
    assert re.findall(r"^(v\d{4})  .* (sft|grpo)\b", listed, re.MULTILINE) == [
        ("v0001", "sft"),
        ("v0002", "grpo"),
        ("v0003", "grpo"),
    ]
    assert "v0003 is candidate" in listed
    played = shell.rows(
        "select policy_version, count(*) as n, sum(calls) as calls from rollouts where keyed_by = 'explicit' group by 1 order by 1"
    )
    assert played == [{"policy_version": version, "n": 4, "calls": 12} for version in ("v0001", "v0002")]
    steps = [json.loads(line) for line in (shell.folder / "runs" / "online" / "metrics.jsonl").read_text().splitlines()]
    assert [step["round"] for step in steps] == [0, 0, 1, 1]


def test_from_a_server_without_token_ids_text_trains_and_grpo_says_what_is_missing(shell: Shell) -> None:
    lines = COLLECT.splitlines()
    shell.serve(lines[0])
    # A real server that answers as any other does: it records nothing.
    shell.serve("lightning-serve --policy model")
    # And the stock launcher, as a team without ours has it.
    said = shell.type("\n".join(lines[2:]).replace("lightning-instrument", "opentelemetry-instrument"))
    (shell.folder / "said.jsonl").write_text(said)
    shell.type(REWARD.splitlines()[1])
    time.sleep(QUIET_S)
    offline = OFFLINE.splitlines()
    shown = shell.type(offline[0])
    assert "6 sequences of 2 rollouts" in shown
    assert "(retokenized)" in shown
    assert shell.rows("select distinct token_source from calls") == [{"token_source": "none"}]
    assert "published v0001" in shell.type(offline[1])

    refused = shell.run(f"{offline[1]} --set algorithm='{{name: grpo}}' --set output=runs/other")
    assert refused.returncode == 1
    lines = [line for line in refused.stderr.splitlines() if line.startswith("train.py:")]
    assert len(lines) == 1, refused.stderr
    assert "has recorded token ids and log-probabilities, which grpo needs" in lines[0]
    assert "lightning-serve" in lines[0]
