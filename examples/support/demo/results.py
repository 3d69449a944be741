"""The table of several full runs: every number read back from their lakes, differences paired by ticket.

    python examples/support/demo/results.py runs/results --out examples/support/RESULTS.md

Takes every run under a folder (report.json and lake/), none left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from world import CAUSES

from demo.report import STAGES, read_outcomes, wilson
from otel_lightning.app.cli import guard
from otel_lightning.app.errors import LightningError

BOOTSTRAP_DRAWS = 10_000


def main() -> int:
    """Entry point; a failure is one line."""
    parser = argparse.ArgumentParser(description="Make the table of several runs of the support demo.")
    parser.add_argument("runs", type=Path, help="folder of run folders")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--commit", default=None, help="what was measured, when that is not what is checked out")
    parser.add_argument("--note", default=None, help="what a reader should know about the circumstances")
    options = parser.parse_args()
    return guard(lambda: _write(options.runs, options.out, options.commit or _commit(), options.note), "results")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "an unknown commit"


def _write(runs: Path, out: Path, commit: str, note: str | None) -> int:
    reports = [json.loads(path.read_text()) | {"folder": path.parent} for path in sorted(runs.glob("*/report.json"))]
    if not reports:
        raise LightningError(f"no finished run under {runs}; make them with make demo-results")
    controls = [report for report in reports if report["control"]]
    text = markdown([report for report in reports if not report["control"]], controls, commit, note)
    out.write_text(text, encoding="utf-8")
    print(text)
    return 0


def greedy_outcomes(lake: Path) -> dict[str, dict[str, float]]:
    """Stage → ticket → resolved at temperature 0."""
    outcomes: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    for row in read_outcomes(lake):
        if row["decoding"] == "greedy":
            stage = next(stage for stage in STAGES if stage.replace("_", "") == row["stage"])
            outcomes[stage][row["ticket_id"]] = row["resolved"]
    return outcomes


def paired(before: dict[str, float], after: dict[str, float]) -> np.ndarray:
    """Differences by ticket; every ticket must have been played in both stages."""
    if before.keys() != after.keys():
        raise LightningError("the stages of a run did not play the same tickets; run it again")
    return np.array([after[ticket] - before[ticket] for ticket in sorted(before)])


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): 95% bootstrap over tickets."""
    n = len(differences)
    draws = np.random.default_rng(0).integers(0, n, size=(BOOTSTRAP_DRAWS, n))
    low, high = np.quantile(differences[draws].mean(1), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def markdown(runs: list[dict[str, Any]], controls: list[dict[str, Any]], commit: str, note: str | None) -> str:
    """RESULTS.md."""
    lines = [
        "# Support desk: results",
        "",
        f"Measured on {datetime.date.today().isoformat()} at {commit} with `make demo-results`: every run with "
        "these settings is here. Share of 512 test tickets resolved (judged from the store) at temperature 0, with its 95% Wilson "
        "interval; at temperature 1 behind it. `after …` is what `policies/current` named after that stage's gate. The control "
        "(outcomes of training rollouts dealt out anew among them, evaluation untouched) starts from seed 0's base.",
        *(("", note) if note else ()),
        "",
        "| run | before | after offline | after online | seconds | CPU seconds |",
        "|---|---|---|---|---|---|",
        *(_row(f"seed {run['seed']}", run) for run in runs),
        *(_row(f"seed {run['seed']}, control", run) for run in controls),
        "",
        f"A scripted expert resolves {runs[0]['ceiling']:.0%}, a random action {runs[0]['floor']:.0%}." if runs else "",
        "",
    ]
    if runs:
        lines += _differences(runs) + _causes(runs)
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, run: dict[str, Any]) -> str:
    cells = [
        f"{run[s]['greedy']:.1%} ({run[s]['low']:.1%} – {run[s]['high']:.1%}), {run[s]['sampled']:.1%}" for s in STAGES
    ]
    spent = f"{sum(run['seconds'].values()):.0f} | {sum(run['cpu_seconds'].values()):.0f}"
    return f"| {name} | " + " | ".join(cells) + f" | {spent} |"


def _differences(runs: list[dict[str, Any]]) -> list[str]:
    outcomes = [greedy_outcomes(run["folder"] / "lake") for run in runs]
    lines = [
        f"Over the {len(runs)} seeds together, paired by ticket, with 95% bootstrap intervals:",
        "",
        "| difference | mean | 95% interval | n |",
        "|---|---|---|---|",
    ]
    for first, second in (("before", "after_offline"), ("after_offline", "after_online"), ("before", "after_online")):
        differences = np.concatenate([paired(of_run[first], of_run[second]) for of_run in outcomes])
        mean, low, high = interval(differences)
        name = f"{second.replace('_', ' ')} − {first.replace('_', ' ')}"
        lines.append(f"| {name} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {len(differences)} |")
    return [*lines, ""]


def _causes(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "By cause of failure, the seeds together (temperature 0, 95% Wilson interval):",
        "",
        "| cause | n | before | after offline | after online |",
        "|---|---|---|---|---|",
    ]
    for cause in CAUSES:
        n = sum(run["before"]["causes"][cause]["n"] for run in runs)
        cells = []
        for stage in STAGES:
            resolved = sum(run[stage]["causes"][cause]["value"] * run[stage]["causes"][cause]["n"] for run in runs)
            low, high = wilson(resolved, n)
            cells.append(f"{resolved / n:.1%} ({low:.1%} – {high:.1%})")
        lines.append(f"| {cause.replace('_', ' ')} | {n} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
