"""A signal is never lost and never waited for in vain, wherever in the wait it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Sends itself SIGTERM before the n-th line that runs once the wait has begun, so every gap in it is tried.
IN_A_GAP = """
import signal, sys
from otel_lightning.app.stop import Stop

stop, left = Stop(), int(sys.argv[1])

def trace(frame, event, _):
    global left
    left -= 1
    if left == 0:
        sys.settrace(None)
        signal.raise_signal(signal.SIGTERM)
    return trace

sys.settrace(trace)
while not stop.wait(0.01):
    pass
"""
ONCE = """
import signal, sys
from otel_lightning.app.stop import Stop

stop = Stop()
assert not stop.wait(0)
signal.raise_signal(signal.Signals[sys.argv[1]])
assert stop.wait(0) and not stop.wait(0)
"""


def _run(program: str, argument: str) -> int:
    # Killed when late: a process that waits for its own lock hears no other signal.
    return subprocess.run([sys.executable, "-c", program, argument], timeout=60).returncode


def test_a_signal_in_any_gap_of_the_wait_ends_it() -> None:
    for line in range(1, 24):
        assert _run(IN_A_GAP, str(line)) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_each_signal_is_told_once_and_none_ends_the_process(name: str) -> None:
    assert _run(ONCE, name) == 0
