"""How fast spans become credit, as a ratio against a straightforward walk in Python over the same Parquet files.

    python benchmarks/transform.py [--episodes 1500]

Both sides read the same lake and must give every call the same broadcast credit before a time is printed. Times are CPU
seconds of this process; the Python side loads spans with pyarrow, builds each tree, and hands the root's reward down.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROUNDS = 3


def body(number: int, calls: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One episode: a root, a chain and a call with a growing history for each step, and its reward."""
    trace = f"{number + 1:032x}"
    spans, clock = [], 1_700_000_000_000_000_000 + number * 10**9
    history: list[tuple[str, str]] = [("system", "You help customers of a shop. " * 8)]
    for step in range(calls):
        history.append(("user", f"question {number} {step} " + "words of a customer " * 20))
        values = {"openinference.span.kind": "LLM"}
        for index, (role, text) in enumerate(history):
            values |= {
                f"llm.input_messages.{index}.message.role": role,
                f"llm.input_messages.{index}.message.content": text,
            }
        answer = f"answer {number} {step} " + "words of an agent " * 20
        values |= {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": answer}
        history.append(("assistant", answer))
        for offset, _parent, kind in ((1, 0, {"openinference.span.kind": "CHAIN"}), (2, 10 * step + 11, values)):
            clock += 10**6
            parent_id = f"{number + 1:08x}{0 if offset == 1 else 10 * step + 11:08x}"
            spans.append(span(trace, f"{number + 1:08x}{10 * step + 10 + offset:08x}", parent_id, clock, kind))
    spans.append(span(trace, f"{number + 1:08x}{0:08x}", None, clock - 10**8, {"openinference.span.kind": "AGENT"}))
    record = {
        "eventName": "gen_ai.evaluation.result",
        "timeUnixNano": str(clock),
        "traceId": trace,
        "attributes": attributes(
            {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": (number % 5) / 4}
        ),
    }
    return {"spans": spans}, {"logRecords": [record]}


def span(trace: str, span_id: str, parent: str | None, clock: int, values: dict[str, Any]) -> dict[str, Any]:
    made = {
        "traceId": trace,
        "spanId": span_id,
        "name": "span",
        "startTimeUnixNano": str(clock),
        "endTimeUnixNano": str(clock + 10**5),
        "attributes": attributes(values),
    }
    return {**made, "parentSpanId": parent} if parent else made


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": k, "value": {"doubleValue": v} if isinstance(v, float) else {"stringValue": v}}
        for k, v in values.items()
    ]


def fill(lake: Path, episodes: int, calls: int) -> None:
    """Write the lake through the real collector."""
    script = Path(sys.executable).with_name("lightning-collect")
    command = [str(script), "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    collector = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert collector.stdout is not None
    url = next(line.split()[-1] for line in collector.stdout if line.startswith("listening http"))
    for start in range(0, episodes, 50):
        bodies = [body(number, calls) for number in range(start, min(start + 50, episodes))]
        post(f"{url}/v1/traces", {"resourceSpans": [{"scopeSpans": [b[0] for b in bodies]}]})
        post(f"{url}/v1/logs", {"resourceLogs": [{"scopeLogs": [b[1] for b in bodies]}]})
    collector.terminate()
    collector.communicate()


def post(url: str, value: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()


def ours(lake: Path) -> dict[str, float]:
    from otel_lightning.transforms.config import TransformConfig
    from otel_lightning.transforms.run import run_transform
    from otel_lightning.transforms.tables import open_tables

    shutil.rmtree(lake / "derived", ignore_errors=True)
    run_transform(lake, TransformConfig.model_validate({"settle_s": 1, "threads": 1}))
    with open_tables(lake, threads=1) as connection:
        return dict(connection.execute("select span_id, reward::double from credits").fetchall())


def walk(lake: Path) -> dict[str, float]:
    """The straightforward way: every span a Python dictionary, every tree walked, messages rebuilt for each call."""
    import pyarrow.parquet as pq

    children: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for path in (lake / "spans").rglob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            children.setdefault((row["trace_id"], row["parent_span_id"]), []).append(row)
    rewards = {
        row["trace_id"]: dict(row["attributes_dbl"])["gen_ai.evaluation.score.value"]
        for path in (lake / "events").rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    credits: dict[str, float] = {}
    stack = [root for (_, parent), roots in children.items() if parent is None for root in roots]
    while stack:
        row = stack.pop()
        if row["oi_kind"] == "LLM":
            found: dict[int, dict[str, str]] = {}
            for key, value in row["attributes_str"]:
                if key.startswith("llm.input_messages."):
                    _, _, index, _, field = key.split(".", 4)
                    found.setdefault(int(index), {})[field] = value
            json.dumps([found[index] for index in sorted(found)])
            credits[row["span_id"]] = rewards[row["trace_id"]]
        stack += children.get((row["trace_id"], row["span_id"]), [])
    return credits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--episodes", type=int, default=1500)
    parser.add_argument("--calls", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder) / "lake"
        fill(lake, options.episodes, options.calls)
        spans = options.episodes * (2 * options.calls + 1)
        seconds: dict[str, list[float]] = {"ours": [], "walk": []}
        for _ in range(ROUNDS):
            found = {}
            for name, run in (("ours", ours), ("walk", walk)):
                began = time.process_time()
                found[name] = run(lake)
                seconds[name].append(time.process_time() - began)
            if found["ours"] != found["walk"] or len(found["ours"]) != options.episodes * options.calls:
                print("the two sides do not agree; no time is worth printing")
                return 1
        best = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
        print(f"{spans} spans, {options.episodes * options.calls} calls credited alike, median of {ROUNDS} rounds")
        for name, value in best.items():
            print(
                f"  {name:5} {spans / value:10.0f} spans per CPU second  ({min(seconds[name]):.2f}–{max(seconds[name]):.2f} s)"
            )
        print(
            f"  ratio {best['walk'] / best['ours']:.2f} (everything from spans to samples, written and fsynced, against credits in memory)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
