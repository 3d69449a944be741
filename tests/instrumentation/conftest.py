"""A scripted model, a collector, and small agents written on the spot."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_runs import Ended, end, scripted_model, start
from running import Process, Starter

from otel_lightning.transforms.tables import open_tables

Agent = Callable[..., Ended]
PYTHON = Path(sys.executable)  # this environment has the OpenAI SDK and LangChain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The scripted model server; `log` is its ground truth."""
    log = tmp_path_factory.mktemp("model") / "log.jsonl"
    server = scripted_model(log)
    server.log = log  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sidecar(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """A collector for all tests of a file; `lake` is its folder. Tests tell their rows apart by service name."""
    lake = tmp_path_factory.mktemp("sidecar") / "lake"
    process = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    process.lake = lake  # type: ignore[attr-defined]
    return process


@pytest.fixture
def begin(model: Process, sidecar: Process, tmp_path: Path) -> Callable[..., Any]:
    """Start an agent given as source; its service name is `agent` unless OTEL_SERVICE_NAME says otherwise."""

    def make(code: str, *arguments: str, name: str = "agent.py", **options: Any) -> Any:
        script = tmp_path / name
        script.write_text(textwrap.dedent(code))
        environment = {
            "OPENAI_BASE_URL": f"{model.url}/v1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": sidecar.url,
            "OTEL_METRICS_EXPORTER": "none",
            **options,
        }
        return start(script, *arguments, **{"python": PYTHON, **environment})

    return make


@pytest.fixture
def agent(begin: Callable[..., Any]) -> Agent:
    """The same, run to its end."""
    return lambda code, *arguments, **options: end(begin(code, *arguments, **options))


@pytest.fixture
def rows(sidecar: Process) -> Callable[[str], list[Any]]:
    """A query over the lake, when all that was sent is in it."""

    def query(sql: str, *parameters: Any) -> list[Any]:
        sidecar.post("/flush")
        with open_tables(sidecar.lake) as connection:  # type: ignore[attr-defined]
            return connection.execute(sql, list(parameters)).fetchall()

    return query
