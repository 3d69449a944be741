"""What lightning-instrument costs an agent: milliseconds and memory per LLM call, with and without, in one run.

    python benchmarks/instrument.py [--rounds 5] [--calls 200]

The same agent on the OpenAI SDK, a history of 20 messages a call, against a model server that answers at once: what is added
is all there is to see, a real model's answer takes hundreds of times longer. Sides take turns; CPU seconds are those of the
agent's process with all its threads, memory is its resident set at its end. Every call of an instrumented side is found in
the lake of a real collector before a figure is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "worlds"))

from agent_runs import clean_environment, scripted_model
from running import SCRIPTS, Process

from otel_lightning.transforms.tables import open_tables

AGENT = """
import json, resource, sys, time
import openai
client = openai.OpenAI()
history = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "words that were said " * 10} for n in range(19)]
def ask(n):
    client.chat.completions.create(model="scripted", messages=[*history, {"role": "user", "content": f"question {n}"}])
for n in range(20):
    ask(n)
time.sleep(1)  # the exporter is made with the first batch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
calls, before, wall, cpu = int(sys.argv[1]), resident(), time.perf_counter(), time.process_time()
for n in range(calls):
    ask(n)
time.sleep(0.5)  # the last batch leaves inside of the measured time too
print(json.dumps([(time.perf_counter() - wall - 0.5) / calls * 1e3, (time.process_time() - cpu) / calls * 1e3,
                  resident() / 2**20, (resident() - before) / calls / 2**10]))
"""
SIDES = {
    "without": None,
    "lightning-instrument": (),
    "… --no-content": ("--no-content",),
    "… --capture-tokens": ("--capture-tokens",),
}


def measure(script: Path, calls: int, side: str, model: str, collector: str) -> list[float]:
    """Wall and CPU milliseconds a call, MiB at the end, KiB of growth a call."""
    options = SIDES[side]
    command = [sys.executable, str(script), str(calls)]
    if options is not None:
        command = [str(SCRIPTS / "lightning-instrument"), *options, *command]
    environment = clean_environment(
        OPENAI_BASE_URL=f"{model}/v1", OTEL_EXPORTER_OTLP_ENDPOINT=collector, OTEL_SERVICE_NAME=side
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if done.stderr:
        raise SystemExit(f"{side}: {done.stderr}")
    return json.loads(done.stdout)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What lightning-instrument costs an agent per LLM call.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "agent.py"
        script.write_text(AGENT)
        model = scripted_model(folder / "log.jsonl")
        collector = Process(
            [
                str(SCRIPTS / "lightning-collect"),
                "--lake",
                str(folder / "lake"),
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "127.0.0.1:0",
            ]
        )
        figures: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        try:
            for number in range(options.rounds):
                for side in list(SIDES)[:: 1 if number % 2 else -1]:
                    figures[side].append(measure(script, options.calls, side, model.url, collector.url))
            urllib.request.urlopen(
                urllib.request.Request(f"{collector.url}/flush", b"", method="POST"), timeout=60
            ).read()
            with open_tables(folder / "lake") as connection:
                found = dict(
                    connection.execute(
                        "select service_name, count(*) from spans where oi_kind = 'LLM' group by all"
                    ).fetchall()
                )
        finally:
            model.stop()
            collector.stop()
    for side, given in SIDES.items():
        wanted = None if given is None else options.rounds * (options.calls + 20)
        if found.get(side) != wanted:
            print(
                f"{side}: {found.get(side)} of {wanted} calls are in the lake: not a fair comparison", file=sys.stderr
            )
            return 1
    print(f"{options.rounds} rounds of {options.calls} calls, median (range) per call, {os.cpu_count()} cores")
    bare = [statistics.median(column) for column in zip(*figures["without"], strict=True)]
    for side, rows in figures.items():
        columns = list(zip(*rows, strict=True))
        median = [statistics.median(column) for column in columns]
        spread = [f"{m:.2f} ({min(c):.2f}…{max(c):.2f})" for m, c in zip(median, columns, strict=True)]
        print(
            f"{side:<22} wall {spread[0]} ms   CPU {spread[1]} ms   resident {median[2]:.0f} MiB, growing {median[3]:.2f} KiB"
        )
        if side != "without":
            print(
                f"{'':<22} added {median[0] - bare[0]:+.2f} ms wall, {median[1] - bare[1]:+.2f} ms CPU, {median[2] - bare[2]:+.0f} MiB; "
                f"CPU ratio {median[1] / bare[1]:.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
