"""The demo's processes: each in a group of its own, on free ports, gone when the demo is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from otel_lightning.app.children import die_with_parent
from otel_lightning.app.errors import LightningError

READY_TIMEOUT_S = 90.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A server of the demo: started, waited for, stopped."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._wait()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """LightningError in one line when it is no longer running."""
        if self._process.poll() is not None:
            raise LightningError(
                f"{self.name} has stopped ({self._last_line()}); the demo cannot go on, see {self._log}"
            )

    def stop(self) -> None:
        """Ask it to end, insist after a while."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            if "listening http" in self._log.read_text(errors="replace"):
                return
            time.sleep(0.05)
        raise LightningError(f"{self.name} did not start within {READY_TIMEOUT_S:.0f} s; see {self._log}")

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def run_step(name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command to its end in the foreground; LightningError in one line when it fails."""
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, start_new_session=True, preexec_fn=die_with_parent
    )
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if code != 0:
        raise LightningError(f"{name} failed (exit {code}); its message stands above")
