"""Files from elsewhere end in the same tables as what was sent, once however often they are imported."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from otel_lightning.app.errors import LightningError, UsageError
from otel_lightning.collector.config import CollectConfig, RedactConfig
from otel_lightning.collector.imports.build import span_id, trace_id, unix_nano
from otel_lightning.collector.imports.run import import_all
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

FIXTURES = Path(__file__).parents[1] / "fixtures"
PHOENIX, LANGFUSE, JS = FIXTURES / "imports" / "phoenix", FIXTURES / "imports" / "langfuse", FIXTURES / "js"
NOW = 1_800_000_000_000_000_000


def importing(lake: Path, *files: Path, redact: RedactConfig | None = None, **options: Any) -> Any:
    return import_all(CollectConfig(lake=lake, redact=redact or RedactConfig()), files, **options)


def sql(lake: Path, query: str) -> list[tuple[Any, ...]]:
    with open_tables(lake) as connection:
        return connection.execute(query).fetchall()


def as_lines(path: Path, times: int = 1) -> bytes:
    return (json.dumps(json.loads(path.read_bytes())) + "\n").encode() * times


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_otlp_json_lines_and_protobuf_bodies_are_what_was_sent(tmp_path: Path, ending: str) -> None:
    lines, bodies = tmp_path / f"export.jsonl{ending}", tmp_path / f"traces.pb{ending}"
    framed = tmp_path / f"many-spans.binpb{ending}"
    body = (JS / "traces.pb").read_bytes()
    for path, data in (
        (lines, as_lines(JS / "traces.json") + b"\n{broken\n[1]\n"),
        (bodies, body),
        (framed, (len(body).to_bytes(4, "big") + body) * 3),
    ):
        packed = {"": data, ".gz": gzip.compress(data), ".zst": pa.compress(data, "zstd", asbytes=True)}[ending]
        path.write_bytes(packed)
    done = importing(tmp_path / "lake", lines, bodies, framed)
    spans = len(json.loads((JS / "traces.json").read_bytes())["resourceSpans"][0]["scopeSpans"][0]["spans"])
    assert done.files == 3 and done.rows["spans"] >= 5 * spans
    assert done.skipped == {
        "lines that are no JSON": 1,
        "lines without resourceSpans, resourceLogs or resourceMetrics": 1,
    }
    by_file = sql(tmp_path / "lake", "select count(*), count(distinct (trace_id, span_id)) from spans")
    assert by_file[0][0] == done.rows["spans"] and by_file[0][1] <= by_file[0][0] // 2
    assert not list((tmp_path / "lake" / "wal").glob("*.wal"))


def test_a_file_is_imported_once_whatever_it_is_called(tmp_path: Path) -> None:
    lake, copy = tmp_path / "lake", tmp_path / "copy.jsonl"
    original = tmp_path / "original.jsonl"
    original.write_bytes(as_lines(JS / "traces.json"))
    first = importing(lake, original)
    shutil.copy(original, copy)
    second = importing(lake, copy, original)
    assert (second.files, second.known, second.rows["spans"]) == (0, 2, 0)
    # Sent once more on purpose, it is the same spans again, and readers show each once.
    again = importing(lake, original, again=True)
    assert again.rows["spans"] == first.rows["spans"]
    rows, distinct = sql(lake, "select count(*), count(distinct (trace_id, span_id)) from spans")[0]
    assert rows == 2 * distinct


def test_phoenix_spans_and_annotations_become_calls_and_rewards(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    # Spans first, annotations by themselves later: their trace is found in the lake.
    done = importing(lake, PHOENIX / "spans.json")
    spans = json.loads((PHOENIX / "spans.json").read_text())["data"]
    assert done.rows == {"spans": len(spans), "events": 0, "metrics": 0}
    done = importing(lake, PHOENIX / "span_annotations.json", PHOENIX / "trace_annotations.json")
    assert done.rows["events"] == 3 and done.skipped == {}
    stored = {
        row[0]: row
        for row in sql(lake, "select span_id, trace_id, parent_span_id, name, oi_kind, start_unix_nano from spans")
    }
    for span in spans:
        context = span["context"]
        assert stored[context["span_id"]] == (
            context["span_id"], context["trace_id"], span["parent_id"], span["name"], span["span_kind"], unix_nano(span["start_time"]),
        )  # fmt: skip
    config = TransformConfig.model_validate({"rewards": {"train": {"reward": 1.0}, "outcome": "resolved"}})
    run_transform(lake, config, now_unix_nano=NOW)
    calls = [span for span in spans if span["span_kind"] == "LLM"]
    assert sql(lake, "select count(*) from calls") == [(len(calls),)]
    assert sql(lake, "select name, value, label, source, target_kind from rewards order by name") == [
        ("helpful", 1.0, "yes", "HUMAN", "call"),
        ("resolved", 0.5, None, "CODE", "call"),
        ("reward", 0.75, "good", "LLM", "trace"),
    ]
    assert sql(lake, "select distinct reward::double from samples where reward is not null") == [(0.75,)]


def test_annotations_of_spans_that_are_nowhere_are_left_out_and_counted(tmp_path: Path) -> None:
    done = importing(tmp_path / "lake", PHOENIX / "span_annotations.json")
    assert done.rows["events"] == 0
    assert done.skipped == {"annotations of spans that are neither in these files nor in the lake": 2}


def test_langfuse_traces_observations_and_scores_become_calls_tools_and_rewards(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    done = importing(lake, LANGFUSE / "trace.json", LANGFUSE / "scores.jsonl", LANGFUSE / "observations_v2.jsonl")
    assert done.rows == {"spans": 6, "events": 5, "metrics": 0}
    assert done.skipped == {"scores with neither value nor text": 1}
    run_transform(lake, TransformConfig.model_validate({"rewards": {"train": {"reward": 1.0}}}), now_unix_nano=NOW)
    calls = sql(
        lake,
        "select trace_id, span_id, model, prompt_tokens, completion_tokens, temperature, session_id, user_id, prompt_messages, "
        "response_messages from calls order by start_unix_nano",
    )
    assert [call[2:5] for call in calls] == [("gpt-4o-mini", 21, 9), ("gpt-4o-mini", 40, 6), ("gpt-4o", 5, 2)]
    assert calls[0][0:2] == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert calls[0][5:8] == (0.7, "chat-7", "user-3")
    second = json.loads(calls[1][8])
    assert [message["role"] for message in second] == ["system", "user", "assistant", "tool"]
    assert second[1]["content"] == "Where is order 17?" and second[3]["content"] == "in Hamburg"
    assert second[2]["tool_calls"][0]["function"]["name"] == "find_order"
    assert json.loads(calls[1][9])[0]["content"] == "It is in Hamburg."
    assert json.loads(calls[2][8]) == [{"role": "user", "content": "Hi 👋"}]
    assert sql(lake, "select name, call_span_id from tools") == [("find_order", "b7ad6b7169203331")]
    rewards = sql(lake, "select name, value, label, source, target_kind from rewards order by name, value")
    assert rewards == [
        ("csat", 4.0, None, "API", "session"),
        ("helpful", 1.0, None, "ANNOTATION", "call"),
        ("reward", 0.25, None, "API", "call"),
        ("reward", 0.75, None, "API", "trace"),
        ("tone", None, "friendly", "EVAL", "trace"),
    ]
    # Ids that are none of OTLP's come from a hash, the same in every file and every run.
    assert calls[2][0] == trace_id("ticket-18").hex() and calls[2][1] == span_id("obs-b").hex()
    again = importing(lake, LANGFUSE / "observations_v2.jsonl", again=True)
    assert again.rows["spans"] == 2
    assert sql(lake, "select count(distinct (trace_id, span_id)) from spans") == [(6,)]


def test_rules_apply_to_files_as_to_senders(tmp_path: Path) -> None:
    source = tmp_path / "traces.jsonl"
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "to bob@example.com"}
    source.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span, {**span, "spanId": ""}]}]}]}))
    done = importing(tmp_path / "lake", source, redact=RedactConfig(rules=("email",)))
    assert done.rejected == 1
    assert sql(tmp_path / "lake", "select name, content from spans") == [("to [email]", "redacted")]


def test_while_a_collector_serves_the_lake_files_go_through_its_door(
    start: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, source = tmp_path / "lake", tmp_path / "traces.jsonl"
    source.write_bytes(as_lines(JS / "traces.json", 3))
    collector = start("lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", LIGHTNING_COLLECT_TOKEN="hush")  # fmt: skip
    done = script("lightning-collect", "import", str(source), "--lake", str(lake))
    assert done.returncode == 1 and "--endpoint" in done.stderr.splitlines()[-1]
    with pytest.raises(LightningError, match="asks for a token"):
        importing(lake, source, endpoint=collector.url)
    monkeypatch.setenv("LIGHTNING_COLLECT_TOKEN", "hush")
    first = importing(lake, source, endpoint=collector.url)
    assert first.rows["spans"] > 0
    assert importing(lake, source, endpoint=collector.url).known == 1
    assert collector.stop() == 0
    assert f"stored {first.rows['spans']} spans" in collector.lines[-1]


def test_what_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    unknown, cut = tmp_path / "x.json", tmp_path / "traces.pb.gz"
    unknown.write_text('{"hello": 1}')
    cut.write_bytes(gzip.compress(b"x" * 10_000)[:-20])
    body = tmp_path / "body.pb"
    body.write_bytes((JS / "traces.pb").read_bytes())
    for files, error in (
        ([tmp_path / "none.json"], "is no file"),
        ([unknown], "say which it is with --form"),
        ([cut], "cut off"),
        ([body], "give --signal"),
    ):
        with pytest.raises((UsageError, LightningError), match=error):
            importing(tmp_path / "lake", *files)
    assert importing(tmp_path / "lake", body, signal="spans").rows["spans"] > 0


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        ("2026-10-01T08:00:00.123Z", 1790841600123000000), ("2026-10-01 08:00:00.123456", 1790841600123456000),
        ("2026-10-01T10:00:00.123456789+02:00", 1790841600123456789), (1790841600, 1790841600 * 10**9), (1790841600123, 1790841600123 * 10**6),
        (1790841600123456789, 1790841600123456789), (None, 0), ("soon", 0), (True, 0), (float("nan"), 0),
    ],
)  # fmt: skip
def test_times_of_every_spelling(value: Any, nano: int) -> None:
    assert unix_nano(value) == nano
