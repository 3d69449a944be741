"""Driving agents: tasks out, results back, over a command that speaks the worker protocol.

One JSON line a task on the command's standard input,
    {"rollout_id", "task_id", "split", "policy", "temperature", "seed", "task"}
one a result on its standard output,
    {"rollout_id", "status", "detail"}
Whoever runs the command announces the episodes: `lightning.rollout.start` before, `.end` after, as OTLP. Rewards are
the command's to send; nothing of a result but its status is believed here.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_lightning.app.children import die_with_parent
from otel_lightning.app.errors import ConfigError, LightningError
from otel_lightning.instrumentation import EmitError, Emitter

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Task:
    """One episode to run. Several with one task_id and group_id are attempts of a group."""

    rollout_id: str
    task_id: str
    group_id: str
    split: str
    policy: str
    temperature: float
    seed: int
    task: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How an episode ended, as far as the driver knows: finished, error, timeout."""

    rollout_id: str
    status: str
    detail: str


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """A task file: one JSON object a line, each with `task_id`. ConfigError names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a task file (JSON lines)") from None
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
            task["task_id"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}:{number}: is no JSON object with a task_id") from None
        tasks.append(task)
    if not tasks:
        raise ConfigError(f"{path}: holds no task")
    return tasks


class Driver:
    """A running rollouts command. Use as a context manager; on leaving, the command and its children are gone."""

    def __init__(self, command: str, *, serve: str, collect: str, settle_s: float = 0.6) -> None:
        self.serve, self.collect, self._settle_s = serve.rstrip("/"), collect.rstrip("/"), settle_s
        self._emitter = Emitter(collect, service_name="lightning-driver")
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": f"{self.serve}/v1",
            "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "unused"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collect,
        }
        try:
            self._process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # so that its children can be ended with it
                preexec_fn=die_with_parent,
            )
        except (OSError, ValueError) as error:
            raise LightningError(f"rollouts.command '{command}' cannot be started ({error}); correct it") from None
        self._results: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="driver-results", daemon=True)
        self._listener.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, tasks: Sequence[Task], deadline_s: float, heard: Callable[[Outcome], None] | None = None
    ) -> list[Outcome]:
        """Run episodes; returns when all are over or the deadline has passed. What is missing then is a timeout.

        LightningError when the command ends or the collector does not take the announcements.
        """
        assert self._process.stdin is not None
        waiting = {task.rollout_id for task in tasks}
        outcomes: list[Outcome] = []
        for task in tasks:
            self._emitter.rollout_start(
                task.rollout_id,
                task_id=task.task_id,
                group_id=task.group_id,
                split=task.split,
                session_id=task.rollout_id,
            )
        try:
            for task in tasks:
                self._process.stdin.write(json.dumps(task.__dict__) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LightningError(
                "the rollouts command ended before it was given its tasks; see its messages above"
            ) from None
        deadline = time.monotonic() + deadline_s
        while waiting:
            try:
                result = self._results.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if result is None:
                raise LightningError("the rollouts command ended before all tasks were done; see its messages above")
            if result.get("rollout_id") not in waiting:
                continue  # a straggler of an earlier round
            outcome = Outcome(
                result["rollout_id"], str(result.get("status", "finished")), str(result.get("detail", ""))
            )
            waiting.discard(outcome.rollout_id)
            outcomes.append(outcome)
            self._end(outcome)
            if heard is not None:
                heard(outcome)
        for rollout_id in sorted(waiting):
            outcome = Outcome(rollout_id, "timeout", f"no result within {deadline_s:g} s")
            outcomes.append(outcome)
            self._end(outcome)
        return outcomes

    def flush(self) -> None:
        """Return when everything these episodes caused is readable in the lake.

        LightningError in one line when serve or the collector does not answer.
        """
        try:
            self._emitter.flush()
        except EmitError as error:
            raise LightningError(str(error)) from None
        time.sleep(self._settle_s)  # agents send their last spans in the background; nobody can ask them to hurry
        post(f"{self.serve}/flush", "lightning-serve")
        post(f"{self.collect}/flush", "lightning-collect")

    def close(self) -> None:
        """End the command and everything it started."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(STOP_TIMEOUT_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self._process.pid, number)
                except (ProcessLookupError, PermissionError):
                    break
                time.sleep(0.2)
            self._process.wait()
            self._listener.join(STOP_TIMEOUT_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._emitter.stop()

    def _end(self, outcome: Outcome) -> None:
        self._emitter.rollout_end(outcome.rollout_id, status=outcome.status, reason=outcome.detail or None)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                result = json.loads(line)
            except ValueError:
                continue  # a library's chatter on standard output is not a result
            if isinstance(result, dict) and "rollout_id" in result:
                self._results.put(result)
        self._results.put(None)


def post(url: str, who: str) -> None:
    """POST without a body; LightningError in one line when `who` does not answer well."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=b"", method="POST"), timeout=90):
            return
    except urllib.error.HTTPError as error:
        raise LightningError(f"{who} at {url} answered {error.code}; see its messages") from None
    except OSError as error:
        raise LightningError(f"{who} at {url} does not answer ({error}); is it running?") from None
