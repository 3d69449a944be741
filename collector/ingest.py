"""From an accepted request to Parquet: log, acknowledge, roll, convert. The part that must never lose or double.

Two threads of its own. The writer takes whatever requests wait, appends them to the log with one fsync
(group commit) and resolves their futures: that is the acknowledgement. The roller turns sealed segments
into Parquet files and a manifest entry, in this order: Parquet durable, entry durable, segment removed.
Start-up finishes what a crash interrupted, without a human.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from otel_lightning.app.errors import BusyError
from otel_lightning.collector.check import Accepted
from otel_lightning.collector.recovery import Converter, convert_segment, recover
from otel_lightning.collector.wal import Frame, Wal
from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake

LOG = logging.getLogger("lightning-collect")
GROUP_BYTES = 8 << 20  # more than this in one fsync only makes the first of them wait
RETRY_S = 1.0  # a full disk is looked at again after this long


@dataclass(frozen=True)
class Limits:
    """When segments are sealed and when requests are refused."""

    roll_bytes: int = 64 << 20
    roll_s: float = 5.0
    pending_bytes: int = 1 << 30
    reserve_bytes: int = 64 << 20


@dataclass
class Counters:
    """What happened since start; read by /metrics and the closing line."""

    received: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    stored: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    refused: dict[str, int] = field(default_factory=dict)
    pending_bytes: int = 0
    quarantined: int = 0

    def refuse(self, reason: str) -> None:
        """Count one request refused for `reason`."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


@dataclass
class _Flush:
    done: Future[None]


class Ingest:
    """The durable path of one lake. `submit` from any thread; `close` returns when all is in Parquet."""

    def __init__(self, disk: Callable[[], Disk], lake: Lake, convert: Converter, limits: Limits | None = None) -> None:
        self.lake, self.limits, self.counters = lake, limits or Limits(), Counters()
        self._lock = threading.Lock()
        self._roll_disk, self._convert = disk(), convert  # a disk belongs to one thread
        recovered = recover(disk(), lake, convert)
        self.counters.quarantined = recovered.quarantined
        self.recovered = recovered
        self._wal: Wal = recovered.wal
        self._inbox: queue.SimpleQueue[tuple[Accepted, Future[None]] | _Flush | None] = queue.SimpleQueue()
        self._sealed: queue.SimpleQueue[int | _Flush | None] = queue.SimpleQueue()
        self._closed = False
        self._roll_error: str | None = None
        self._writer = threading.Thread(target=self._write, name="wal-writer")
        self._roller = threading.Thread(target=self._roll, name="roller")
        self._writer.start()
        self._roller.start()

    def submit(self, request: Accepted) -> Future[None]:
        """Queue an accepted request; the future resolves once it is durable, or fails with BusyError."""
        future: Future[None] = Future()
        problem = self._refusal()
        if problem is not None:
            self.counters.refuse(problem[0])
            future.set_exception(BusyError(problem[1]))
        else:
            self._pend(len(request.body))
            self._inbox.put((request, future))
        return future

    def flush(self) -> Future[None]:
        """A future that resolves when everything acknowledged before this call is in Parquet and manifest."""
        future: Future[None] = Future()
        if self._closed:
            future.set_exception(BusyError("the collector is stopping"))
        else:
            self._inbox.put(_Flush(future))
        return future

    @property
    def problem(self) -> str | None:
        """Why data is not reaching Parquet at the moment, or None."""
        return self._roll_error

    def close(self) -> None:
        """Refuse what is new, finish what is acknowledged, stop both threads."""
        self._closed = True
        self._inbox.put(None)
        self._writer.join()
        self._roller.join()

    def _pend(self, bytes_: int) -> None:
        with self._lock:
            self.counters.pending_bytes = max(0, self.counters.pending_bytes + bytes_)

    def _refusal(self) -> tuple[str, str] | None:
        if self._closed:
            return "stopping", "the collector is stopping; send again in a moment"
        if self.counters.pending_bytes > self.limits.pending_bytes:
            return "backlog", "more is waiting to be stored than allowed; send again in a moment"
        if _free_bytes(self.lake) < self.limits.reserve_bytes:
            return "disk_full", "the disk is full; free space, then send again"
        return None

    def _write(self) -> None:
        while True:
            batch, flushes, stop = self._next_batch()
            if batch:
                self._append(batch)
            if flushes or stop or self._is_due():
                self._seal()
            for flush in flushes:
                self._sealed.put(flush)
            if stop:
                self._sealed.put(None)
                return

    def _next_batch(self) -> tuple[list[tuple[Accepted, Future[None]]], list[_Flush], bool]:
        began = self._wal.began_unix_nano
        wait = None if began is None else max(0.0, self.limits.roll_s - (time.time_ns() - began) / 1e9)
        batch: list[tuple[Accepted, Future[None]]] = []
        flushes: list[_Flush] = []
        size = 0
        try:
            item = self._inbox.get(timeout=wait)
            while True:
                if item is None:
                    return batch, flushes, True
                if isinstance(item, _Flush):
                    flushes.append(item)
                else:
                    batch.append(item)
                    size += len(item[0].body)
                if size >= GROUP_BYTES:
                    break
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return batch, flushes, False

    def _append(self, batch: Sequence[tuple[Accepted, Future[None]]]) -> None:
        now, seq = time.time_ns(), self._wal.next_seq
        frames = []
        for request, _ in batch:
            frames.append(Frame(request.signal, now, seq, request.rows, request.body))
            seq += request.rows
        try:
            self._wal.append(frames)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = "disk_full" if full else "disk_error"
            text = "the disk is full; free space" if full else f"the disk refused a write ({error.strerror})"
            LOG.error("%s; %d requests were refused and will be sent again by their senders", text, len(batch))
            for request, future in batch:
                self._pend(-len(request.body))
                self.counters.refuse(reason)
                future.set_exception(BusyError(f"{text}, then send again"))
            if self._wal.must_seal:
                self._seal()
            return
        self._wal.next_seq = seq
        for request, future in batch:
            self.counters.received[request.signal] += request.rows
            future.set_result(None)

    def _is_due(self) -> bool:
        began = self._wal.began_unix_nano
        if began is None:
            return False
        old = time.time_ns() - began >= self.limits.roll_s * 1e9
        return old or self._wal.must_seal or self._wal.bytes_in_segment >= self.limits.roll_bytes

    def _seal(self) -> None:
        segment = self._wal.seal()
        if segment is not None:
            self._sealed.put(segment)

    def _roll(self) -> None:
        while True:
            item = self._sealed.get()
            if item is None:
                return
            if isinstance(item, _Flush):
                item.done.set_result(None)
                continue
            self._roll_segment(item)

    def _roll_segment(self, segment: int) -> None:
        while True:
            try:
                entry = convert_segment(self._roll_disk, self.lake, self._wal, segment, self._convert)
                break
            except OSError as error:
                # Acknowledged data is safe in the log; wait for the disk rather than give up on it.
                self._roll_error = f"segment {segment} cannot be written ({error.strerror or error})"
                LOG.error("%s; its log is kept and tried again", self._roll_error)
                if self._closed:
                    return
                time.sleep(RETRY_S)
        self._roll_error = None
        if entry is not None:
            # Segments left by an earlier process were never counted as pending, so never below zero.
            self._pend(-entry.wal_bytes)
            for file in entry.files:
                self.counters.stored[file.signal] += file.rows


def _free_bytes(lake: Lake) -> int:
    found = os.statvfs(lake.root)
    return found.f_bavail * found.f_frsize
