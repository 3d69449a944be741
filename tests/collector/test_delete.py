"""A deleted trace is in no file afterwards, with its ids and its feedback, and does not come back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lake_search import forms, found_in
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from running import Otlp, attributes

from otel_lightning.app.errors import StorageError
from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.erase import Refusal
from otel_lightning.collector.schema import SCHEMAS
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.store.policies import Policies
from otel_lightning.store.tombstones import Deleted, bury
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

GONE, STAYS, LINKING, TOKENS = "aa" * 16, "bb" * 16, "cc" * 16, "99" * 16
SECRET = "what the person asked"


def span(otlp: Otlp, trace: str, span_id: str, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "traceId": trace, "spanId": span_id, "name": "s", "startTimeUnixNano": str(otlp.tick()),
        "endTimeUnixNano": str(otlp.tick()), "attributes": attributes(values), **fields,
    }  # fmt: skip


def call(otlp: Otlp, trace: str, number: int, text: str, response: str) -> list[dict[str, Any]]:
    """An agent with one call."""
    spoken = {
        "openinference.span.kind": "LLM", "gen_ai.response.id": response,
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": text,
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": f"answer to {text}",
    }  # fmt: skip
    root, own = f"{number:016x}", f"{number + 1:016x}"
    return [
        span(otlp, trace, own, spoken, parentSpanId=root),
        span(otlp, trace, root, {"openinference.span.kind": "AGENT", "session.id": f"session-{response}"}),
    ]


def record(otlp: Otlp, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    named = {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 1.0, **values}
    return {
        "eventName": "gen_ai.evaluation.result",
        "timeUnixNano": str(otlp.tick()),
        "attributes": attributes(named),
        **fields,
    }


def exemplars(trace: str) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="latency")
    point = metric.gauge.data_points.add(as_int=1, time_unix_nano=5)
    point.exemplars.add(as_int=1, trace_id=bytes.fromhex(trace), span_id=b"\1" * 8)
    point.exemplars.add(as_int=2, trace_id=bytes.fromhex(STAYS), span_id=b"\1" * 8)
    return request.SerializeToString()


def send(otlp: Otlp, post: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One trace to be deleted and one that stays, with feedback of every kind; what a resend would send."""
    mine, other = call(otlp, GONE, 1, SECRET, "resp-gone"), call(otlp, STAYS, 11, "weather", "resp-stays")
    carrier = span(otlp, "dd" * 16, "d" * 16, {"openinference.span.kind": "EVALUATOR", "annotations.0.annotation.name": "tone",
                   "annotations.0.annotation.score": 0.5, "note": f"about {SECRET}"}, links=[{"traceId": GONE, "spanId": f"{2:016x}"}])  # fmt: skip
    linking = span(
        otlp, LINKING, "e" * 16, {"note": f"came after {GONE}"}, links=[{"traceId": GONE, "spanId": f"{2:016x}"}]
    )
    about = {"gen_ai.evaluation.explanation": f"about {SECRET}"}
    feedback = [
        record(otlp, about, traceId=GONE, spanId=f"{1:016x}"),
        record(otlp, {**about, "lightning.target.trace_id": GONE}),
        record(otlp, {**about, "lightning.target.response_id": "resp-gone"}),
        record(otlp, {**about, "session.id": "session-resp-gone"}),
    ]
    messages = json.dumps([{"role": "user", "parts": [{"type": "text", "content": SECRET}]}])
    record_of_serve = {"lightning.capture": "serve", "gen_ai.response.id": "resp-gone", "gen_ai.input.messages": messages,
                       "lightning.prompt.token_ids": [1, 2], "lightning.choice.0.token_ids": [3]}  # fmt: skip
    mine.append(span(otlp, TOKENS, "9" * 16, record_of_serve))
    otlp.send([*mine, *other, linking, carrier], [*feedback, record(otlp, {}, traceId=STAYS, spanId=f"{11:016x}")])
    assert post(otlp.url, "/v1/metrics", exemplars(GONE)).status == 200
    return [*mine, carrier], feedback


def needles() -> list[bytes]:
    raw = bytes.fromhex(GONE)
    return [*forms(SECRET), GONE.encode(), raw, b"resp-gone", TOKENS.encode(), bytes.fromhex(TOKENS)]


@pytest.mark.row(69)
def test_a_deleted_trace_is_in_no_file_and_a_resend_stays_out(
    collector: Any, post: Any, otlp: Otlp, script: Any, tmp_path: Path
) -> None:
    lake = Lake(tmp_path / "lake")
    again, feedback = send(otlp, post)
    otlp.flush()
    now = time.time_ns() + 10**13
    config = TransformConfig.model_validate({"settle_s": 1, "rewards": {"train": {"reward": 1.0}}})
    run_transform(lake.root, config, now_unix_nano=now)
    with open_tables(lake.root) as connection:
        samples = {row[0]: row[1] for row in connection.execute("select trace_id, sample_id from samples").fetchall()}
    assert samples.keys() == {GONE, STAYS}
    runs = trained(lake, tmp_path / "runs", samples)
    # Some is in Parquet, some in the log; a damaged piece lies in quarantine; a second copy waits for its grace.
    otlp.send(again, feedback)
    lake.quarantine.mkdir(exist_ok=True)
    (lake.quarantine / "x.spans.pb").write_bytes(b"\x0a" + bytes.fromhex(GONE))
    (lake.quarantine / "x.spans.pb.reason.json").write_text(json.dumps({"file": "x.spans.pb", "reason": "r"}))
    assert found_in(lake.root, needles()) != set()

    done = script("lightning-collect", "delete", GONE, "--lake", str(lake.root), "--runs", str(runs))
    assert done.returncode == 0, done.stderr
    assert "trained on it: v0002, v0003" in done.stdout and "not known for v0004" in done.stdout
    assert "lightning-transform run" in done.stdout and SECRET not in done.stdout
    tombstone = {path for path in found_in(lake.root, [GONE.encode()]) if path.startswith("tombstones/")}
    assert len(tombstone) == 1
    held = found_in(lake.root, needles())
    assert {name for name in held if not name.startswith("derived/")} == tombstone, held
    assert any(name.startswith("derived/") for name in held)
    with open_tables(lake.root) as connection:  # readers leave it out at once
        for table in ("calls", "rewards", "samples", "rollouts", "spans", "events"):
            text = str(connection.execute(f"select * from {table}").fetchall())
            assert GONE not in text and SECRET not in text, table
        assert connection.execute("select count(*) from samples").fetchone() == (1,)

    # A resend is refused, by itself, and said; what comes with it is kept.
    answer = post(
        otlp.url,
        "/v1/traces",
        json.dumps(_as_request([*again, *call(otlp, "ee" * 16, 31, "other", "r")])),
        "application/json",
    )
    assert answer.status == 200 and answer.json["partialSuccess"]["rejectedSpans"] in (4, "4")
    assert "deleted" in answer.json["partialSuccess"]["errorMessage"]
    records = {"resourceLogs": [{"scopeLogs": [{"logRecords": feedback}]}]}
    answer = post(otlp.url, "/v1/logs", json.dumps(records), "application/json")
    assert answer.json["partialSuccess"]["rejectedLogRecords"] in (4, "4")
    otlp.flush()
    run_transform(lake.root, config, now_unix_nano=now)
    assert found_in(lake.root, needles()) == tombstone
    collector.kill()
    assert found_in(lake.root, needles()) == tombstone

    # What stayed is as it was, less the link and the mention.
    (linking,) = [
        row
        for path in live_files(lake, "spans")
        for row in pq.ParquetFile(path).read().to_pylist()
        if row["span_id"] == "e" * 16
    ]
    assert linking["links"] == [] and dict(linking["attributes_str"])["note"] == "came after [deleted]"
    for signal in ("spans", "events", "metrics"):
        for path in live_files(lake, signal):
            assert pq.ParquetFile(path).schema_arrow.equals(SCHEMAS[signal])
    with open_tables(lake.root) as connection:
        assert {row[0] for row in connection.execute("select trace_id from samples").fetchall()} == {STAYS, "ee" * 16}
        assert connection.execute("select count(*) from calls where trace_id = ?", ["ee" * 16]).fetchone() == (1,)
        assert connection.execute("select count(*) from metrics where point like '%exemplars%'").fetchone() == (1,)
    assert script("lightning-collect", "check", "--lake", str(lake.root)).returncode == 0


def trained(lake: Lake, runs: Path, samples: dict[str, str]) -> Path:
    """A run that trained the sample that stays at step 1 and the deleted one at step 2, and policies of several kinds."""
    (runs / "first").mkdir(parents=True)
    lines = [{"step": 1, "samples": [samples[STAYS]]}, {"step": 2, "samples": [samples[GONE]]}]
    (runs / "first" / "trained.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    policies = Policies(lake.policies)
    for info in (
        {"run": "first", "step": 1},
        {"run": "first", "step": 2},
        {"run": "second", "step": 0, "parent": "v0002"},
        {"run": "elsewhere", "step": 5},
    ):
        policies.publish(lambda folder: None, info)
    return runs


def _as_request(spans: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


@pytest.mark.row(69)
def test_without_a_collector_the_command_empties_the_log_itself(
    start: Any, post: Any, script: Any, tmp_path: Path, read: Any
) -> None:
    config = tmp_path / "collect.yaml"
    config.write_text(
        f"lake: {tmp_path / 'lake'}\nhttp: 127.0.0.1:0\ngrpc: 127.0.0.1:0\nroll_s: 600\n"
        "forward: [{endpoint: 'http://127.0.0.1:9'}]\n"
    )
    collector = start("lightning-collect", "--config", str(config))
    otlp = Otlp(collector.url)
    send(otlp, post)
    otlp.flush()  # one segment waits to be forwarded, another is not Parquet yet
    send(otlp, post)
    collector.kill()
    lake = tmp_path / "lake"
    assert len([name for name in found_in(lake, needles()) if name.endswith(".wal")]) == 2
    done = script("lightning-collect", "delete", GONE.upper(), "--lake", str(lake))
    assert done.returncode == 0, done.stderr
    assert "deleted 2 traces: 8 spans, 8 events" in done.stdout
    assert all(name.startswith("tombstones/") for name in found_in(lake, needles()))
    assert len(list((lake / "wal").glob("*.wal"))) == 2  # the rest still waits for the endpoint that is away
    assert {row["trace_id"] for row in read.rows("spans")} == {STAYS, LINKING}
    # The same again changes nothing and needs nothing.
    done = script("lightning-collect", "delete", GONE, "--lake", str(lake))
    assert (
        done.returncode == 0
        and "deleted 1 traces: 0 spans, 0 events, 0 metric points; 0 files rewritten" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["delete", "xyz"], "is no trace id", 2),
        (["delete"], "TRACE_ID", 2),
        (["delete", GONE, "--lake", "nowhere"], "there is no lake at nowhere", 1),
        (["check", "--lake", "nowhere"], "there is no lake at nowhere", 1),
        (["compact", "--memory-mb", "0"], "--memory-mb", 2),
        (["retain"], "--days", 2),
    ],
)
def test_mistakes_of_the_commands_are_one_line(
    arguments: list[str], words: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from otel_lightning.collector import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake").mkdir()
    assert cli.main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_many_deleted_traces_cost_one_search_and_hide_nothing_else() -> None:
    deleted = Deleted(frozenset(f"{number:032x}" for number in range(1, 3000)))
    refusal = Refusal(deleted)
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number in (5000, 17, 5001):
        spans.add(trace_id=number.to_bytes(16, "big"), span_id=b"\1" * 8)
    accepted = refusal.apply(check_protobuf("spans", request.SerializeToString()))
    assert (accepted.rows, accepted.rejected) == (2, 1)
    del spans[1]
    untouched = check_protobuf("spans", request.SerializeToString())
    assert refusal.apply(untouched) is untouched


def test_tombstones_hold_ids_and_hashes_and_grow(tmp_path: Path) -> None:
    from otel_lightning.store.tombstones import name_hash, read_deleted

    lake = Lake(tmp_path)
    bury(lake, [GONE], [name_hash("response", "resp-gone")])
    bury(lake, [STAYS])
    bury(lake, [GONE])
    assert read_deleted(lake).traces == {GONE, STAYS}
    assert len(read_deleted(lake).names) == 1
    (path,) = lake.tombstones.glob("*.txt")
    path.write_text(path.read_text().replace(STAYS, "~" + STAYS[1:]))
    with pytest.raises(StorageError, match="is no trace id"):
        read_deleted(lake)
    bad: list[str] = []
    assert read_deleted(lake, bad).traces == {GONE} and bad == [f"{path.name}:2"]
    assert b"resp-gone" not in b"".join(path.read_bytes() for path in lake.tombstones.iterdir())
