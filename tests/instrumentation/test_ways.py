"""The three ways in, plain opentelemetry-instrument, both ports; and what the command says when it cannot."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from agent_runs import WAYS, clean_environment, run
from running import ROOT, SCRIPTS

ASK = """
import openai
openai.OpenAI().chat.completions.create(model="scripted", messages=[{"role": "user", "content": "Hello"}])
"""


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_trace(agent: Any, rows: Any, way: str) -> None:
    code = ASK if way != "code" else "from otel_lightning.instrumentation import instrument\ninstrument()\n" + ASK
    ended = agent(code, way=way, OTEL_SERVICE_NAME=f"way-{way}")
    # What opentelemetry-instrument itself says where the stock distro is installed as well.
    said = ended.err.replace("Configuration of configurator not loaded, lightning already loaded\n", "")
    assert (ended.code, ended.out, said) == (0, "", "")
    spans = rows(
        "select oi_kind, span_seq, span_count, response_id like 'chatcmpl-%', attributes_str['llm.input_messages.0.message.content'] "
        "from spans where service_name = ?",
        f"way-{way}",
    )
    assert spans == [("LLM", 1, 1, True, "Hello")]


@pytest.mark.parametrize("said", [None, "grpc", "http/protobuf"])
@pytest.mark.parametrize("port", ["grpc", "http"])
def test_the_protocol_is_the_one_that_is_spoken_there(
    agent: Any, rows: Any, sidecar: Any, port: str, said: str | None
) -> None:
    service = f"port-{port}-{said}"
    endpoint = sidecar.line("listening grpc").split()[-1] if port == "grpc" else sidecar.url
    more = {"OTEL_EXPORTER_OTLP_PROTOCOL": said} if said else {}
    ended = agent(ASK, OTEL_SERVICE_NAME=service, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **more)
    assert (ended.code, ended.err) == (0, "")
    assert rows("select count(*) from spans where service_name = ?", service) == [(1,)]


def test_a_long_chat_keeps_all_its_messages(agent: Any, rows: Any) -> None:
    code = """
import openai
messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"message {n}"} for n in range(301)]
openai.OpenAI().chat.completions.create(model="scripted", messages=messages)
"""
    assert agent(code, OTEL_SERVICE_NAME="long").code == 0
    found = rows(
        "select dropped_attributes_count, attributes_str['llm.input_messages.0.message.content'], "
        "attributes_str['llm.input_messages.300.message.content'] from spans where service_name = 'long'"
    )
    assert found == [(0, "message 0", "message 300")]


def test_a_process_that_is_an_episode_is_one_rollout_whatever_its_calls_and_threads(agent: Any, rows: Any) -> None:
    code = """
import openai, threading, asyncio
client = openai.OpenAI()
def ask(text):
    client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": text}])
ask("main")
thread = threading.Thread(target=ask, args=("thread",)); thread.start(); thread.join()
async def later():
    async with openai.AsyncOpenAI() as c:
        await c.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "loop"}])
asyncio.run(later())
"""
    assert agent(code, options=("--rollout-id", "r-7"), OTEL_SERVICE_NAME="process").code == 0
    found = rows(
        "select count(*), count(distinct trace_id), min(rollout_id), max(span_count), count(*) filter (where parent_span_id is null) "
        "from spans where service_name = 'process'"
    )
    assert found == [(4, 1, "r-7", 4, 1)]


def test_an_environment_without_the_packages_finds_them_beside_sitecustomize(
    agent: Any, rows: Any, model: Any, sidecar: Any, tmp_path: Path
) -> None:
    """As in a container: the packages lie on a volume, the agent's Python is another one."""
    volume = tmp_path / "volume"
    package = volume / "otel_lightning" / "instrumentation"
    package.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", str(ROOT / "instrumentation"), str(package)], check=True)
    site = Path(next(p for p in sys.path if p.endswith("site-packages")))
    for item in site.iterdir():  # everything but our own package, which this environment has as a link to the checkout
        if "otel_lightning" not in item.name and not item.name.startswith("__editable__"):
            (volume / item.name).symlink_to(item)
    venv.create(tmp_path / "bare", with_pip=False)
    script = tmp_path / "agent.py"
    script.write_text(ASK)
    ended = run(
        script, python=tmp_path / "bare" / "bin" / "python", way="none", PYTHONPATH=str(package / "auto"),
        OPENAI_BASE_URL=f"{model.url}/v1", OTEL_EXPORTER_OTLP_ENDPOINT=sidecar.url, OTEL_SERVICE_NAME="volume",
    )  # fmt: skip
    # The bare environment has no OpenAI SDK of its own: that it is found at all shows where the packages came from.
    assert (ended.code, ended.err) == (0, "")
    assert rows("select count(*) from spans where service_name = 'volume'") == [(1,)]


def test_print_env_prints_what_to_set_and_nothing_secret(script: Any) -> None:
    done = script(
        "lightning-instrument", "--print-env", OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer x", PYTHONPATH="/mine"
    )
    printed = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert printed["PYTHONPATH"].split(":") == [str(ROOT / "instrumentation" / "auto"), "/mine"]
    assert printed["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
    assert printed["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"] == "100000"
    assert "Bearer" not in done.stdout
    assert set(printed) <= {key for key in printed if key.startswith(("OTEL_", "LIGHTNING_", "AUTOGEN_", "PYTHONPATH"))}


def test_a_mistake_costs_one_line() -> None:
    for arguments, code, words in (
        ([], 2, "name a command to run"),
        (["no-such-command"], 1, "'no-such-command' is not found"),
        (["--root", "tree", "x"], 2, "invalid choice: 'tree'"),
    ):
        done = subprocess.run(
            [str(SCRIPTS / "lightning-instrument"), *arguments], env=clean_environment(), capture_output=True, text=True
        )
        assert done.returncode == code and words in done.stderr.splitlines()[-1]


def test_the_exit_code_and_arguments_are_the_commands_own() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(5)", "--root", "x"]
    done = subprocess.run(
        [str(SCRIPTS / "lightning-instrument"), *command], env=clean_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, "['--root', 'x']\n", "")
