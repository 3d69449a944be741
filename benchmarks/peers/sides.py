"""The servers that the collector's benchmark compares: ours and four others, each as its own documentation starts it.

The others live in virtual environments of their own under `.cache/bench`, made at first use. A side is started in
an empty folder on free ports; while another one is measured it is stopped (SIGSTOP), so that its background work
is on nobody's bill.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENVIRONMENTS = Path(__file__).parents[2] / ".cache" / "bench"
PROTOBUF = "application/x-protobuf"
START_S = 180  # MLflow and Phoenix import and migrate for a while


class Unavailable(Exception):
    """This side cannot be had here; the text says why."""


@dataclass
class Server:
    """A running server: where to post, what it costs, what it has stored."""

    name: str
    process: psutil.Process
    port: int
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)
    resource: dict[str, str] = field(default_factory=dict)
    is_ours: bool = False
    _gone_cpu_s: float = 0.0

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """CPU seconds of the process and those below it, the ones that ended included."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                if process is self.process:
                    total += times.children_user + times.children_system
        return total

    def memory_mib(self) -> float:
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / (1 << 20)

    def pause(self) -> None:
        for process in self.tree():
            process.suspend()

    def go_on(self) -> None:
        for process in self.tree():
            process.resume()

    def kill(self) -> None:
        """SIGKILL to the whole tree, as a machine that runs out of memory would."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def post(
        self, path: str, body: bytes = b"", content_type: str = PROTOBUF, timeout: float = 60
    ) -> tuple[int, bytes]:
        connection = self.connect(timeout)
        try:
            connection.request("POST", path, body, {"Content-Type": content_type, **self.headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stored(self) -> int | None:
        """Spans on disk that any reader could find; None where the side has no such place."""
        if self.is_ours:
            import pyarrow.parquet as pq

            return sum(pq.read_metadata(path).num_rows for path in self.folder.glob("lake/spans/*/*.parquet"))
        for path in (*self.folder.rglob("mlflow.db"), *self.folder.rglob("phoenix.db")):
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
                return connection.execute("select count(*) from spans").fetchone()[0]
        return None


Context = contextlib.AbstractContextManager[Server]


def environment(name: str, requirement: str) -> Path:
    """The interpreter of a virtual environment that holds `requirement`, made when it is not there yet."""
    folder = ENVIRONMENTS / requirement.replace("==", "-")
    ready = folder / "ready"
    if not ready.exists():
        print(f"  making an environment for {name} ({requirement}) in {folder}", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [
                str(folder / "bin" / "pip"),
                "install",
                "--quiet",
                "--pre" if "a" in requirement.split("==")[1] else "--quiet",
                requirement,
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(f"{requirement} cannot be installed: {done.stderr.strip().splitlines()[-1][:200]}")
        ready.touch()
    return folder / "bin" / "python"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(name: str, command: list[str], folder: Path, port: int, **environment: str) -> Iterator[Server]:
    """Start `command` in `folder`, wait until `port` answers, end the whole tree afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "ab") as output:
        popen = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env=os.environ | environment, start_new_session=True
        )
    server = Server(name, psutil.Process(popen.pid), port, folder)
    try:
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if popen.poll() is not None or time.monotonic() > until:
                last = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"{name} did not start: {' '.join(last)[:200]}")
            time.sleep(0.1)
        yield server
    finally:
        server.go_on()
        tree = server.tree()
        with contextlib.suppress(psutil.NoSuchProcess):
            server.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=30)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        popen.wait()


@contextmanager
def ours(folder: Path, *, name: str, config: Path | None = None, decoder: str = "") -> Iterator[Server]:
    """lightning-collect with its defaults, or with a configuration (rules that redact)."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "lightning-collect"), "--lake", "lake"]
    command += ["--http", f"127.0.0.1:{port}", "--grpc", "127.0.0.1:0"]
    if config is not None:
        command += ["--config", str(config.resolve())]
    with running(name, command, folder, port, LIGHTNING_COLLECT_DECODER=decoder) as server:
        server.is_ours = True
        yield server


@contextmanager
def rotel(folder: Path) -> Iterator[Server]:
    """rotel receiving into its `blackhole` exporter: parsed, batched, thrown away."""
    package = environment("rotel", "rotel==0.0.1a15").parents[1].glob("lib/python*/site-packages/rotel/rotel-agent")
    port = free_port()
    command = [str(next(iter(package))), "start", "--exporter", "blackhole"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"]
    with running("rotel 0.0.1a15, blackhole", command, folder, port) as server:
        yield server


@contextmanager
def agentlightning(folder: Path) -> Iterator[Server]:
    """Agent Lightning's store in memory. It keeps only spans whose resource names a rollout that it knows."""
    python = environment("Agent Lightning", "agentlightning==0.3.0")
    port = free_port()
    command = [
        str(python.with_name("agl")),
        "store",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "ERROR",
    ]
    with running("Agent Lightning 0.3.0 store", command, folder, port) as server:
        status, answer = server.post("/v1/agl/rollouts", b'{"input": {}}', "application/json")
        if status != 201:
            raise Unavailable(f"Agent Lightning made no rollout: {status}")
        made = json.loads(answer)
        server.resource = {
            "agentlightning.rollout_id": made["rollout_id"],
            "agentlightning.attempt_id": made["attempt"]["attempt_id"],
        }
        yield server


@contextmanager
def mlflow(folder: Path) -> Iterator[Server]:
    """MLflow on SQLite, one worker."""
    python = environment("MLflow", "mlflow==3.17.2")
    port = free_port()
    command = [str(python.with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db"]
    path = f"{python.parent}:{os.environ['PATH']}"
    with running("MLflow 3.17.2, SQLite", command, folder, port, PATH=path, MLFLOW_DISABLE_TELEMETRY="true") as server:
        server.headers = {"x-mlflow-experiment-id": "0"}
        yield server


@contextmanager
def phoenix(folder: Path) -> Iterator[Server]:
    """Phoenix on SQLite."""
    python = environment("Phoenix", "arize-phoenix==20.26.1")
    port = free_port()
    settings = {"PHOENIX_WORKING_DIR": str(folder), "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port)}
    settings |= {"PHOENIX_GRPC_PORT": str(free_port()), "PHOENIX_TELEMETRY_ENABLED": "false"}
    command = [str(python.with_name("phoenix")), "serve"]
    with running("Phoenix 20.26.1, SQLite", command, folder, port, **settings) as server:
        yield server


PEERS = {"rotel": rotel, "agentlightning": agentlightning, "mlflow": mlflow, "phoenix": phoenix}
