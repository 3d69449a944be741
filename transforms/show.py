"""One trace as a tree in the terminal, each call with what it said, its rewards and its credit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import printable
from otel_lightning.transforms.tables import open_tables, require_derived

TEXT_CHARS = 100
# Of spans beside one another that have no call below, so many are shown; a retriever may leave thousands.
SIBLINGS = 12
# Deeper than this the indentation says nothing any more.
DEPTH = 40


@dataclass
class Node:
    """A span with what is said below it."""

    label: str
    lines: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)


def show_trace(lake: Path, given: str) -> None:
    """Print the tree of a trace (or of every trace of a rollout); LightningError when nothing has that id."""
    require_derived(lake)
    with open_tables(lake) as connection:
        for trace_id in _traces(connection, given):
            for line in trace_lines(connection, trace_id):
                print(printable(line))


def trace_lines(connection: duckdb.DuckDBPyConnection, trace_id: str) -> Iterator[str]:
    """The lines of one trace: its rollouts, the rewards of the whole, its spans."""
    yield f"trace {trace_id}"
    rollouts = connection.execute(
        """
        select rollouts.rollout_id, keyed_by, rollouts.complete, status, split, rollouts.task_id, flags, worth.reward, worth.dropped
        from rollouts
        left join (
            -- One of them for each agent under method agent; the rollout's own reward is the same in all.
            select rollout_id, max(reward) as reward, max(dropped) as dropped from returns group by rollout_id
        ) as worth on worth.rollout_id = rollouts.rollout_id
        where list_contains(trace_ids, $trace)
        order by rollouts.rollout_id
        """,
        {"trace": trace_id},
    ).fetchall()
    for rollout_id, keyed_by, complete, status, split, task_id, flags, reward, dropped in rollouts:
        state = "complete" if complete else "not over yet"
        said = [f"keyed by {keyed_by}", state, status, split, f"task {_short(task_id, 16)}", *(flags or [])]
        worth = "no reward" if reward is None else f"reward {float(reward):g}"
        yield f"  rollout {rollout_id}: {', '.join(said)}; {worth}" + (f"; dropped: {dropped}" if dropped else "")
    for line in _rewards(connection, trace_id).get(None, []):
        yield f"  {line}"
    nodes, roots, circles = _nodes(connection, trace_id)
    yield from _print(nodes, roots)
    if circles:
        yield "  in a circle, each the other's ancestor:"
        yield from _print(nodes, circles)


def _print(nodes: dict[str, Node], roots: list[str]) -> Iterator[str]:
    """Each span once, depth first; an explicit stack, since traces may be deeper than Python's recursion limit."""
    worth_showing = _with_calls_below(nodes)
    done: set[str] = set()
    stack: list[tuple[str | None, int, str, bool]] = [(root, 0, "", root == roots[-1]) for root in reversed(roots)]
    while stack:
        span_id, depth, before, last = stack.pop()
        turn, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if span_id is None or span_id in done:
            continue
        done.add(span_id)
        node = nodes[span_id]
        deep = f"[depth {depth}] " if depth >= DEPTH else ""
        yield f"{before}{turn}{deep}{node.label}"
        inside = before if depth >= DEPTH else before + below
        children = [child for child in node.children if child not in done]
        plain = [child for child in children if child not in worth_showing]
        hidden = set(plain[SIBLINGS:]) if len(plain) > SIBLINGS + 1 else set()
        shown = [child for child in children if child not in hidden]
        for line in node.lines:
            yield f"{inside}{'│  ' if shown else '   '}{line}"
        if hidden:
            yield f"{inside}{'│  ' if shown else '   '}… and {len(hidden)} more spans without a call"
        stack += [(child, depth + 1, inside, child == shown[-1]) for child in reversed(shown)]


def _with_calls_below(nodes: dict[str, Node]) -> set[str]:
    """Spans that have something to say, and what is above them."""
    parents = {child: parent for parent, node in nodes.items() for child in node.children}
    found: set[str] = set()
    for span_id, node in nodes.items():
        here: str | None = span_id if node.lines else None
        while here is not None and here not in found:
            found.add(here)
            here = parents.get(here)
    return found


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


def _nodes(connection: duckdb.DuckDBPyConnection, trace_id: str) -> tuple[dict[str, Node], list[str], list[str]]:
    """Every span of the trace, the roots among them by start, and where to enter what no root leads to."""
    spans = connection.execute(
        "select distinct on (span_id) span_id, parent_span_id, name, status_code = 2, "
        "end_unix_nano::hugeint - start_unix_nano::hugeint, start_unix_nano from spans where trace_id = $trace "
        "order by span_id, end_unix_nano desc, start_unix_nano",
        {"trace": trace_id},
    ).fetchall()
    calls, rewards, asked = _calls(connection, trace_id), _rewards(connection, trace_id), _asked(connection, trace_id)
    merged = {member: call for call, row in calls.items() for member in row[0]["merged_span_ids"]}
    nodes: dict[str, Node] = {}
    for span_id, _, name, error, nanos, start in spans:
        took = (
            f"{nanos / 1e6:.0f} ms"
            if start and nanos >= 0
            else "no start or end time"
            if nanos < 0 or not start
            else ""
        )
        nodes[span_id] = Node(f"{name}  {took}" + ("  ERROR" if error else ""))
        if span_id in calls:
            nodes[span_id].lines += _describe(calls[span_id])
        elif (call := merged.get(f"{trace_id}:{span_id}")) is not None:
            nodes[span_id].label += f"  (the same call as {call})"
        if span_id in asked:
            nodes[span_id].lines.append(asked[span_id])
        nodes[span_id].lines += rewards.get(span_id, [])
    roots = []
    for span_id, parent, *_ in sorted(spans, key=lambda row: (row[5], row[0])):
        if parent in nodes and parent != span_id:
            nodes[parent].children.append(span_id)
        elif parent != span_id:
            nodes[span_id].label += "" if parent is None else "  (its parent is not here)"
            roots.append(span_id)
    reached, stack = set[str](), list(roots)
    while stack:
        span_id = stack.pop()
        reached.add(span_id)
        stack += nodes[span_id].children
    circles: list[str] = []
    for span_id in (row[0] for row in sorted(spans, key=lambda row: (row[5], row[0]))):
        if span_id not in reached:
            circles.append(span_id)
            stack = [span_id]
            while stack:
                inner = stack.pop()
                if inner not in reached:
                    reached.add(inner)
                    stack += nodes[inner].children
    return nodes, roots, circles


def _calls(connection: duckdb.DuckDBPyConnection, trace_id: str) -> dict[str, list[dict[str, Any]]]:
    """The calls of a trace by span, a row for each of their answers."""
    cursor = connection.execute(
        """
        select calls.span_id, calls.step, calls.model, calls.agent, calls.policy_version, calls.response_messages,
            calls.token_source, calls.trainable, calls.untrainable_reason, calls.merged_span_ids, calls.flags,
            credits.choice, credits.reward, credits.advantage, credits."use"
        from calls
        left join credits using (trace_id, span_id)
        where calls.trace_id = $trace
        order by calls.span_id, credits.choice
        """,
        {"trace": trace_id},
    )
    names = [column[0] for column in cursor.description or []]
    found: dict[str, list[dict[str, Any]]] = {}
    for values in cursor.fetchall():
        row = dict(zip(names, values, strict=True))
        found.setdefault(row["span_id"], []).append(row)
    return found


def _describe(rows: list[dict[str, Any]]) -> list[str]:
    call = rows[0]
    place = "outside any rollout" if call["step"] is None else f"step {call['step']}"
    said = [
        f"call, {place}",
        call["model"] or "unknown model",
        call["agent"] and f"agent {call['agent']}",
        *(call["flags"] or []),
    ]
    said.append(call["policy_version"] and f"policy {call['policy_version']}")
    lines = [", ".join(part for part in said if part)]
    credited = {row["choice"]: row for row in rows if row["choice"] is not None}
    messages = json.loads(call["response_messages"] or "[]")
    for choice, message in enumerate(messages):
        spoken = message.get("content") or ""
        asked = [f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or []]
        lines.append("→ " + _short(" ".join([str(spoken), *asked]).strip()))
        if call["trainable"] and len(messages) > 1:
            lines.append(f"  {_credit(credited.get(choice))}")
    if not call["trainable"]:
        lines.append(f"not trainable: {call['untrainable_reason'] or 'truncated'}")
    elif len(messages) < 2:
        lines.append(f"{_credit(credited.get(0))}; tokens: {call['token_source']}")
    else:
        lines.append(f"tokens: {call['token_source']}")
    return lines


def _credit(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not credited: its rollout does not count"
    if row["reward"] is None:
        return "no reward"
    masked = ", masked" if row["use"] == "mask" else ""
    return f"credit {float(row['reward']):g}, advantage {row['advantage']:+.3f}{masked}"


def _asked(connection: duckdb.DuckDBPyConnection, trace_id: str) -> dict[str, str]:
    """What each tool was asked and answered."""
    rows = connection.execute(
        "select span_id, name, arguments, result, error, call_span_id from tools where trace_id = $trace order by span_id",
        {"trace": trace_id},
    ).fetchall()
    return {
        span_id: f"tool {_short(name or '', 40)}({_short(arguments or '', 50)}) → {'ERROR ' if error else ''}{_short(result or '', 50)}"
        + ("" if call else "; no call asked for it")
        for span_id, name, arguments, result, error, call in rows
    }


def _rewards(connection: duckdb.DuckDBPyConnection, trace_id: str) -> dict[str | None, list[str]]:
    """Rewards by the span that they stand on; under None those of the trace, its rollout or its session."""
    rows = connection.execute(
        """
        select
            case when target_kind in ('call', 'tool', 'span') then target_span_id end as span_id,
            name, value, label, source, target_kind, target_choice, superseded_by is not null, unresolved_reason
        from rewards
        where target_trace_id = $trace or (
            target_kind in ('rollout', 'session')
            and rollout_id in (select rollout_id from rollouts where list_contains(trace_ids, $trace))
        )
        order by emitted_unix_nano, reward_id
        """,
        {"trace": trace_id},
    ).fetchall()
    found: dict[str | None, list[str]] = {}
    for span_id, name, value, label, source, kind, choice, superseded, reason in rows:
        said = [
            f"on the {kind}" if kind else "",
            f"answer {choice}" if choice else "",
            f"from {source}" if source else "",
        ]
        said += ["superseded" if superseded else "", reason or ""]
        what = value if value is not None else label
        found.setdefault(span_id, []).append(f"reward {name} = {what} ({', '.join(part for part in said if part)})")
    return found


def _short(text: str, limit: int = TEXT_CHARS) -> str:
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
