"""How a command that changes what is stored comes to terms with the collector that may be running on the same lake.

    wal/settle.json     a command: take up the tombstones as they are now, put everything acknowledged into Parquet
    wal/settled.json    the collector: done, or why not

When `settle` returns, whatever was acknowledged before is in Parquet, and nothing that is deleted is in the log or will
get there. Without a running collector the command does the same itself, holding the lake meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
import time

from otel_lightning.app.errors import BusyError, LightningError
from otel_lightning.collector.erase import Refusal
from otel_lightning.collector.ingest import Ingest
from otel_lightning.store.files import disk_problem, write_json
from otel_lightning.store.fs import RealDisk, put_whole
from otel_lightning.store.lake import Lake
from otel_lightning.store.tombstones import read_deleted

LOG = logging.getLogger("lightning-collect")
POLL_S = 0.2
ANSWER_S = 120.0  # a collector that has not settled by then is stuck, and its log says on what


def lock(lake: Lake) -> int | None:
    """Hold the lake for this process until the handle is closed; None when a collector holds it."""
    try:
        RealDisk().make_folder(lake.wal)
        handle = os.open(lake.wal / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


class Settler:
    """The running collector's side: looks for requests of commands and answers them."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest, self._stop = ingest, threading.Event()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a request under way is answered first."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        request, answer = self._ingest.lake.wal / "settle.json", self._ingest.lake.wal / "settled.json"
        while not self._stop.wait(POLL_S):
            try:
                number = json.loads(request.read_text())["id"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            problem: str | None = None
            try:
                deleted = read_deleted(self._ingest.lake)
                self._ingest.settle(self._ingest.acceptance.use(deleted), Refusal(deleted)).result(ANSWER_S)
            except (LightningError, TimeoutError) as error:
                problem = str(error) or "the disk does not keep up"
                LOG.error("a command on this lake waits in vain: %s", problem)
            with contextlib.suppress(LightningError, OSError):
                request.unlink(missing_ok=True)
                write_json(answer, {"id": number, "problem": problem})


def settle(lake: Lake) -> None:
    """Come to terms with the lake's collector, running or not; LightningError when it does not answer."""
    handle = lock(lake)
    if handle is None:
        _ask(lake)
        return
    try:
        _settle_alone(lake)
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    finally:
        os.close(handle)


def _settle_alone(lake: Lake) -> None:
    from otel_lightning.collector.parquet import ParquetConverter
    from otel_lightning.collector.recovery import recover
    from otel_lightning.collector.rewrite import maintenance
    from otel_lightning.collector.wal import decode_frames, encode_frames

    disk, deleted = RealDisk(), read_deleted(lake)
    with maintenance(lake):
        recovered = recover(disk, lake, ParquetConverter(), keep_logs=True)
    refusal = Refusal(deleted)
    for segment in recovered.logs if deleted else ():
        path = recovered.wal.path(segment)
        data = disk.read(path)
        kept = list(refusal.frames(decode_frames(data, recovered.wal.marker)[0]))
        left = b"".join(encode_frames(kept, recovered.wal.marker))
        if left != data:
            put_whole(disk, lake.wal, path.name, left)
    disk.close()


def _ask(lake: Lake) -> None:
    number = secrets.token_hex(8)
    write_json(lake.wal / "settle.json", {"id": number})
    until = time.monotonic() + ANSWER_S + 5
    while time.monotonic() < until:
        time.sleep(POLL_S / 2)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            answer = json.loads((lake.wal / "settled.json").read_text())
            if answer["id"] == number:
                if answer["problem"]:
                    raise BusyError(f"the collector on {lake.root} cannot settle: {answer['problem']}")
                return
        # It may have stopped meanwhile: then nobody will answer, and this process can do it.
        handle = lock(lake)
        if handle is not None:
            os.close(handle)
            (lake.wal / "settle.json").unlink(missing_ok=True)
            settle(lake)
            return
    raise BusyError(f"the collector on {lake.root} does not answer; see its log, then run this command again")
