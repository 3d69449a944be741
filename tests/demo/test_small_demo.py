"""`make demo SIZE=small` once, and what must be true of its lake and its report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from otel_lightning.store.policies import Policies
from otel_lightning.training import models
from otel_lightning.transforms.tables import open_tables

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "support" / "demo"


def command(out: Path, *more: str) -> list[str]:
    """The demo as make runs it."""
    return [sys.executable, str(DEMO / "main.py"), "--size", "small", "--out", str(out), *more]


def run_demo(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *more), capture_output=True, text=True, timeout=550)


def run_until(line: str, out: Path, then: Callable[[subprocess.Popen[str]], None], *more: str) -> tuple[int, str]:
    """Run the demo, do `then` once it has printed `line`; its exit code and what it said on standard error."""

    def may_be_interrupted() -> None:
        """What runs in the background of a script ignores Ctrl-C, and so would its children."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command(out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=may_be_interrupted
    ) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith(line):
                then(process)
                break
        _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def processes_of(out: Path) -> list[psutil.Process]:
    """Every running process that names the run's folder, this test's children or not."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small run."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = run_demo(out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def report(demo: Path) -> dict[str, Any]:
    return json.loads((demo / "report.json").read_text())


def test_the_report_has_every_stage_and_what_it_took(demo: Path, report: dict[str, Any]) -> None:
    for stage in ("before", "after_offline", "after_online"):
        entry = report[stage]
        assert entry["n"] == 64
        assert entry["low"] <= entry["value"] == entry["greedy"] <= entry["high"]
        assert 0 <= entry["sampled"] <= 1
        assert {p["n"] for p in entry["phrases"].values()} == {32}
    assert report["ceiling"] == 1.0
    assert report["floor"] < 0.3
    assert (
        set(report["seconds"])
        == set(report["cpu_seconds"])
        >= {"base", "before", "log", "offline", "online", "after_online"}
    )
    assert (demo / "curve.png").stat().st_size > 10_000
    assert "| before |" in (demo / "report.md").read_text()


def test_sql_over_the_lake_reproduces_the_report_and_the_curve(demo: Path, report: dict[str, Any]) -> None:
    script = str(Path(sys.executable).with_name("lightning-transform"))
    query = (
        "select stage, decoding, avg(resolved) as share, count(*) as n from ("
        + (DEMO / "sql" / "outcomes.sql").read_text()
        + ") group by all"
    )
    done = subprocess.run(
        [script, "sql", query, "--json", "--lake", str(demo / "lake")], capture_output=True, text=True, check=True
    )
    found = {(row["stage"], row["decoding"]): row["share"] for row in map(json.loads, done.stdout.splitlines())}
    for stage in ("before", "after_offline", "after_online"):
        for decoding in ("greedy", "sampled"):
            assert found[stage.replace("_", ""), decoding] == pytest.approx(report[stage][decoding])
    done = subprocess.run(
        [script, "sql", (DEMO / "sql" / "curve.sql").read_text(), "--json", "--lake", str(demo / "lake")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == report["curve"]
    assert [row["round"] for row in report["curve"]] == [0, 1]


def test_the_agents_traces_are_the_data(report: dict[str, Any]) -> None:
    assert report["agent_side_share"] >= 0.99
    assert report["tools_tied_share"] >= 0.99
    assert report["lost_spans"] == 0
    assert report["processes_unknown"] == 0


MISTAKES_LOOKED_AT = 400  # samples are enough to see a mistake; the truth is asked of every one
BATCH_SAMPLES = 64


def recomputed(
    demo: Path, *, limit: int | None = None, shift: int = 0, temperature: float = 1.0, version_shift: int = 0
) -> np.ndarray:
    """|recorded − recomputed| log-probability of every sampled token, with a mistake planted on demand."""
    with open_tables(demo / "lake") as connection:
        rows = connection.execute(
            "select policy_version, prompt_ids, response_ids[1], response_logprobs[1], temperature from calls "
            "where token_source = 'engine' and temperature > 0 "
            "order by policy_version, len(prompt_ids), sha256(trace_id || span_id)"
        ).fetchall()
    if limit is not None:
        rows = rows[:: max(1, len(rows) // limit)]
    policies = Policies(demo / "lake" / "policies")
    versions = policies.versions()
    differences: list[np.ndarray] = []
    for version in sorted({row[0] for row in rows}):
        of_version = [row for row in rows if row[0] == version]
        name = versions[(versions.index(version) + version_shift) % len(versions)]
        model = models.load(policies.get(name).folder)[0].eval()
        for start in range(0, len(of_version), BATCH_SAMPLES):
            batch = of_version[start : start + BATCH_SAMPLES]
            ids = [torch.tensor(prompt + response) for _, prompt, response, _, _ in batch]
            with torch.no_grad():  # padded on the right, where a causal model never looks
                logits = model(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)).logits.float()
            for (_, prompt, response, logprobs, sampled_at), row_logits in zip(batch, logits, strict=True):
                said = row_logits[len(prompt) - 1 : len(prompt) + len(response) - 1] / (sampled_at * temperature)
                expected = torch.log_softmax(said, -1).gather(1, torch.tensor(response).roll(shift)[:, None])[:, 0]
                differences.append(np.abs(expected.numpy() - np.array(logprobs)))
    return np.concatenate(differences)


def test_recorded_logprobs_are_those_of_the_policy_that_sampled(demo: Path) -> None:
    found = recomputed(demo)
    assert len(found) > 3000
    assert np.quantile(found, 0.99) <= 1e-4
    assert found.max() <= 1e-2
    for mistake in ({"shift": 1}, {"temperature": 1.1}, {"version_shift": 1}):
        assert np.quantile(recomputed(demo, limit=MISTAKES_LOOKED_AT, **mistake), 0.99) > 1e-3, mistake


def test_no_process_is_left_behind(demo: Path) -> None:
    assert processes_of(demo) == []


def test_what_was_trained_is_on_record_and_never_a_test_ticket(demo: Path) -> None:
    trained = {
        s
        for name in ("offline", "online")
        for line in (demo / name / "trained.jsonl").read_text().splitlines()
        for s in json.loads(line)["samples"]
    }
    with open_tables(demo / "lake") as connection:
        splits = dict(connection.execute("select sample_id, split from samples").fetchall())
    assert trained and {splits[sample] for sample in trained} == {"train"}


def the_line(stderr: str) -> str:
    """The one line that says why the demo stopped."""
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("demo: ")]
    return line


def test_with_the_bots_exporter_at_a_closed_port_the_demo_stops_in_one_line(demo: Path, tmp_path: Path) -> None:
    done = run_demo(tmp_path / "run", "--base", str(demo), "--bots-otlp", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "come from the bots' own spans; does their exporter reach the collector?" in the_line(done.stderr)


def test_with_the_collector_stopped_the_demo_stops_in_one_line(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop_the_collector(_: subprocess.Popen[str]) -> None:
        (collector,) = [p for p in processes_of(out) if "lightning-collect" in " ".join(p.cmdline())]
        collector.kill()

    code, stderr = run_until("=== log", out, stop_the_collector, "--base", str(demo))
    assert code == 1
    assert "lightning-collect" in the_line(stderr)
    assert processes_of(out) == []


def test_with_a_credit_file_removed_the_demo_stops_in_one_line(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def remove_credits(_: subprocess.Popen[str]) -> None:
        for path in (out / "lake" / "derived" / "credits").glob("run=*/part-*.parquet"):
            path.unlink()

    code, stderr = run_until("=== log: ", out, remove_credits, "--base", str(demo))
    assert code == 1
    assert "support_offline failed" in the_line(stderr)
    (why,) = [line for line in stderr.splitlines() if line.startswith("train.py: ")]
    assert ".parquet is missing; everything derived can be made again" in why
    assert not (out / "offline" / "trained.jsonl").exists()


def test_interrupted_the_demo_leaves_no_process_behind(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, stderr = run_until("=== before", out, lambda process: process.send_signal(signal.SIGINT), "--base", str(demo))
    assert (code, the_line(stderr)) == (130, "demo: interrupted")
    assert processes_of(out) == []
