"""A 20,000-deep chain, a root with 100,000 children, a ring, a clock beyond 2100 and a reward that is no number, in one batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

DEPTH, WIDTH, RING, CALL_EACH = 20_000, 100_000, 1_000, 1_000
CHAIN, WIDE, CYCLE, LATE = (number.to_bytes(16, "big") for number in (1, 2, 3, 4))
BEGIN, YEAR_2100 = 1_700_000_000_000_000_000, 4_102_444_800_000_000_000


def spans() -> Iterator[tuple[bytes, int, int | None, bool, int]]:
    """Trace, span, parent, whether it is a call, start."""
    for number in range(1, DEPTH + 1):
        # Each call in it is the one around the next, so all of them are one call: the innermost.
        yield CHAIN, number, number - 1 or None, number % 2 == 0, BEGIN + number
    for number in range(1, WIDTH + 1):
        yield WIDE, number, None if number == 1 else 1, number % CALL_EACH == 0, BEGIN + number
    for number in range(1, RING + 1):
        yield CYCLE, number, number % RING + 1, number == 1, BEGIN + number
    yield LATE, 1, None, True, YEAR_2100


def fill(lake: Path) -> int:
    traces, logs, count = ExportTraceServiceRequest(), ExportLogsServiceRequest(), 0
    made = traces.resource_spans.add().scope_spans.add().spans
    for trace, number, parent, is_call, start in spans():
        span = made.add(
            trace_id=trace, span_id=number.to_bytes(8, "big"), name="s", start_time_unix_nano=start, end_time_unix_nano=start + 1
        )  # fmt: skip
        if parent is not None:
            span.parent_span_id = parent.to_bytes(8, "big")
        if is_call:
            for key, value in {
                "openinference.span.kind": "LLM",
                "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "the same words",
                "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "the same answer",
            }.items():  # fmt: skip
                span.attributes.add(key=key).value.string_value = value
        count += 1
    for trace, value in ((CHAIN, 1.0), (WIDE, 0.5), (CYCLE, math.nan), (LATE, 0.25)):
        record = (
            logs.resource_logs.add()
            .scope_logs.add()
            .log_records.add(trace_id=trace, time_unix_nano=BEGIN, event_name="gen_ai.evaluation.result")
        )
        record.attributes.add(key="gen_ai.evaluation.name").value.string_value = "reward"
        record.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = value
    ingest = Ingest(RealDisk, Lake(lake), ParquetConverter(), Limits(reserve_bytes=0))
    for signal, request in (("spans", traces), ("events", logs)):
        ingest.submit(check_protobuf(signal, request.SerializeToString())).result(60)
    assert ingest.close()
    return count


def test_depth_width_rings_and_clocks_neither_fail_nor_lose_a_credit(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    count = fill(lake)
    config = TransformConfig.model_validate({"settle_s": 1, "policy_for": {"incomplete": "keep"}})
    run_transform(lake, config, now_unix_nano=time.time_ns())
    with open_tables(lake) as connection:
        rows = connection.execute(
            "select trace_id, count(*), count(distinct span_id), min(reward)::double, max(reward)::double from credits group by 1 order by 1"
        ).fetchall()
        kept = connection.execute("select sum(spans)::bigint, count(*) from rollouts").fetchone()
        flags = dict(
            connection.execute("select trace_id, list_sort(flatten(list(flags)))[1] from calls group by 1").fetchall()
        )
    assert rows == [
        (CHAIN.hex(), 1, 1, 1.0, 1.0),
        (WIDE.hex(), WIDTH // CALL_EACH, WIDTH // CALL_EACH, 0.5, 0.5),
        (CYCLE.hex(), 1, 1, None, None),
        (LATE.hex(), 1, 1, 0.25, 0.25),
    ]
    assert kept == (count, 4)
    assert flags[CYCLE.hex()] == "cycle" and flags[LATE.hex()] == "clock_suspect"
