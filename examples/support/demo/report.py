"""The demo's numbers, all of them read from the lake by SQL, and how they are shown: report.json, report.md, curve.png."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from otel_lightning.transforms.tables import open_tables, require_derived

SQL = Path(__file__).parent / "sql"
STAGES = ("before", "after_offline", "after_online")
Z95 = 1.96


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% Wilson interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    return centre - half, centre + half


def read_outcomes(lake: Path) -> list[dict[str, Any]]:
    """One row per ticket played for the report (outcomes.sql)."""
    return _rows(lake, "outcomes.sql")


def read_curve(lake: Path) -> list[dict[str, Any]]:
    """One row per online round (curve.sql)."""
    return _rows(lake, "curve.sql")


def build(lake: Path, tickets: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
    """report.json: the three stages with intervals, and what describes the run."""
    outcomes = read_outcomes(lake)
    traits = {ticket["task_id"]: ticket["ticket"] for ticket in tickets}
    report: dict[str, Any] = {}
    for stage in STAGES:
        of_stage = [row for row in outcomes if row["stage"] == stage.replace("_", "")]
        if of_stage:
            report[stage] = _stage(of_stage, traits)
    capture = _rows(lake, "capture.sql")[0]
    processes = _rows(lake, "lost_spans.sql")
    known = [row for row in processes if row["ended"] is not None]
    report |= {
        "episodes": capture["episodes"],
        "calls": capture["calls"],
        "spans": capture["spans"],
        "lost_spans": int(sum(row["ended"] - row["stored"] for row in known)),
        "processes": len(processes),
        "processes_unknown": len(processes) - len(known),
        "agent_side_share": _share(capture["agent_side"], capture["samples"]),
        "tools_tied_share": _share(capture["tools_tied"], capture["tools"]),
        "curve": read_curve(lake),
        "manifest": f"run={require_derived(lake).run:06d}",
        **extra,
    }
    return report


def _stage(rows: list[dict[str, Any]], traits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shares: dict[str, float] = {}
    for decoding in ("greedy", "sampled"):
        values = [row["resolved"] for row in rows if row["decoding"] == decoding]
        shares[decoding] = sum(values) / len(values) if values else float("nan")
    greedy = [row for row in rows if row["decoding"] == "greedy"]
    low, high = wilson(sum(row["resolved"] for row in greedy), len(greedy))

    def split(key: str) -> dict[str, dict[str, float]]:
        groups: dict[str, list[float]] = {}
        for row in greedy:
            groups.setdefault(traits[row["ticket_id"]][key], []).append(row["resolved"])
        return {name: {"value": sum(v) / len(v), "n": len(v)} for name, v in sorted(groups.items())}

    return {
        "value": shares["greedy"],
        "low": low,
        "high": high,
        "n": len(greedy),
        **shares,
        "policy": greedy[0]["policy_version"] if greedy else None,
        "causes": split("cause"),
        "phrases": split("phrases"),
    }


def markdown(report: dict[str, Any]) -> str:
    """report.md."""
    lines = [
        f"# Support desk, seed {report['seed']}"
        + (" (negative control: rewards permuted)" if report["control"] else ""),
        "",
        "Share of the test tickets resolved, judged from the store. `greedy` is temperature 0 with its 95% Wilson "
        "interval, `sampled` temperature 1. Each stage is what `policies/current` names after that stage's gate.",
        "",
        "| stage | policy | greedy | 95% interval | sampled | n |",
        "|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        if stage in report:
            s = report[stage]
            lines.append(
                f"| {stage.replace('_', ' ')} | {s['policy']} | {s['greedy']:.1%} | {s['low']:.1%} – {s['high']:.1%} "
                f"| {s['sampled']:.1%} | {s['n']} |"
            )
    lines += [
        f"| ceiling (scripted expert) | | {report['ceiling']:.1%} | | | |",
        f"| floor (random action) | | {report['floor']:.1%} | | | |",
        "",
        *_table("By cause of failure (greedy)", report, "causes"),
        *_table("By phrases (greedy)", report, "phrases"),
        "## Gates",
        "",
        *(
            f"* {gate['stage']}: {gate['verdict']} {gate['candidate']}: {gate['reason']} (n {gate['n']})"
            for gate in report["gates"]
        ),
        "",
        "## What it took",
        "",
        "| stage | seconds | CPU seconds |",
        "|---|---|---|",
        *(
            f"| {name} | {report['seconds'][name]:.0f} | {report['cpu_seconds'][name]:.0f} |"
            for name in report["seconds"]
        ),
        f"| all | {sum(report['seconds'].values()):.0f} | {sum(report['cpu_seconds'].values()):.0f} |",
        "",
        f"Budget: {report['budget_seconds']} s on two idle cores. "
        f"{report['episodes']} episodes, {report['calls']} calls, {report['spans']} spans, {report['lost_spans']} lost "
        f"({report['processes_unknown']} of {report['processes']} bot processes did not say).",
        f"Agent-side samples: {report['agent_side_share']:.2%}; tools tied to their call: {report['tools_tied_share']:.2%}.",
        "",
        "## Noise of the base",
        "",
        "| issue | fact | old playbook | right share of transcripts | cause |",
        "|---|---|---|---|---|",
        *(
            f"| {n['issue']} | {n['fact']} | {n['old_action']} | {n['right_share']:.0%} | {n['cause']} |"
            for n in report["noise"]["outdated"]
        ),
        "",
        f"Shares of tickets: {json.dumps(report['noise']['cause_shares'])}; random slips elsewhere: {report['noise']['slip_share']:.0%}.",
        "",
        "![curve](curve.png)",
        "",
    ]
    return "\n".join(lines)


def _table(title: str, report: dict[str, Any], key: str) -> list[str]:
    stages = [stage for stage in STAGES if stage in report]
    names = sorted({name for stage in stages for name in report[stage][key]})
    lines = [
        f"## {title}",
        "",
        "| | n | " + " | ".join(s.replace("_", " ") for s in stages) + " |",
        "|---|---|" + "---|" * len(stages),
    ]
    for name in names:
        n = report[stages[0]][key].get(name, {}).get("n", 0)
        values = " | ".join(f"{report[s][key][name]['value']:.1%}" if name in report[s][key] else "–" for s in stages)
        lines.append(f"| {name.replace('_', ' ')} | {n} | {values} |")
    return [*lines, ""]


def plot(report: dict[str, Any], path: Path) -> None:
    """curve.png: stages with intervals, the online rounds, and each cause of failure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = [stage for stage in STAGES if stage in report]
    labels = [stage.replace("_", "\n") for stage in stages]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), gridspec_kw={"width_ratios": [1, 1.5, 1.3]})
    values = [report[s]["greedy"] for s in stages]
    errors = [
        [report[s]["greedy"] - report[s]["low"] for s in stages],
        [report[s]["high"] - report[s]["greedy"] for s in stages],
    ]
    left.bar(labels, values, yerr=errors, capsize=5, color=["#9aa5b1", "#5b8def", "#1f9d72"][: len(stages)])
    for place, value in enumerate(values):
        left.text(place, 0.03, f"{value:.0%}", ha="center", color="white", fontweight="bold")
    left.axhline(report["ceiling"], ls=":", c="grey", lw=1)
    left.set(title=f"Tickets resolved (test, n={report[stages[0]]['n']})", ylim=(0, 1.02))
    rounds = report["curve"]
    for key, label, style in (
        ("fresh_outcome", "tickets met for the first time", {"marker": "o", "ms": 3, "c": "#1f9d72"}),
        ("outcome", "all, half of them failed before", {"lw": 1, "ls": ":", "c": "#1f9d72"}),
    ):
        middle.plot([r["round"] + 1 for r in rounds], [r[key] for r in rounds], label=label, **style)
    middle.set(title="Online rounds (training tickets, sampled)", xlabel="round", ylim=(0, 1.02))
    middle.legend(fontsize=8, loc="lower right")
    middle.grid(alpha=0.3)
    causes = [c for c in ("none", "common", "in_between", "rare") if c in report[stages[0]]["causes"]]
    width = 0.8 / len(stages)
    for index, stage in enumerate(stages):
        heights = [report[stage]["causes"].get(c, {"value": 0})["value"] for c in causes]
        right.bar([p + index * width for p in range(len(causes))], heights, width, label=stage.replace("_", " "),
                  color=["#9aa5b1", "#5b8def", "#1f9d72"][index])  # fmt: skip
    right.set_xticks(
        [p + width * (len(stages) - 1) / 2 for p in range(len(causes))], [c.replace("_", " ") for c in causes]
    )
    right.set(title="By cause of failure (greedy)", ylim=(0, 1.02))
    right.legend(fontsize=8, loc="lower left")
    figure.suptitle(
        "Support desk: an agent that learns from its own traces"
        + ("  (control: rewards permuted)" if report["control"] else "")
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _rows(lake: Path, name: str) -> list[dict[str, Any]]:
    with open_tables(lake) as connection:
        result = connection.execute((SQL / name).read_text(encoding="utf-8"))
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
