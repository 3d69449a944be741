"""What a durable, queryable OTLP sink costs: lightning-collect beside four others, on the same requests.

    make bench-collect
    python benchmarks/collect.py [--rounds 5] [--seconds 4] [--sides rotel,agentlightning,mlflow,phoenix]
                                 [--redacting collect.yaml] [--write benchmarks/results/collect.md]

All sides get the same pre-serialised requests (100 spans each, fresh ids) over four kept-alive HTTP connections, each
from a process of its own, in turns; while one is measured the others are stopped. Ours answers after fsync, and its
round ends when all of it is Parquet (/flush is part of the time). CPU seconds are those of the server's whole process
tree. What a side answered is not what it has: Phoenix is judged by the rows in its database, and at the end every side
gets 6,000 spans, SIGKILL right after the last answer, and a count of what is on its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from peers import payloads, sides
from peers.payloads import SPANS_PER_REQUEST, Body
from peers.sides import PROTOBUF, Server

CONNECTIONS = 4
KILL_REQUESTS = 60
MAX_RESETS = 50
OURS, FALLBACK, REDACTING = "lightning-collect", "lightning-collect, Python only", "lightning-collect, redacting"
START_S = 0.3  # from when connections are made to when they begin
BLOCK = 1 << 18  # numbers for the requests of one connection in one round, more than it sends
BLOCKS = itertools.count(1)
NUMBERS = itertools.count(1)  # of what is sent one by one: below the first block


@dataclass
class Round:
    """One measured round of one side."""

    spans: int
    stored: int | None
    refused: int
    wall_s: float
    cpu_s: float
    latencies_ms: list[float]


@dataclass
class Side:
    """A side with what was measured of it."""

    name: str
    server: Server
    bodies: list[Body]
    rounds: list[Round] = field(default_factory=list)
    memory_mib: float = 0.0

    def per_cpu_s(self) -> list[float]:
        return sorted((r.spans if r.stored is None else r.stored) / r.cpu_s for r in self.rounds)

    def wall(self) -> float:
        return statistics.median((r.spans if r.stored is None else r.stored) / r.wall_s for r in self.rounds)

    def percentile(self, share: float) -> float:
        found = sorted(ms for r in self.rounds for ms in r.latencies_ms)
        return found[min(len(found) - 1, int(len(found) * share))] if found else float("nan")


@dataclass
class Sent:
    """What one connection did."""

    spans: int = 0
    refused: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    failure: str = ""


def send(
    server: Server, bodies: list[Body], worker: int, first: int, began: float, seconds: float, pause: float
) -> Sent:
    """Be one connection: a request every `pause` seconds from `began` on, or one after the other when that is 0."""
    sent = Sent()
    own = bodies[worker::CONNECTIONS]
    connection = server.connect()
    time.sleep(max(0.0, began - time.monotonic()))
    for turn in itertools.count():
        due = began + (turn + worker / CONNECTIONS) * pause
        while (now := time.monotonic()) < due and now - began < seconds:
            time.sleep(min(due - now, 0.01))
        if time.monotonic() - began >= seconds:
            break
        body = own[turn % len(own)].fresh(first + turn)
        # At a given rate an answer is late from when it was due: waiting behind a slow one counts.
        at = due if pause else time.monotonic()
        try:
            connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF, **server.headers})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            # A peer may close a connection that it was stopped on: it counts as refused, and a new one is made.
            if server.is_ours or sent.refused > MAX_RESETS:
                sent.failure = f"{server.name}: {type(error).__name__}"
                break
            sent.refused += 1
            connection.close()
            connection = server.connect()
            continue
        if response.status == 200:
            sent.latencies_ms.append((time.monotonic() - at) * 1000)
            sent.spans += SPANS_PER_REQUEST
        elif response.status == 503:
            sent.refused += 1
            time.sleep(0.05)
        else:
            sent.failure = f"{server.name}: answered {response.status}"
            break
    connection.close()
    return sent


def drive(server: Server, bodies: list[Body], seconds: float, rate: float | None = None) -> Round:
    """Send for `seconds`, as fast as answers come or at `rate` spans a second; then flush what is ours.

    Each connection is a process of its own: threads would wait for each other's interpreter, and that would be
    measured as the server's latency.
    """
    pause = CONNECTIONS * SPANS_PER_REQUEST / rate if rate else 0.0
    stored_before = server.stored() if "Phoenix" in server.name else None
    forks = multiprocessing.get_context("fork")  # what was prepared is there at once
    began = time.monotonic() + START_S
    results: multiprocessing.SimpleQueue[Sent] = forks.SimpleQueue()

    def run(worker: int, first: int) -> None:
        try:
            results.put(send(server, bodies, worker, first, began, seconds, pause))
        except Exception as error:  # whoever waits for it must hear of it
            results.put(Sent(failure=f"{server.name}: {type(error).__name__}: {error}"))

    processes = [
        forks.Process(target=run, args=(worker, next(BLOCKS) * BLOCK), daemon=True) for worker in range(CONNECTIONS)
    ]
    for process in processes:
        process.start()
    time.sleep(max(0.0, began - time.monotonic()))
    before_cpu = server.cpu_s()
    sent = [results.get() for _ in processes]
    for process in processes:
        process.join()
    failures = [one.failure for one in sent if one.failure]
    if failures:
        raise SystemExit(f"collect: {failures[0]}; nothing was measured")
    if server.is_ours and server.post("/flush", timeout=120)[0] != 200:
        raise SystemExit("collect: flush failed; nothing was measured")
    wall_s = time.monotonic() - began
    stored = None if stored_before is None else (server.stored() or 0) - stored_before
    return Round(
        sum(one.spans for one in sent),
        stored,
        sum(one.refused for one in sent),
        wall_s,
        server.cpu_s() - before_cpu,
        [ms for one in sent for ms in one.latencies_ms],
    )


def warm_up(side: Side, seconds: float) -> None:
    """Imports, migrations, first requests: until the first answer of 200, then a while more."""
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if side.server.post("/v1/traces", bytes(side.bodies[0].fresh(next(NUMBERS))))[0] == 200:
                break
        if time.monotonic() > until:
            raise sides.Unavailable(f"{side.name} accepted nothing in two minutes")
        time.sleep(0.5)
    drive(side.server, side.bodies, seconds)


def fdatasync_p50_ms(folder: Path, size: int) -> float:
    """What one group commit of `size` bytes costs on this disk at the moment."""
    found = []
    with open(folder / "sync.bin", "wb", buffering=0) as file:
        for _ in range(60):
            file.write(bytes(size))
            at = time.monotonic()
            os.fdatasync(file.fileno())
            found.append((time.monotonic() - at) * 1000)
    return statistics.median(found)


def after_kill(name: str, start: Callable[[Path], sides.Context], folder: Path, payload: str) -> tuple[int, int, float]:
    """(acknowledged, on disk, bytes a span): KILL_REQUESTS requests, then SIGKILL right after the last answer."""
    with start(folder) as server:
        side = Side(name, server, payloads.requests(payload, server.resource, seed=1))
        acknowledged = 0
        until = time.monotonic() + 120
        while acknowledged < KILL_REQUESTS and time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                body = bytes(side.bodies[acknowledged].fresh(next(NUMBERS)))
                acknowledged += server.post("/v1/traces", body)[0] == 200
        server.kill()
        time.sleep(0.5)
    if server.is_ours:
        with start(folder) as server:  # what a user does: start it again
            server.post("/flush")
    size = sum(path.stat().st_size for path in folder.glob("lake/spans/*/*.parquet"))
    stored = server.stored() or 0
    return acknowledged * SPANS_PER_REQUEST, stored, size / stored if size else float("nan")


def measure(
    payload: str, chosen: dict[str, Callable[[Path], sides.Context]], arguments: argparse.Namespace
) -> list[str]:
    """Lines of Markdown: one payload, all sides."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-collect-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        running: list[Side] = []
        missing: list[str] = []
        resource: dict[str, str] = {}
        for number, (label, start) in enumerate(chosen.items()):
            try:
                server = stack.enter_context(start(folder / f"side{number}"))
            except sides.Unavailable as error:
                missing.append(str(error))
                continue
            resource |= server.resource
            running.append(Side(label if server.is_ours else server.name, server, []))
            server.pause()
        for side in running:  # the same bytes for all: what one of them needs is in every request
            side.bodies = payloads.requests(payload, resource)
        for side in list(running):
            side.server.go_on()
            try:
                warm_up(side, 2.0)
            except sides.Unavailable as error:
                missing.append(str(error))
                running.remove(side)
            side.server.pause()
        for _ in range(arguments.rounds):
            for side in running:
                side.server.go_on()
                side.rounds.append(drive(side.server, side.bodies, arguments.seconds))
                side.memory_mib = max(side.memory_mib, side.server.memory_mib())
                side.server.pause()
        ours = running[0]
        ours.server.go_on()
        size = sum(map(len, ours.bodies)) // len(ours.bodies)
        rate = 0.7 * ours.wall()
        drive(ours.server, ours.bodies, 1.0, rate)  # it was stopped for long: what had left memory comes back
        paced = Side("70%", ours.server, ours.bodies, [drive(ours.server, ours.bodies, 2 * arguments.seconds, rate)])
        sync_ms = fdatasync_p50_ms(folder, size)
        expected = sum(r.spans for side in running if side.server.is_ours for r in side.rounds)
        stored = {side.name: side.server.stored() for side in running if side.server.is_ours}
        for side in running:
            side.server.go_on()
        if not all(
            found and found >= sum(r.spans for r in side.rounds)
            for side in running
            for found in [stored.get(side.name, 1 << 60)]
        ):
            raise SystemExit(f"collect: {expected} spans were acknowledged, {stored} are stored")

        lines += [
            f"### {payload}",
            "",
            f"{size / SPANS_PER_REQUEST / 1000:.1f} KB a span, {SPANS_PER_REQUEST} spans a request, {CONNECTIONS} connections, {arguments.rounds} rounds of {arguments.seconds:g} s.",
            "",
        ]
        lines += [
            "| | spans per server-CPU-second, median (range) | spans/s | p50 / p99 ms | memory MiB | refused |",
            "|---|---|---|---|---|---|",
        ]
        for side in running:
            per_cpu = side.per_cpu_s()
            what = " (stored)" if side.rounds[0].stored is not None else ""
            lines.append(
                f"| {side.name} | {statistics.median(per_cpu):,.0f} ({per_cpu[0]:,.0f} to {per_cpu[-1]:,.0f}){what} | {side.wall():,.0f}{what} "
                f"| {side.percentile(0.5):.1f} / {side.percentile(0.99):.1f} | {side.memory_mib:,.0f} | {sum(r.refused for r in side.rounds)} |"
            )
        lines += ["", *(f"Not measured: {text}" for text in missing)]
        for side in running[1:]:
            if side.rounds[0].stored is not None:
                ratio = (
                    f"{ours.wall() / side.wall():,.0f}× in stored spans/s"
                    if side.wall()
                    else "nothing stored in the time"
                )
            else:
                ratio = f"{statistics.median(ours.per_cpu_s()) / statistics.median(side.per_cpu_s()):,.2f}× per server-CPU-second"
            lines.append(f"- {OURS} against {side.name}: {ratio}")
        lines.append(
            f"- at 70% load ({rate:,.0f} spans/s asked): p50 {paced.percentile(0.5):.1f} ms, p99 {paced.percentile(0.99):.1f} ms; "
            f"fdatasync of {size >> 10} KiB here p50 {sync_ms:.1f} ms, so the goal is under {max(35, 8 * sync_ms):.0f} ms"
        )
    return [*lines, ""]


def main() -> None:
    """Measure, print, and write the table if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round of one side")
    parser.add_argument("--payloads", default="mixed,small")
    parser.add_argument("--sides", default=",".join(sides.PEERS), help="others to compare with; empty for none")
    parser.add_argument("--redacting", type=Path, help="collect.yaml with rules: a further side of ours")
    parser.add_argument("--write", type=Path, help="Markdown file for the result")
    arguments = parser.parse_args()

    chosen: dict[str, Callable[[Path], sides.Context]] = {
        OURS: partial(sides.ours, name=OURS),
        FALLBACK: partial(sides.ours, name=FALLBACK, decoder="python"),
    }
    if arguments.redacting:
        chosen[REDACTING] = partial(sides.ours, name=REDACTING, config=arguments.redacting)
    chosen |= {name: sides.PEERS[name] for name in filter(None, arguments.sides.split(","))}

    day = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    command = " ".join(["python", "benchmarks/collect.py", *sys.argv[1:]])
    load = os.getloadavg()[0]
    lines = [
        f"## {day}",
        "",
        f"`{command}`: {os.cpu_count()} CPUs ({_cpu()}), Python {platform.python_version()}, load average {load:.1f} before.",
        "",
    ]
    for payload in arguments.payloads.split(","):
        lines += measure(payload, chosen, arguments)
    lines += [
        "### On disk after SIGKILL right after the last answer (mixed)",
        "",
        "| | acknowledged | on disk | bytes a span |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="bench-collect-") as folder:
        for number, (label, start) in enumerate(chosen.items()):
            try:
                acknowledged, stored, size = after_kill(label, start, Path(folder) / f"kill{number}", "mixed")
            except sides.Unavailable as error:
                lines.append(f"| {label} | not measured: {error} | | |")
                continue
            lines.append(f"| {label} | {acknowledged:,} | {stored:,} | {'' if size != size else f'{size:.0f}'} |")
    lines += ["", f"Load average {os.getloadavg()[0]:.1f} after."]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text)


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


if __name__ == "__main__":
    main()
