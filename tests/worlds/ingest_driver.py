"""A collector's durable path in a process of its own, to be killed: the real log, Parquet, manifest and recovery.

    python ingest_driver.py LAKE ACKNOWLEDGED FIRST COUNT [one-thread]

`one-thread` calls what the collector's threads call, in the same order, in one: strace counts calls by thread. Sends COUNT requests of one span each, numbered from FIRST, and rolls in the middle and at the end. What is
acknowledged, and only that, is a line in the file ACKNOWLEDGED before the next request is sent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from otel_lightning.app.errors import BusyError
from otel_lightning.collector.check import Accepted
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.recovery import convert_segment, recover
from otel_lightning.collector.wal import Frame
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake


def request(number: int) -> Accepted:
    span_id = number.to_bytes(8, "big")
    span = b"\x0a\x10" + b"\1" * 16 + b"\x12\x08" + span_id + b"\x2a\x04name"
    scope = b"\x12" + bytes([len(span)]) + span
    of = b"\x12" + bytes([len(scope)]) + scope
    return Accepted("spans", b"\x0a" + bytes([len(of)]) + of, 1)


def in_one_thread(lake: Lake, told: int, first: int, count: int) -> None:
    disk, converter = RealDisk(), ParquetConverter()
    wal = recover(disk, lake, converter).wal
    for number in range(first, first + count):
        wal.append([Frame("spans", time.time_ns(), wal.next_seq, 1, request(number).body)])
        os.write(told, b"%d\n" % number)
        if number in (first + count // 2, first + count - 1):
            for segment in wal.seal():
                convert_segment(disk, lake, wal, segment, converter)


def main() -> None:
    lake, acknowledged, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if sys.argv[5:] == ["one-thread"]:
        in_one_thread(Lake(lake), told, first, count)
        return
    ingest = Ingest(RealDisk, Lake(lake), ParquetConverter(), Limits(roll_s=3600, reserve_bytes=0))
    for number in range(first, first + count):
        try:
            ingest.submit(request(number)).result(30)
        except BusyError:
            continue
        os.write(told, b"%d\n" % number)
        if number == first + count // 2:
            with contextlib.suppress(BusyError):
                ingest.flush().result(30)
    print("complete" if ingest.close() else "incomplete", sorted(ingest.counters.refused.items()), flush=True)


if __name__ == "__main__":
    main()
