"""From a sender's bytes to what may be stored: the structural check, sizes, deleted traces, redaction. In this order.

The raw path is the structural check alone. Sizes cost something only for bodies that could break them, deletions one
search over the bytes once something was deleted, redaction a decode and an encode where a rule is configured.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from otel_lightning.collector import oversize
from otel_lightning.collector.check import REQUESTS, Accepted, check_json, check_protobuf
from otel_lightning.collector.erase import Refusal
from otel_lightning.collector.native import Bytes
from otel_lightning.collector.redact import Rules
from otel_lightning.store.tombstones import Deleted


class Acceptance:
    """What one collector applies to every request, whichever way it came. Any thread may call it."""

    def __init__(self, rules: Rules | None = None, deleted: Deleted | None = None) -> None:
        self.rules = rules
        self.counts = oversize.Counts()
        self.requests, self.bytes = dict.fromkeys(REQUESTS, 0), dict.fromkeys(REQUESTS, 0)
        self._lock = threading.Lock()
        self._refusal = (0, Refusal(deleted) if deleted else None)

    @property
    def deletions(self) -> int:
        """Number of the tombstones' state that requests are held against now."""
        return self._refusal[0]

    def use(self, deleted: Deleted) -> int:
        """Refuse these traces from now on; the number of this state."""
        with self._lock:
            number = self._refusal[0] + 1
            self._refusal = (number, Refusal(deleted) if deleted else None)
        return number

    def protobuf(self, signal: str, body: Bytes) -> Accepted:
        """Check an OTLP protobuf request; SenderError when it does not parse."""
        self._count(signal, body)
        return self._apply(check_protobuf(signal, body))

    def json(self, signal: str, body: Bytes) -> Accepted:
        """Check an OTLP/JSON request; SenderError when it does not parse."""
        self._count(signal, body)
        return self._apply(check_json(signal, bytes(body)))

    def _count(self, signal: str, body: Bytes) -> None:
        with self._lock:
            self.requests[signal] += 1
            self.bytes[signal] += len(body)

    def _apply(self, accepted: Accepted) -> Accepted:
        deletions, refusal = self._refusal
        accepted = oversize.cut(accepted, self.counts)
        if refusal is not None:
            accepted = refusal.apply(accepted)
        if self.rules is not None:
            accepted = self.rules.apply(accepted)
        return accepted if accepted.deletions == deletions else replace(accepted, deletions=deletions)
