"""From an accepted request to Parquet: log, acknowledge, roll, convert. The part that must never lose or double.

Two threads of its own. The writer takes whatever requests wait, appends them to the log with one fsync
(group commit) and resolves their futures: that is the acknowledgement. The roller turns sealed segments
into Parquet files and a manifest entry (`recovery.convert_segment`). When memory, backlog or disk are full
requests are refused, retryably, and nothing is dropped in silence.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from otel_lightning.app.errors import BusyError
from otel_lightning.collector.acceptance import Acceptance
from otel_lightning.collector.backlog import Backlog
from otel_lightning.collector.check import Accepted
from otel_lightning.collector.erase import Refusal
from otel_lightning.collector.recovery import Converter, convert_segment, recover
from otel_lightning.collector.wal import Frame, Wal
from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake

LOG = logging.getLogger("lightning-collect")
DAY_NANO = 86_400 * 10**9
GROUP_BYTES = 8 << 20  # more than this in one fsync only makes the first of them wait
# While several requests are under way at a time, the writer waits this long for those that were under way with the ones it
# has: an fsync for each would cost more than the wait. Large groups do not wait.
COMPANY_S, COMPANY_STEP_S = 0.001, 0.0002
COMPANY_BYTES = 1 << 20
RETRY_S = 1.0  # a disk that refused is tried again after this long
SPACE_CHECK_S = 0.5  # how old the figure for free space may be


@dataclass(frozen=True)
class Limits:
    """When segments are sealed and when requests are refused."""

    roll_bytes: int = 32 << 20
    roll_s: float = 5.0
    queued_bytes: int = 256 << 20
    pending_bytes: int = 1 << 30
    reserve_bytes: int = 64 << 20
    roll_rows: int = 64 * 1024  # as many as Parquet keeps together: one table, and one dictionary a column


@dataclass
class Counters:
    """What happened since start. Each field is written by one thread, or under the lock."""

    received: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    stored: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    refused: dict[str, int] = field(default_factory=dict)
    rejected_rows: int = 0
    queued_bytes: int = 0
    pending_bytes: int = 0
    set_aside: int = 0
    syncs: int = 0
    sync_s: float = 0.0
    segments: int = 0
    convert_s: float = 0.0


@dataclass
class _Flush:
    done: Future[None]
    deletions: int | None = None  # of a settling: requests held against an earlier state are refused from then on
    refusal: Refusal | None = None


Done = Callable[[BusyError | None], None]
Deliver = Callable[[list[Done], BusyError | None], None]
_Item = tuple[Accepted, Done, Deliver]


class Ingest:
    """The durable path of one lake. `submit` and `flush` from any thread; `close` when all senders are gone.

    `disk` makes a disk for one thread's use. `acceptance` is what requests went through. With `backlog_bytes` (by
    target) segments stay in `backlog` after they are converted. Opening recovers what a crash left; OSError when that
    fails.
    """

    def __init__(
        self,
        disk: Callable[[], Disk],
        lake: Lake,
        converter: Converter,
        limits: Limits | None = None,
        *,
        acceptance: Acceptance | None = None,
        backlog_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self.lake, self.limits, self.counters = lake, limits or Limits(), Counters()
        self.acceptance = acceptance or Acceptance()
        self._lock = threading.Lock()
        self._roll_disk, self._converter = disk(), converter
        self.recovered = recover(disk(), lake, converter, keep_logs=bool(backlog_bytes))
        self.backlog: Backlog | None = None
        if backlog_bytes:
            self.backlog = Backlog(disk(), lake, self.recovered.wal.marker, backlog_bytes)
            for segment in self.recovered.logs:
                self.backlog.add(segment)
        self.counters.set_aside = self.recovered.set_aside
        self._wal: Wal = self.recovered.wal
        self._inbox: queue.SimpleQueue[_Item | _Flush | None] = queue.SimpleQueue()
        self._sealed: queue.SimpleQueue[int | _Flush | None] = queue.SimpleQueue()
        self._closed = False
        self._deletions = self.acceptance.deletions
        self._company = 1  # how many requests were under way when the last group was written
        self._began: deque[int] = deque()  # when each segment that is not Parquet yet began
        self._roll_error: str | None = None
        self._write_error: str | None = None
        self._free_bytes, self._space_checked = 0, -SPACE_CHECK_S
        self._writer = threading.Thread(target=self._write, name="wal-writer")
        self._roller = threading.Thread(target=self._roll, name="roller")
        self._writer.start()
        self._roller.start()

    def submit(self, request: Accepted) -> Future[None]:
        """Queue an accepted request; the future resolves once it is durable, or fails with BusyError."""
        future: Future[None] = Future()
        self.send(request, lambda error: future.set_exception(error) if error else future.set_result(None), call_all)
        return future

    def send(self, request: Accepted, done: Done, deliver: Deliver) -> None:
        """Queue an accepted request; `done` hears of it once it is durable, or why it cannot be taken.

        All that became durable together is handed over together: `deliver` is called once with what is done, in the
        writer's thread, and sees to it that every one is called. What is refused at once is called from here.
        """
        problem = self.refusal(len(request.body))
        if problem is not None:
            done(BusyError(problem))
            return
        with self._lock:
            self.counters.queued_bytes += len(request.body)
        self._inbox.put((request, done, deliver))

    def flush(self) -> Future[None]:
        """A future that resolves when everything acknowledged before this call is in Parquet and manifest.

        It fails with BusyError when that cannot be had now.
        """
        future: Future[None] = Future()
        if self._closed:
            future.set_exception(BusyError("the collector is stopping"))
        else:
            self._inbox.put(_Flush(future))
        return future

    def settle(self, deletions: int, refusal: Refusal) -> Future[None]:
        """Like `flush`, and when it resolves nothing of what `refusal` refuses is in the log or will get there."""
        future: Future[None] = Future()
        self._inbox.put(_Flush(future, deletions, refusal))
        return future

    def refusal(self, size: int) -> str | None:
        """Why a request of `size` bytes cannot be taken now, counted; None when it can."""
        reason, text = "", ""
        if self._closed:
            reason, text = "stopping", "the collector is stopping; send again in a moment"
        elif self.counters.queued_bytes and self.counters.queued_bytes + size > self.limits.queued_bytes:
            reason, text = "memory", "too much waits for the disk; send again in a moment"
        elif self.counters.pending_bytes > self.limits.pending_bytes:
            reason, text = "backlog", "more waits to become Parquet than allowed; send again in a moment"
        elif self._free() < self.limits.reserve_bytes:
            reason, text = "disk_full", "the disk is full; free space, then send again"
        if reason:
            self.count_refusal(reason)
            return text
        return None

    def count_refusal(self, reason: str) -> None:
        """Count one request refused for `reason`."""
        with self._lock:
            self.counters.refused[reason] = self.counters.refused.get(reason, 0) + 1

    def count_rejected(self, rows: int) -> None:
        """Count rows that were rejected out of an accepted request."""
        if rows:
            with self._lock:
                self.counters.rejected_rows += rows

    @property
    def problem(self) -> str | None:
        """Why data is not reaching disk or Parquet at the moment, or None."""
        return self._write_error or self._roll_error

    @property
    def lag_s(self) -> float:
        """How old the oldest row is that is acknowledged and not in Parquet."""
        try:
            return max(0.0, (time.time_ns() - self._began[0]) / 1e9)
        except IndexError:
            return 0.0

    @property
    def free_bytes(self) -> int:
        """Disk that is left."""
        return self._free()

    def close(self) -> bool:
        """Refuse what is new, finish what is acknowledged, stop both threads.

        True when everything acknowledged is in Parquet; False when the disk refused: it is then still in
        the log, and the next start finishes it.
        """
        self._closed = True
        self._inbox.put(None)
        self._writer.join()
        self._roller.join()
        return self._roll_error is None

    def _free(self) -> int:
        now = time.monotonic()
        if now - self._space_checked >= SPACE_CHECK_S:
            found = os.statvfs(self.lake.root)
            self._free_bytes, self._space_checked = found.f_bavail * found.f_frsize, now
        return self._free_bytes

    # The writer thread

    def _write(self) -> None:
        while True:
            batch, flushes, stop = self._next_batch()
            if batch:
                self._append(batch)
            if flushes or stop or self._is_due():
                self._seal()
            for flush in flushes:
                if flush.deletions is not None:
                    self._deletions = flush.deletions
                self._sealed.put(flush)
            if stop:
                self._sealed.put(None)
                return

    def _next_batch(self) -> tuple[list[_Item], list[_Flush], bool]:
        began = self._wal.began_unix_nano
        wait = None if began is None else max(0.0, self.limits.roll_s - (time.time_ns() - began) / 1e9)
        batch: list[_Item] = []
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
                if self._inbox.empty() and not flushes and len(batch) < self._company and size < COMPANY_BYTES:
                    self._wait_for(self._company - len(batch))
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return batch, flushes, False

    def _wait_for(self, requests: int) -> None:
        """Give so many requests the time to arrive; asleep, since waking for each of them is what would cost."""
        until = time.monotonic() + COMPANY_S
        while self._inbox.qsize() < requests and time.monotonic() < until:
            time.sleep(COMPANY_STEP_S)
        self._company = 1  # those that did not come are not waited for again

    def _append(self, batch: list[_Item]) -> None:
        batch = self._current(batch)
        if not batch:
            return
        now, seq = time.time_ns(), self._wal.next_seq
        began = self._wal.began_unix_nano
        rows = self._wal.rows_in_segment + sum(request.rows for request, _, _ in batch)
        if began is not None and (_day(began) != _day(now) or rows > self.limits.roll_rows):
            self._seal()  # a segment's rows all lie under one ingest day, and in one table
        frames: list[Frame] = []
        for request, _, _ in batch:
            frames.append(Frame(request.signal, now, seq, request.rows, request.body, request.crc))
            seq += request.rows
        size = sum(len(request.body) for request, _, _ in batch)
        before = time.monotonic()
        try:
            self._wal.append(frames)
        except OSError as error:
            self._refuse(batch, size, error)
            return
        self._write_error = None
        self._company = len(batch) + self._inbox.qsize()
        if began is None or self._wal.began_unix_nano != began:
            self._began.append(now)
        with self._lock:
            self.counters.queued_bytes -= size
            self.counters.pending_bytes += size
            self.counters.syncs += 1
            self.counters.sync_s += time.monotonic() - before
        for request, _, _ in batch:
            self.counters.received[request.signal] += request.rows
        _deliver(batch, None)

    def _current(self, batch: list[_Item]) -> list[_Item]:
        """What was held against the tombstones as they are now; the rest is sent again and then judged anew."""
        stale = [item for item in batch if item[0].deletions != self._deletions]
        if not stale:
            return batch
        with self._lock:
            self.counters.queued_bytes -= sum(len(request.body) for request, _, _ in stale)
        for _ in stale:
            self.count_refusal("deletion")
        _deliver(stale, BusyError("a deletion is under way; send again in a moment"))
        return [item for item in batch if item[0].deletions == self._deletions]

    def _refuse(self, batch: list[_Item], size: int, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        text = "the disk is full; free space" if full else f"the disk refused a write ({error.strerror})"
        if self._write_error is None:
            LOG.error("%s; requests are refused until it works again, senders keep and resend them", text)
        self._write_error = text
        with self._lock:
            self.counters.queued_bytes -= size
        for _ in batch:
            self.count_refusal("disk_full" if full else "disk_error")
        _deliver(batch, BusyError(f"{text}, then send again"))
        self._seal()

    def _is_due(self) -> bool:
        began = self._wal.began_unix_nano
        if began is None:
            return False
        return (
            time.time_ns() - began >= self.limits.roll_s * 1e9 or self._wal.bytes_in_segment >= self.limits.roll_bytes
        )

    def _seal(self) -> None:
        for segment in self._wal.seal():
            self._sealed.put(segment)

    # The roller thread

    def _roll(self) -> None:
        waiting: list[int] = []
        while True:
            try:
                item = self._sealed.get(timeout=RETRY_S if waiting else None)
            except queue.Empty:
                self._roll_all(waiting)
                continue
            if item is None:
                self._roll_all(waiting)
                return
            if isinstance(item, _Flush):
                self._roll_all(waiting)
                if waiting:
                    item.done.set_exception(BusyError(f"{self._roll_error}; free space, then flush again"))
                    continue
                try:
                    if item.refusal is not None and self.backlog is not None:
                        self.backlog.erase(item.refusal)
                    item.done.set_result(None)
                except OSError as error:
                    item.done.set_exception(BusyError(f"the log cannot be rewritten ({error.strerror}); try again"))
            else:
                waiting.append(item)
                if self._roll_error is None:
                    self._roll_all(waiting)

    def _roll_all(self, waiting: list[int]) -> None:
        """Convert segments in order; one that the disk refuses stays in `waiting`, and so do those behind it."""
        while waiting:
            before = time.monotonic()
            try:
                segment = waiting[0]
                keep = self.backlog is not None
                entry = convert_segment(self._roll_disk, self.lake, self._wal, segment, self._converter, keep_log=keep)
                if self.backlog is not None:
                    self.backlog.add(segment)
            except OSError as error:
                # Acknowledged rows are safe in the log; wait for the disk rather than give up on them.
                if self._roll_error is None:
                    LOG.error("no Parquet can be written (%s); the log is kept and tried again", error.strerror)
                self._roll_error = f"Parquet cannot be written ({error.strerror or 'disk error'})"
                return
            self._roll_error = None
            waiting.pop(0)
            if self._began:
                self._began.popleft()
            with self._lock:
                self.counters.pending_bytes -= entry.wal_bytes
                self.counters.segments += 1
                self.counters.convert_s += time.monotonic() - before
            for file in entry.files:
                self.counters.stored[file.signal] += file.rows


def call_all(done: list[Done], error: BusyError | None) -> None:
    """Tell each of `done`."""
    for one in done:
        one(error)


def _deliver(batch: list[_Item], error: BusyError | None) -> None:
    ways: dict[Deliver, list[Done]] = {}
    for _, done, deliver in batch:
        ways.setdefault(deliver, []).append(done)
    for deliver, done in ways.items():
        deliver(done, error)


def _day(unix_nano: int) -> int:
    return unix_nano // DAY_NANO  # days are UTC's
