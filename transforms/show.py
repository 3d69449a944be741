"""One trace as a tree in the terminal, each call with what it said, its rewards and its credit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import printable
from otel_lightning.transforms.tables import open_tables, require_derived

TEXT_CHARS = 100


def show_trace(lake: Path, given: str) -> None:
    """Print the tree of a trace (or of every trace of a rollout); LightningError when nothing has that id."""
    from rich.console import Console
    from rich.tree import Tree

    require_derived(lake)
    console = Console() if sys.stdout.isatty() else Console(width=160, no_color=True)
    with open_tables(lake) as connection:
        for trace_id in _traces(connection, given):
            rollout = connection.execute(
                "select rollout_id, keyed_by, complete, status, split, task_id from rollouts "
                "where list_contains(trace_ids, $trace)",
                {"trace": trace_id},
            ).fetchone()
            head = f"trace {trace_id}"
            if rollout:
                state = "complete" if rollout[2] else "incomplete"
                head += f"  rollout {rollout[0]} ({rollout[1]}, {state}, {rollout[3]}, {rollout[4]})"
            tree = Tree(_label(head), highlight=False)
            for reward in _rewards(connection, trace_id, None):
                tree.add(_label(reward), highlight=False)
            _grow(connection, tree, trace_id)
            console.print(tree, markup=False, soft_wrap=True)


def _traces(connection: duckdb.DuckDBPyConnection, given: str) -> list[str]:
    row = connection.execute("select trace_ids from rollouts where rollout_id = $id", {"id": given}).fetchone()
    if row and row[0]:
        return list(row[0])
    found = connection.execute(
        "select distinct trace_id from spans where starts_with(trace_id, $id) order by 1 limit 3", {"id": given.lower()}
    ).fetchall()
    if not found:
        raise LightningError(
            f"no trace or rollout '{given}' in the lake; list some with: lightning-transform sql "
            '"select rollout_id, trace_ids from rollouts limit 5"'
        )
    if len(found) > 1:
        raise LightningError(f"several traces begin with '{given}'; give more characters")
    return [found[0][0]]


def _grow(connection: duckdb.DuckDBPyConnection, tree: Any, trace_id: str) -> None:
    spans = connection.execute(
        "select distinct on (span_id) span_id, parent_span_id, name, status_code = 2, "
        "(end_unix_nano - start_unix_nano) / 1e6 from spans where trace_id = $trace "
        "order by span_id, end_unix_nano desc",
        {"trace": trace_id},
    ).fetchall()
    starts = dict(
        connection.execute(
            "select span_id, min(start_unix_nano) from spans where trace_id = $t group by 1", {"t": trace_id}
        ).fetchall()
    )
    calls = {row[0]: row for row in _calls(connection, trace_id)}
    known = {row[0] for row in spans}
    children: dict[str | None, list[tuple[Any, ...]]] = {}
    for row in sorted(spans, key=lambda row: (starts[row[0]], row[0])):
        children.setdefault(row[1] if row[1] in known else None, []).append(row)
    # An explicit stack: traces may be deeper than Python's recursion limit.
    stack = [(tree, None)]
    done: set[str] = set()
    while stack:
        branch, parent = stack.pop()
        for span_id, _, name, error, millis in children.get(parent, []):
            if span_id in done:
                continue
            done.add(span_id)
            label = f"{name}  {millis:.0f} ms" + ("  ERROR" if error else "")
            node = branch.add(_label(label), highlight=False)
            if span_id in calls:
                for line in _describe(calls[span_id]):
                    node.add(_label(line), highlight=False)
                for reward in _rewards(connection, trace_id, span_id):
                    node.add(_label(reward), highlight=False)
            stack.append((node, span_id))


def _calls(connection: duckdb.DuckDBPyConnection, trace_id: str) -> list[tuple[Any, ...]]:
    return connection.execute(
        """
        select calls.span_id, calls.step, calls.model, calls.policy_version, calls.response_messages, calls.token_source,
            calls.trainable, calls.untrainable_reason, credits.reward, credits.advantage
        from calls
        left join credits on credits.trace_id = calls.trace_id and credits.span_id = calls.span_id and credits.choice = 0
        where calls.trace_id = $trace
        """,
        {"trace": trace_id},
    ).fetchall()


def _describe(call: tuple[Any, ...]) -> list[str]:
    _, step, model, version, responses, source, trainable, reason, reward, advantage = call
    lines = [f"call, step {step}, {model or 'unknown model'}" + (f", policy {version}" if version else "")]
    for message in json.loads(responses or "[]"):
        spoken = message.get("content") or ""
        asked = [f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or []]
        lines.append("→ " + _short(" ".join([spoken, *asked]).strip()))
    if trainable:
        credit = "no reward" if reward is None else f"credit {float(reward):g}, advantage {advantage:+.3f}"
        lines.append(f"{credit}; tokens: {source}")
    else:
        lines.append(f"not trainable: {reason}")
    return lines


def _rewards(connection: duckdb.DuckDBPyConnection, trace_id: str, span_id: str | None) -> list[str]:
    if span_id is None:
        rows = connection.execute(
            "select name, value, label, source, superseded_by from rewards where target_kind in ('rollout', 'trace', 'session') "
            "and rollout_id in (select rollout_id from rollouts where list_contains(trace_ids, $trace)) order by emitted_unix_nano",
            {"trace": trace_id},
        ).fetchall()
    else:
        rows = connection.execute(
            "select name, value, label, source, superseded_by from rewards where target_trace_id = $trace "
            "and target_span_id = $span order by emitted_unix_nano",
            {"trace": trace_id, "span": span_id},
        ).fetchall()
    return [
        f"reward {name} = {value if value is not None else label} (from {source}{', superseded' if superseded else ''})"
        for name, value, label, source, superseded in rows
    ]


def _label(text: str) -> Any:
    from rich.text import Text

    return Text(printable(text))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT_CHARS else flat[: TEXT_CHARS - 1] + "…"
