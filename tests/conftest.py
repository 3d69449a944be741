"""Fixtures of all tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Otlp, Process, Starter, lake_of, make_checkpoint, run_script, starter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="a skipped test fails the run: what it needs must be there"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start one of our console scripts; it is stopped with the test."""
    yield from starter()


@pytest.fixture(scope="module")
def start_for_module() -> Iterator[Starter]:
    """The same for all tests of a file; stopped after the last."""
    yield from starter()


@pytest.fixture
def collector(start: Starter, tmp_path: Path) -> Process:
    """A collector on tmp_path/lake."""
    return start(
        "lightning-collect", "--lake", str(tmp_path / "lake"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a console script to its end."""
    return run_script


@pytest.fixture(name="make_checkpoint")
def checkpoint_maker() -> Callable[..., Path]:
    """Make further tiny checkpoints."""
    return make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that every test may read."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def lake_with_policy(tmp_path: Path, checkpoint: Path) -> Path:
    """A lake whose current policy is the tiny checkpoint."""
    return lake_of(tmp_path, checkpoint)


@pytest.fixture
def otlp(collector: Process) -> Otlp:
    """Hand-written OTLP to the test's collector."""
    return Otlp(collector.url)
