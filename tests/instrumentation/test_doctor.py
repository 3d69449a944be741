"""Each fault that doctor knows is planted, and it names it and the line that fixes it; without faults it is content."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agent_runs import clean_environment, scripted_model
from running import SCRIPTS

ROOTED = "from otel_lightning.instrumentation import rollout\nimport openai\n"


@pytest.fixture
def doctor(tmp_path: Path, sidecar: Any, model: Any) -> Any:
    """Run it with an environment in which all is well, but for what a test changes; its findings and exit code."""

    def examine(*command: str, script: str = ROOTED, **changed: str | None) -> tuple[list[dict[str, str]], int]:
        (tmp_path / "agent.py").write_text(script)
        environment: dict[str, str | None] = {
            **clean_environment(OTEL_EXPORTER_OTLP_ENDPOINT=sidecar.url, OPENAI_BASE_URL=f"{model.url}/v1"),
            **changed,
        }
        done = subprocess.run(
            [str(SCRIPTS / "lightning-instrument"), "doctor", "--json", *(command or ("python", str(tmp_path / "agent.py")))],
            env={key: value for key, value in environment.items() if value is not None},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()], done.returncode

    return examine


def plant(folder: Path, distribution: str, version: str, entry_points: str = "") -> str:
    """Make a package look installed; the folder goes onto PYTHONPATH."""
    info = folder / "planted" / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points)
    return str(folder / "planted")


def fixes(findings: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(f["subject"], f["words"], f["fix"]) for f in findings if f["level"] == "FIX"]


def test_it_is_content_with_a_world_in_which_all_is_well(doctor: Any) -> None:
    findings, code = doctor()
    assert (fixes(findings), code) == ([], 0)
    assert [f["subject"] for f in findings if f["level"] == "ok"] == [
        "collector",
        "content",
        "limits",
        "openai",
        "root",
        "tokens",
    ]


FAULTS: list[tuple[dict[str, str | None], str, str, str]] = [
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol", "speaks http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
    ({"LIGHTNING_CAPTURE_CONTENT": "0"}, "content", "what was said is left out", "unset LIGHTNING_CAPTURE_CONTENT"),
    ({"OPENINFERENCE_HIDE_INPUTS": "true"}, "content", "OPENINFERENCE_HIDE_INPUTS=true", "unset OPENINFERENCE_HIDE_INPUTS"),
    ({"TRACELOOP_TRACE_CONTENT": "false"}, "content", "TRACELOOP_TRACE_CONTENT=false", "unset TRACELOOP_TRACE_CONTENT"),
    ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128"}, "limits", "lose their oldest messages", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=100000"),
    ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100"}, "limits", "cuts messages off", "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
    ({"OTEL_SDK_DISABLED": "true"}, "sdk", "nothing is recorded", "unset OTEL_SDK_DISABLED"),
    ({"OTEL_TRACES_EXPORTER": "console"}, "exporter", "no span is sent", "OTEL_TRACES_EXPORTER=otlp"),
    ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "sampler", "leaves episodes out", "unset OTEL_TRACES_SAMPLER"),
    ({"LIGHTNING_ROOT": "yes"}, "settings", "must be auto, process or none", "correct or unset it"),
    ({"OPENAI_BASE_URL": None, "LIGHTNING_CAPTURE_TOKENS": "1"}, "tokens", "grpo cannot", "lightning-serve"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "subject", "words", "fix"), FAULTS, ids=[next(iter(f[0])) for f in FAULTS])
def test_a_wrong_environment_is_named(doctor: Any, changed: Any, subject: str, words: str, fix: str) -> None:
    findings, code = doctor(**changed)
    assert code == 1
    ((found, said, cure),) = fixes(findings)
    assert (found, words in said, fix in cure) == (subject, True, True), (said, cure)


def test_a_collector_that_is_not_there_is_named(doctor: Any) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    findings, code = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    assert code == 1
    assert fixes(findings) == [
        ("collector", f"nobody listens on port {port} of 127.0.0.1: every span will be dropped", f"lightning-collect --http 127.0.0.1:{port}")
    ]  # fmt: skip


def test_the_grpc_port_of_a_collector_is_told_from_the_http_port(doctor: Any, sidecar: Any) -> None:
    grpc = sidecar.line("listening grpc").split()[-1]
    findings, code = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=grpc)
    assert (fixes(findings), code) == ([], 0)
    assert next(f["words"] for f in findings if f["subject"] == "collector").endswith("answers, grpc")
    findings, _ = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=grpc, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
    assert [f[0] for f in fixes(findings)] == ["protocol"]


@pytest.fixture
def stranger() -> Iterator[str]:
    """Something that is no collector: it accepts and hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_stranger_in_the_collectors_place_is_named(doctor: Any, stranger: str) -> None:
    findings, code = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=stranger)
    assert code == 1 and [f[:2] for f in fixes(findings)] == [
        ("collector", f"{stranger} answers neither HTTP nor gRPC")
    ]


def test_a_doubled_instrumentor_is_named_and_left_out(doctor: Any, tmp_path: Path) -> None:
    path = plant(
        tmp_path,
        "opentelemetry-instrumentation-openai",
        "0.62.4",
        "[opentelemetry_instrumentor]\nopenai = nowhere:Instrumentor\n",
    )
    findings, code = doctor(PYTHONPATH=path)
    assert code == 1
    ((subject, words, fix),) = fixes(findings)
    assert (subject, fix) == ("openai", "pip uninstall opentelemetry-instrumentation-openai")
    assert "would double every call" in words


def test_a_framework_that_is_too_old_or_has_no_instrumentor_is_named(doctor: Any, tmp_path: Path) -> None:
    path = plant(tmp_path, "openai", "1.0.0")
    plant(tmp_path, "openai-agents", "0.24.0")
    findings, code = doctor(script=ROOTED + "import agents\n", PYTHONPATH=path)
    assert code == 1
    found = fixes(findings)
    assert (
        "openai",
        "openai 1.0.0 is older than 1.69.0, the oldest that is tested",
        "pip install -U 'openai>=1.69.0'",
    ) in found
    assert ("openai-agents", "openai-agents 0.24.0 has no instrumentor here: its calls leave no trace", "pip install 'otel-lightning[agents]'") in found  # fmt: skip


def test_an_instrumentor_that_cannot_work_is_named(doctor: Any, tmp_path: Path) -> None:
    path = plant(tmp_path, "openai-agents", "0.24.0")
    plant(
        tmp_path,
        "openinference-instrumentation-openai-agents",
        "2.6.0",
        "[opentelemetry_instrumentor]\nopenai_agents = nowhere_at_all:Instrumentor\n",
    )
    findings, code = doctor(script=ROOTED + "import agents\n", PYTHONPATH=path)
    assert code == 1
    ((subject, words, fix),) = fixes(findings)
    assert subject == "openai-agents" and "does not work with openai-agents 0.24.0" in words
    assert fix == "pip install -U 'otel-lightning[agents]'"


def test_an_agent_without_a_root_is_named(doctor: Any) -> None:
    findings, code = doctor(script="import openai\n")
    assert code == 1 and [f[0] for f in fixes(findings)] == ["root"]
    findings, code = doctor(script="import openai\n", LIGHTNING_ROOT="process")
    assert (fixes(findings), code) == ([], 0)
    findings, code = doctor(script="from langchain.agents import create_agent\n")
    assert (fixes(findings), code) == ([], 0)


def test_an_interpreter_that_ignores_the_environment_is_named(doctor: Any) -> None:
    findings, code = doctor("python", "-I", "-m", "agent")
    assert code == 1 and "start" in [f[0] for f in fixes(findings)]


@pytest.mark.parametrize(
    ("option", "words"), [("--ignore-token-ids", "gives no token ids"), ("--refuse-token-ids", "(400)")]
)
def test_a_server_without_token_ids_is_named(doctor: Any, tmp_path: Path, option: str, words: str) -> None:
    server = scripted_model(tmp_path / "log", option)
    try:
        findings, code = doctor(OPENAI_BASE_URL=f"{server.url}/v1")
    finally:
        server.stop()
    assert code == 1
    ((subject, said, _),) = fixes(findings)
    assert subject == "tokens" and words in said


def test_a_person_gets_one_screen(sidecar: Any, model: Any) -> None:
    environment = clean_environment(OTEL_EXPORTER_OTLP_ENDPOINT=sidecar.url, OPENAI_BASE_URL=f"{model.url}/v1")
    done = subprocess.run(
        [str(SCRIPTS / "lightning-instrument"), "--no-content", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) <= 24
    place = next(number for number, line in enumerate(lines) if line.startswith("FIX   content"))
    assert lines[place + 1].strip() == "→ unset LIGHTNING_CAPTURE_CONTENT"
