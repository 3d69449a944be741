"""What it costs to turn spans into credit and samples: lightning-transform beside Agent Lightning's adapter, on the same traces.

    make bench-transform
    python benchmarks/transform.py [--spans 1000000] [--flat 60000] [--without flat,peer,more,hostile,floor]
                                   [--memory-mb 2048] [--write benchmarks/results/transform.md]

The lake is made of the captures under tests/fixtures/otlp with fresh ids and text (peers/traces.py), 10 spans a trace, and
kept under .cache/bench for the next time. Every figure is of a process of its own that reads Parquet and writes and
fsyncs its output; CPU seconds are user + system of that process. Before a time is printed, counts are held against what was
generated, and a sample of episodes against a run over a lake of just them.

    samples   canonical messages of every call written, credits, trajectories (the default)
    credits   the same values of every column but what was said: `messages: false`
    more      new traces worth 1% of the lake; feedback on 1% of the old rollouts, late spans for 1%, both at random
    flat      traces of 10 against traces of 10,000 spans, and against the same with little text
    hostile   a 20,000-deep chain, a root with 100,000 children, cycles, no clock: cost a span against ordinary traces
    floor     what DuckDB alone needs: every column of the spans decoded; every attribute's text hashed once; calls copied
    peer      agentlightning 0.3.0 in an environment of its own, spans from its own JSON, a part of the same traces
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.sides import Unavailable, environment
from peers.traces import FIXTURES, TEXT_BYTES, Maker, Writer, reward

CACHE = Path(__file__).parents[1] / ".cache" / "bench" / "transform"
BEGIN_NANO = 1_790_000_000_000_000_000
GOALS = {"credits": 50_000, "samples": 12_000}
PEER_GOALS = {"credits": 25, "samples": 5}
PEER_SPANS = 4000
# What no transform of this lake can do without: credits compare what was said by its hash, samples write it as well.
FLOORS = {
    "floor: every column decoded": "select bit_xor(hash(spans)) from spans",
    "floor: every text hashed once": "select max(sha256(array_to_string(map_values(attributes_str), ''))) from spans",
    "floor: calls copied": "copy calls to 'calls.parquet' "  # in the form in which a run writes them
    "(format parquet, compression zstd, compression_level 1, row_group_size 8192)",
}
LITTLE_TEXT_BYTES = TEXT_BYTES // 10  # or as little as the captures have without what was said
CHECKED_EPISODES = 60


def made_in(spans: int, spans_a_trace: int, text_bytes: int = TEXT_BYTES) -> Path:
    """Where a lake of this generator and these captures lies; those of earlier ones are removed."""
    digest = hashlib.sha256((Path(__file__).parent / "peers" / "traces.py").read_bytes())
    for path in sorted(path for path in FIXTURES.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    name = f"spans-{spans}-{spans_a_trace}-{text_bytes}-"
    folder = CACHE / (name + digest.hexdigest()[:12])
    for other in CACHE.glob(f"{name}*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def make(folder: Path, spans: int, spans_a_trace: int, seed: int, text_bytes: int = TEXT_BYTES) -> dict[str, Any]:
    """A lake of at least `spans` spans in `folder`, once; what is in it."""
    ready = folder / "made.json"
    if ready.exists():
        return json.loads(ready.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    say(f"making {spans:,} spans, {spans_a_trace:,} a trace")
    maker, writer = Maker(spans_a_trace, seed, BEGIN_NANO, text_bytes), Writer(folder / "lake")
    made: dict[str, Any] = {
        "spans": 0,
        "llm_spans": 0,
        "episodes": [],
        "captures": len(maker.captures),
        "conventions": maker.conventions,
    }
    while made["spans"] < spans:
        episode = maker.episode(writer.traces, writer.logs)
        made["spans"] += episode.spans
        made["llm_spans"] += episode.llm_spans
        made["episodes"].append([[t.hex() for t in episode.traces], episode.root_span.hex()])
        writer.offer()
    writer.close()
    made["bytes"] = sum(path.stat().st_size for path in (folder / "lake").glob("*/day=*/*.parquet"))
    ready.write_text(json.dumps(made))
    return made


def copy_lake(source: Path, target: Path) -> None:
    """A lake of one's own: data files are never changed and need no copy."""
    for name in ("spans", "events", "manifest"):
        if (source / name).exists():
            shutil.copytree(source / name, target / name, copy_function=os.link)
    for path in source.iterdir():
        if path.name not in ("spans", "events", "metrics", "manifest", "derived"):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, target / path.name)


def transform(lake: Path, options: argparse.Namespace, *, messages: bool = True, fresh: bool = False) -> dict[str, Any]:
    """One run in a process of its own: its report, CPU and wall seconds, peak memory."""
    if fresh:
        shutil.rmtree(lake / "derived", ignore_errors=True)
    command = [sys.executable, __file__, "--worker", str(lake), "--memory-mb", str(options.memory_mb)]
    done = subprocess.run([*command, *([] if messages else ["--no-messages"])], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"transform: the run over {lake} failed; nothing was measured")
    return json.loads(done.stdout.splitlines()[-1])


def worker(options: argparse.Namespace) -> None:
    """What `transform` starts. Imports are part of the time, as for whoever types the command."""
    from otel_lightning.transforms.config import TransformConfig
    from otel_lightning.transforms.run import run_transform

    config = TransformConfig.model_validate(
        {"memory_mb": options.memory_mb, "messages": not options.no_messages, "rewards": {"train": {"reward": 1.0}}}
    )
    began = time.monotonic()
    report = run_transform(Path(options.worker), config, now_unix_nano=BEGIN_NANO + 10**18, progress=True)
    counts = {"full": report.full, "traces": report.traces, "rollouts": report.rollouts, "run": report.run}
    print(json.dumps(counts | used(began)))


def floor(lake: Path, select: str) -> dict[str, Any]:
    """One statement over the lake in a process of its own, in one thread as a run of this memory is."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(lake), "--floor", select],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def floor_worker(lake: Path, select: str) -> None:
    """What `floor` starts."""
    import duckdb

    began = time.monotonic()
    connection = duckdb.connect()
    connection.execute("set threads = 1; set enable_progress_bar = false; set preserve_insertion_order = false")
    os.chdir(lake.parent)  # where a copy goes
    for name, folder in (("spans", lake / "spans"), ("calls", lake / "derived" / "calls")):
        files = str(folder / "**" / "*.parquet")
        connection.read_parquet(files, hive_partitioning=False, union_by_name=True).create_view(name)
    connection.execute(select).fetchall()
    print(json.dumps(used(began)))


def used(began: float) -> dict[str, float]:
    """What this process has cost so far. Its own peak: Linux hands the parent's `ru_maxrss` on to a child."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory_mib = usage.ru_maxrss / 1024
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        memory_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"wall_s": time.monotonic() - began, "cpu_s": usage.ru_utime + usage.ru_stime, "memory_mib": memory_mib}


def content(lake: Path, traces: list[str] | None = None, *, messages: bool = True) -> dict[str, Any]:
    """Counts, and a hash over everything that people and trainers read (with `messages` what was said too); of some traces or all."""
    from otel_lightning.transforms.tables import open_tables

    said = (
        ", prompt_messages, response_messages, prompt_ids, response_ids, response_logprobs, tools" if messages else ""
    )
    with open_tables(lake) as connection:
        connection.execute("create temp table chosen (trace_id varchar)")
        if traces is not None:
            connection.execute("insert into chosen select unnest($traces)", {"traces": traces})
        where = "" if traces is None else "where trace_id in (select trace_id from chosen)"
        hashes = {}
        for name, columns, table in (
            ("calls", f"trace_id, span_id, rollout_id, step, convention, model, trainable, untrainable_reason, prompt_hash{said}", "calls"),
            ("credits", "trace_id, span_id, choice, rollout_id, reward, advantage, use", "credits"),
        ):  # fmt: skip
            row = connection.execute(
                f"select count(*), sum(md5_number_lower(to_json([{', '.join(f'to_json({c})' for c in columns.split(', '))}])::varchar)::hugeint)::varchar "
                f"from {table} {where}"
            ).fetchone()
            hashes[name] = list(row or ())
        spoken = connection.execute(
            f"select convention, count(*) from calls {where} group by convention order by convention"
        ).fetchall()
        totals = connection.execute(
            "select (select sum(spans)::bigint from rollouts), (select count(*) from rollouts), "
            "(select count(*) from rewards where unresolved_reason is null), (select count(*) from calls where trainable)"
        ).fetchone()
    return {"hashes": hashes, "totals": list(totals or ()), "spoken": dict(spoken)}


def excerpt(source: Path, target: Path, traces: list[str]) -> None:
    """A lake of some traces of another."""
    import duckdb

    from otel_lightning.store.fs import RealDisk
    from otel_lightning.store.lake import Lake
    from otel_lightning.store.manifest import DataFile, Entry, write_entry

    connection = duckdb.connect()
    connection.execute("create table chosen as select unnest($traces) as trace_id", {"traces": traces})
    files = []
    for signal in ("spans", "events"):
        path = f"{signal}/day=2026-01-01/excerpt-00000000.parquet"
        (target / path).parent.mkdir(parents=True)
        connection.execute(
            f"copy (select * from read_parquet('{source}/{signal}/*/*.parquet', hive_partitioning = false) "
            f"where trace_id in (select trace_id from chosen) order by trace_id) to '{target / path}' (format parquet)"
        )
        files.append(DataFile(signal, path, 0, ""))
    (target / "manifest").mkdir()
    write_entry(RealDisk(), Lake(target), Entry("excerpt", 0, 0, 0, 0, tuple(files)))


def check(lake: Path, made: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Counts against what was generated, and some episodes against a run over just them. SystemExit when they differ."""
    found = content(lake, messages=False)
    spans, rollouts, rewards, trainable = found["totals"]
    if spans != made["spans"] or rewards < len(made["episodes"]) or rollouts < len(made["episodes"]) or not trainable:
        raise SystemExit(
            f"transform: {made['spans']:,} spans and {len(made['episodes']):,} episodes were made, but {spans:,} spans are in "
            f"{rollouts:,} rollouts with {rewards:,} rewards; no time is worth printing"
        )
    if silent := sorted(set(made["conventions"]) - found["spoken"].keys()):
        raise SystemExit(f"transform: no call speaks {', '.join(silent)}; no time is worth printing")
    chosen = random.Random(0).sample(made["episodes"], min(CHECKED_EPISODES, len(made["episodes"])))
    traces = [trace for ids, _ in chosen for trace in ids]
    with tempfile.TemporaryDirectory(prefix="bench-transform-") as name:
        excerpt(lake, Path(name) / "lake", traces)
        transform(Path(name) / "lake", options)
        if content(Path(name) / "lake", traces)["hashes"] != content(lake, traces)["hashes"]:
            raise SystemExit("transform: episodes by themselves give other rows; no time is worth printing")
    return found


def peer(lake: Path, made: dict[str, Any]) -> dict[str, Any]:
    """The same traces as Agent Lightning stores them, read and adapted by its own code. Unavailable when it cannot be had."""
    python = environment("Agent Lightning", "agentlightning==0.3.0")
    import duckdb

    from otel_lightning.transforms.tables import open_tables

    chosen: list[str] = []
    for ids, _ in made["episodes"]:
        chosen += ids
        if len(chosen) * 10 >= PEER_SPANS:
            break
    connection = duckdb.connect()
    connection.execute("create table chosen as select unnest($traces) as trace_id", {"traces": chosen})
    spans = connection.execute(
        "select trace_id, span_id, parent_span_id, name, status_code, start_unix_nano, end_unix_nano, attributes_str, attributes_int, "
        f"attributes_dbl, attributes_bool, attributes_json, prompt_token_ids, choices from read_parquet('{lake}/spans/*/*.parquet', "
        "hive_partitioning = false) where trace_id in (select trace_id from chosen) order by trace_id, start_unix_nano"
    ).fetchall()
    with open_tables(lake) as tables:
        tables.execute("create temp table chosen as select unnest($traces) as trace_id", {"traces": chosen})
        calls = {
            (row[0], row[1]): row[2:]
            for row in tables.execute(
                "select trace_id, span_id, prompt_messages, response_messages, response_id from calls semi join chosen using (trace_id) "
                "where not error"
            ).fetchall()
        }
    with tempfile.TemporaryDirectory(prefix="bench-transform-") as name:
        path = Path(name) / "spans.jsonl"
        with open(path, "w") as file:
            for number, span in enumerate(spans):
                file.write(json.dumps(_as_agentlightning(span, calls.get((span[0], span[1])), number)) + "\n")
                if span[2] is None:  # its root is rewarded by a span of its own below, as emit_reward makes it
                    given = {"agentlightning.reward.0.name": "reward", "agentlightning.reward.0.value": 1.0}
                    annotation = (
                        span[0],
                        f"{number:016x}",
                        span[1],
                        "agentlightning.annotation",
                        0,
                        span[6],
                        span[6],
                        given,
                        None,
                        None,
                    )
                    file.write(json.dumps(_as_agentlightning(annotation, None, number)) + "\n")
        done = subprocess.run(
            [str(python), str(Path(__file__).parent / "peers" / "triplets.py"), str(path)], capture_output=True, text=True,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"Agent Lightning's adapter failed: {done.stderr.strip().splitlines()[-1][:200]}")
        found = json.loads(done.stdout.splitlines()[-1])
        found["bytes"] = path.stat().st_size
    if not 0.9 * len(calls) <= found["triplets"] <= 1.1 * len(calls):
        raise SystemExit(f"transform: {len(calls)} calls, but {found['triplets']} triplets; the peer was not measured")
    return found | {"calls": len(calls)}


def _as_agentlightning(span: tuple[Any, ...], call: tuple[Any, ...] | None, number: int) -> dict[str, Any]:
    trace, span_id, parent, name, status, start, end, *maps, prompt_ids, choices = span
    attributes = {key: value for found in maps for key, value in dict(found or {}).items()}
    if call is not None:
        # As AgentOps writes a call, the form that the adapter reads; what our conventions say twice is left out.
        name, attributes = "openai.chat.completion", {}
        for side, text in (("prompt", call[0]), ("completion", call[1])):
            for index, message in enumerate(json.loads(text)):
                attributes[f"gen_ai.{side}.{index}.role"] = message["role"]
                attributes[f"gen_ai.{side}.{index}.content"] = message["content"] or ""
        attributes["gen_ai.response.id"] = call[2] or span_id
        if prompt_ids:
            attributes |= {"prompt_token_ids": prompt_ids, "response_token_ids": choices[0]["token_ids"]}
    return {
        "rollout_id": trace, "attempt_id": "a", "sequence_id": number, "trace_id": trace, "span_id": span_id, "parent_id": parent,
        "name": name, "status": {"status_code": {1: "OK", 2: "ERROR"}.get(status, "UNSET"), "description": None},
        "attributes": attributes, "events": [], "links": [], "start_time": start / 1e9, "end_time": end / 1e9, "context": None,
        "parent": None, "resource": {"attributes": {}, "schema_url": ""},
    }  # fmt: skip


def add(lake: Path, made: dict[str, Any], what: str, share: float, seed: int) -> int:
    """Send more to a lake: new episodes, feedback, or late spans for some old ones at random. How many rollouts."""
    writer = Writer(lake)
    maker = Maker(10, seed, BEGIN_NANO + 10**17)
    number = max(1, int(len(made["episodes"]) * share))
    chosen = random.Random(seed).sample(made["episodes"], number)
    for ids, root in chosen:
        if what == "new traces":
            maker.episode(writer.traces, writer.logs)
        elif what == "feedback":
            writer.logs += reward(
                BEGIN_NANO + 2 * 10**17, 0.5, trace_id=bytes.fromhex(ids[0]), span_id=bytes.fromhex(root)
            )
        else:
            maker.episode(writer.traces, writer.logs, of=[bytes.fromhex(ids[0])], only=1)
        writer.offer()
    writer.close()
    return number


def say(text: str) -> None:
    print(f"bench-transform: {text}", file=sys.stderr, flush=True)


def rate(made: dict[str, Any], run: dict[str, Any]) -> float:
    return made["spans"] / run["cpu_s"]


def row(name: str, spans: int, run: dict[str, Any], more: str = "") -> str:
    return (
        f"| {name} | {spans:,} | {run['cpu_s']:,.1f} | {spans / run['cpu_s']:,.0f} | {run['wall_s']:,.1f} "
        f"| {run['memory_mib']:,.0f} | {more} |"
    )


def measure(options: argparse.Namespace) -> list[str]:
    """Lines of Markdown."""
    CACHE.mkdir(parents=True, exist_ok=True)
    without = set(filter(None, options.without.split(",")))
    folder = made_in(options.spans, 10)
    made = make(folder, options.spans, 10, seed=1)
    lines = [
        f"{made['spans']:,} spans in {len(made['episodes']):,} rollouts, {made['llm_spans']:,} of them LLM spans, {made['captures']} captures of "
        f"{len(made['conventions'])} conventions in equal shares of rollouts, {made['bytes'] / made['spans'] / 1000:.1f} kB a span on disk.",
        "",
        "| | spans | CPU s | spans per CPU second | wall s | peak MiB | |",
        "|---|---|---|---|---|---|---|",
    ]
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory(prefix="work-", dir=CACHE) as name:
        work = Path(name)
        copy_lake(folder / "lake", work / "lake")
        say("credits")
        credits = transform(work / "lake", options, messages=False, fresh=True)
        credited = content(work / "lake", messages=False)["hashes"]
        say("samples")
        samples = transform(work / "lake", options, fresh=True)
        say("checking counts and content")
        found = check(work / "lake", made, options)
        if found["hashes"] != credited:
            raise SystemExit("transform: credits differ with and without messages; no time is worth printing")
        lines.insert(1, "Calls: " + ", ".join(f"{count:,} {name}" for name, count in found["spoken"].items()) + ".")
        lines += [row("credits", made["spans"], credits), row("samples", made["spans"], samples)]
        for kind, run in (("credits", credits), ("samples", samples)):
            verdicts.append(f"- {kind}: {rate(made, run):,.0f} spans per CPU second, goal {GOALS[kind]:,}")
        verdicts.append(f"- peak memory of {made['spans']:,} spans: {samples['memory_mib']:,.0f} MiB, goal under 2,000")
        if "floor" not in without:
            for name, select in FLOORS.items():
                say(name)
                run = floor(work / "lake", select)
                share = f"{run['cpu_s'] / samples['cpu_s']:.1%} of samples"
                lines.append(row(name, made["spans"], run, share))
                verdicts.append(f"- {name}: {rate(made, run):,.0f} spans per CPU second, {share}")
        if "more" not in without:
            for number, what in enumerate(("new traces", "feedback", "late spans")):
                say(f"1% {what}")
                count = add(work / "lake", made, what, 0.01, 10 + number)
                run = transform(work / "lake", options)
                share = run["cpu_s"] / samples["cpu_s"]
                lines.append(
                    f"| 1% {what} | {count:,} rollouts | {run['cpu_s']:,.1f} | | {run['wall_s']:,.1f} | {run['memory_mib']:,.0f} | {share:.1%} of a full run |"
                )
                goal = "" if what == "late spans" else ", goal at most 5%"
                verdicts.append(f"- 1% {what}: {share:.1%} of a full run{goal}")
                if run["full"]:
                    raise SystemExit("transform: an increment became a full run; no time is worth printing")
        if "peer" not in without:
            say("Agent Lightning's adapter")
            try:
                found = peer(work / "lake", made)
                total = found["read_s"] + found["adapt_s"]
                per = found["spans"] / total
                lines.append(
                    f"| Agent Lightning 0.3.0 adapter, from stored form | {found['spans']:,} | {total:,.2f} | {per:,.0f} | | | "
                    f"{found['triplets']:,} triplets; reading {found['read_s']:.2f} s, adapting {found['adapt_s']:.2f} s |"
                )
                for kind, run in (("credits", credits), ("samples", samples)):
                    verdicts.append(
                        f"- {kind} against Agent Lightning 0.3.0: {rate(made, run) / per:.1f}×, goal {PEER_GOALS[kind]}×"
                    )
            except (Unavailable, SystemExit, KeyError, ValueError, OSError) as error:
                verdicts.append(f"- not measured: {error}")
        if "flat" not in without:
            rates = []
            for spans_a_trace, text_bytes in ((10, TEXT_BYTES), (10_000, TEXT_BYTES), (10, LITTLE_TEXT_BYTES)):
                other = made_in(options.flat, spans_a_trace, text_bytes)
                flat = make(other, options.flat, spans_a_trace, 2, text_bytes)
                what = f"{spans_a_trace:,} spans a trace" + (", little text" if text_bytes < TEXT_BYTES else "")
                say(what)
                run = transform(other / "lake", options, fresh=True)
                shutil.rmtree(other / "lake" / "derived")
                rates.append(rate(flat, run))
                on_disk = f"{flat['bytes'] / flat['spans'] / 1000:.1f} kB a span on disk"
                lines.append(row(f"samples, {what}", flat["spans"], run, on_disk))
            plain, long, short = rates
            verdicts.append(f"- 10,000 against 10 spans a trace: {long / plain:.2f} of the rate, goal 0.8 to 1.2")
            verdicts.append(f"- little text: {plain / short:.0%} of the CPU time a span")
        if "hostile" not in without:
            from peers.hostile import SHAPES, write

            per_span = {}
            for shape in ("plain", *SHAPES):
                say(f"hostile: {shape}")
                count = write(work / shape, shape)
                try:
                    run = transform(work / shape, options)
                except SystemExit as error:
                    verdicts.append(f"- hostile {shape}: {error}")
                    continue
                per_span[shape] = run["cpu_s"] / count
                lines.append(
                    row(f"hostile: {shape}", count, run, f"{per_span[shape] / per_span['plain']:.1f}× of plain a span")
                )
    return [*lines, "", *verdicts, ""]


def main() -> None:
    """Measure, print, and write the table if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--flat", type=int, default=60_000, help="spans of each of the two lakes for `flat`")
    parser.add_argument("--without", default="", help="what to leave out: flat, peer, more, hostile, floor")
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--write", type=Path, help="Markdown file for the result")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--floor", help=argparse.SUPPRESS)
    parser.add_argument("--no-messages", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.floor:
        floor_worker(Path(options.worker), options.floor)
        return
    if options.worker:
        worker(options)
        return
    command = " ".join(["python", "benchmarks/transform.py", *sys.argv[1:]])
    import duckdb

    before = os.getloadavg()[0]
    measured = measure(options)
    lines = [
        f"## {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "",
        f"`{command}`: {os.cpu_count()} CPUs ({_cpu()}), Python {platform.python_version()}, DuckDB {duckdb.__version__}, "
        f"load average {before:.1f} before.",
        "",
        *measured,
        f"Load average {os.getloadavg()[0]:.1f} after.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


if __name__ == "__main__":
    main()
