"""The funnel in words: what became of every span, and the single most useful next step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_lightning.app.printable import printable
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.transforms.derived import Manifest, arrived_since
from otel_lightning.transforms.tables import open_tables

STAGE_WORDS = {
    "calls": "LLM calls",
    "trainable": "of them trainable",
    "member": "of them in a whole, chosen rollout",
    "rewarded": "of them rewarded",
    "credited": "of them with an advantage other than 0",
    "train_split": "of the rewarded for training",
}
SIGNAL = ("signal", "severity", "subject", "value", "threshold", "detail")
WARN_SHARE = 0.2  # a cause that takes more than this share of a stage is worth a word


@dataclass(frozen=True)
class Stage:
    """One stage of the funnel: what remained, and what fell out by reason (calls)."""

    name: str
    calls: int
    rollouts: int
    tokens: int
    lost: dict[str, int]


def explain(lake: Path, *, as_json: bool = False) -> str:
    """The funnel of `lake` as text (or one JSON document), ending with the next step."""
    home = Lake.existing(lake)
    manifest = Manifest.read(home)
    files = live_files(home, "spans")
    if manifest is None:
        next_step = (
            f"run: lightning-transform run --lake {lake}"
            if files
            else "no span has arrived yet: point OTEL_EXPORTER_OTLP_ENDPOINT of an agent at lightning-collect"
        )
        return json.dumps({"next": next_step}) if as_json else f"nothing is derived yet\nnext: {next_step}"
    with open_tables(lake) as connection:
        rows = connection.execute(
            "select stage, reason, spans, calls, rollouts, tokens from funnel order by place"
        ).fetchall()
        sources = dict(connection.execute("select token_source, count(*) from calls group by 1 order by 1").fetchall())
        keyed = dict(connection.execute("select keyed_by, count(*) from rollouts group by 1 order by 1").fetchall())
        signals = connection.execute(
            "select signal, severity, subject, value, threshold, detail from signals order by severity, signal, subject"
        ).fetchall()
        unclaimed = len(set(_relative(home, arrived_since(files, manifest.config.get("since")))) - set(manifest.inputs))
    stages = _stages(rows)
    spans = next((row[2] for row in rows if row[0] == "spans"), 0)
    rewards = {row[1]: row[3] for row in rows if row[0] == "rewards"}
    next_step = _next_step(lake, manifest, stages, rewards, sources, unclaimed)
    if as_json:
        document: dict[str, Any] = {
            "run": manifest.run,
            "spans": spans,
            "stages": [stage.__dict__ for stage in stages.values()],
            "unresolved_rewards": rewards,
            "signals": [dict(zip(SIGNAL, row, strict=True)) for row in signals],
            "token_source": sources,
            "keyed_by": keyed,
            "new_files": unclaimed,
            "next": next_step,
        }
        return json.dumps(document, default=float)
    lines = _text(manifest, int(spans or 0), stages, rewards, sources, keyed, unclaimed)
    lines += [f"{name} ({severity}): {subject}: {detail}" for name, severity, subject, _, _, detail in signals]
    return printable("\n".join([*lines, f"next: {next_step}"]))


def _stages(rows: list[tuple[Any, ...]]) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for name in STAGE_WORDS:
        of_stage = [row for row in rows if row[0] == name]
        kept = next((row for row in of_stage if row[1] is None), None)
        lost = {row[1]: row[3] for row in of_stage if row[1] is not None}
        stages[name] = Stage(
            name, kept[3] if kept else 0, kept[4] if kept else 0, int(kept[5] or 0) if kept else 0, lost
        )
    return stages


def _text(
    manifest: Manifest,
    spans: int,
    stages: dict[str, Stage],
    rewards: dict[str, int],
    sources: dict[str, int],
    keyed: dict[str, int],
    unclaimed: int,
) -> list[str]:
    trained = ", ".join(f"{name} × {weight:g}" for name, weight in manifest.reward["train"].items())
    credit = manifest.config["credit"]
    lines = [
        f"run {manifest.run}; reward: {trained}; credit: {credit['method']}, baseline {credit['baseline']}",
        f"{spans:>9} spans in rollouts",
    ]
    for stage in stages.values():
        lines.append(f"{stage.calls:>9} {STAGE_WORDS[stage.name]} ({stage.rollouts} rollouts, {stage.tokens} tokens)")
        for reason, count in sorted(stage.lost.items(), key=lambda item: -item[1]):
            lines.append(f"{'':>9}   − {count} {reason}")
    if rewards:
        lines.append("rewards that count for nothing: " + ", ".join(f"{n} {reason}" for reason, n in rewards.items()))
    lines.append("rollouts keyed by: " + (", ".join(f"{reason} {n}" for reason, n in keyed.items()) or "none"))
    lines.append("tokens of calls from: " + (", ".join(f"{source} {n}" for source, n in sources.items()) or "none"))
    if unclaimed:
        lines.append(f"{unclaimed} files arrived since this run")
    return lines


def _next_step(
    lake: Path,
    manifest: Manifest,
    stages: dict[str, Stage],
    rewards: dict[str, int],
    sources: dict[str, int],
    unclaimed: int,
) -> str:
    calls, trainable, member, rewarded = (stages[name] for name in ("calls", "trainable", "member", "rewarded"))
    everything = calls.calls + sum(calls.lost.values())
    if unclaimed:
        return f"run: lightning-transform run --lake {lake}"
    if everything == 0:
        return (
            "spans arrived but none is an LLM call: instrument the model library (openinference or opentelemetry genai)"
        )
    for stage in (trainable, member):
        if advice := _advice(stage):
            return advice
    if rewarded.calls == 0:
        if rewards.get("target_not_found"):
            return (
                "rewards arrived but their targets are not in the lake: check the ids that lightning-feedback was given"
            )
        names = ", ".join(manifest.reward["train"])
        return f"no call has a reward named {names}: send one with lightning-feedback, or name yours in rewards.train"
    if advice := _advice(stages["train_split"]):
        return advice
    if sources.get("engine", 0) + sources.get("captured", 0) == 0:
        return (
            "train with algorithm sft (text is re-tokenised); for grpo route the model's calls through lightning-serve"
        )
    return "train: accelerate launch train.py --config configs/support_offline.yaml (copy it and name this lake)"


def _advice(stage: Stage) -> str | None:
    """What to do when one cause takes most of a stage."""
    total = stage.calls + sum(stage.lost.values())
    reason, lost = max(stage.lost.items(), key=lambda item: item[1], default=("", 0))
    if not lost or lost < WARN_SHARE * total or (stage.calls and lost <= stage.calls):
        return None
    return ADVICE.get(
        reason, f"{lost} of {total} calls are lost to '{reason}': look at one with lightning-transform show"
    )


ADVICE = {
    "incomplete": "most rollouts are not over yet: wait until they have been quiet for settle_s, then run again",
    "dropped_attributes": "spans lost attributes on the way: set OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000 in the agent",
    "no_prompt": "spans carry no messages: switch content capture on in the agent's instrumentation",
    "no_response": "spans carry no answers: switch content capture on in the agent's instrumentation",
    "error": "most calls failed: look at one with lightning-transform show TRACE_ID",
    "ambiguous_rollout": "traces belong to several named rollouts: give each conversation one lightning.rollout.id",
    "truncated": "most answers were cut at their token limit: raise the agent's max_tokens, or set policy_for.truncated to keep",
    "eval": "most rewarded rollouts are kept for evaluation: see split.eval_percent",
    "where": "most rollouts are left out by your own `where`: see the configuration of the last run",
    "other_attempt": "rollouts are attempted several times: set rollouts.attempts to all to use every attempt",
}


def _relative(lake: Lake, paths: list[Path]) -> list[str]:
    return [path.relative_to(lake.root).as_posix() for path in paths]
