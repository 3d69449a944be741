"""SIGTERM and Ctrl-C as something that a server waits for."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue


class Stop:
    """From its making on, SIGTERM and SIGINT are remembered instead of ending the process. Main thread only."""

    def __init__(self) -> None:
        # Not an Event: a handler runs in the main thread between any two of its instructions, and would wait for
        # ever for the lock of the Event that the same thread is just beginning to wait for. `put` is reentrant.
        self._signals: SimpleQueue[int] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._signals.put(number))

    def wait(self, timeout_s: float) -> bool:
        """Whether a signal came, at once when one did, else after `timeout_s` seconds. Each signal is told once."""
        try:
            self._signals.get(timeout=timeout_s)
        except Empty:
            return False
        return True
