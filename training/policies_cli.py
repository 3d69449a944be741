"""lightning-policy: which policies there are, which one is served, and moving that by hand, on record."""

from __future__ import annotations

import datetime
import getpass
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App

from otel_lightning.app.cli import run
from otel_lightning.app.errors import LightningError
from otel_lightning.store.lake import Lake
from otel_lightning.store.policies import Policies

app = App(name="lightning-policy", help="List, show, promote and roll back the policies of a lake.", version_flags=[])
DEFAULT_LAKE = Path("lake")


@app.command(name="list")
def list_policies(*, lake: Path = DEFAULT_LAKE) -> int:
    """List every policy, what it came from and what the gate said.

    Parameters
    ----------
    lake
        Folder of the lake.
    """
    policies = Policies(Lake.existing(lake).policies)
    versions = policies.versions()
    if not versions:
        raise LightningError(f"no policy is published in {lake} yet; train one with train.py")
    pointers = {name: policies.pointer(name) for name in ("current", "candidate")}
    for version in versions:
        policy = policies.get(version)
        marks = ", ".join(name for name, target in pointers.items() if target == version)
        made = datetime.datetime.fromtimestamp(policy.info["created_unix_nano"] / 1e9, datetime.UTC)
        verdict = policy.gate["verdict"] if policy.gate else ""
        algorithm = policy.info.get("algorithm") or ""
        print(f"{version}  {made:%Y-%m-%d %H:%M}  {algorithm:6}  {verdict:9}  {marks}".rstrip())
    return 0


@app.command
def show(version: str = "current", *, lake: Path = DEFAULT_LAKE) -> int:
    """Print what is known about a policy: its policy.json, its gate.json and its moves.

    Parameters
    ----------
    version
        A version, current or candidate.
    lake
        Folder of the lake.
    """
    policies = Policies(Lake.existing(lake).policies)
    policy = policies.get(version)
    moves = [move for move in policies.history() if policy.version in (move["from"], move["to"])]
    print(json.dumps({"policy": policy.info, "gate": policy.gate, "moves": moves}, indent=2, ensure_ascii=False))
    return 0


@app.command
def promote(version: str, *, why: str, lake: Path = DEFAULT_LAKE) -> int:
    """Make a policy the one that production gets, past the gate, with your name and reason on record.

    Parameters
    ----------
    version
        The version to promote, e.g. v0007, or candidate.
    why
        The reason, for the history.
    lake
        Folder of the lake.
    """
    policies = Policies(Lake.existing(lake).policies)
    policy = policies.get(version)
    policies.point("current", policy.version, who=getpass.getuser(), why=why)
    print(f"current is {policy.version}")
    return 0


@app.command
def rollback(*, why: str = "rolled back by hand", lake: Path = DEFAULT_LAKE) -> int:
    """Make the policy that was current before the present one current again.

    Parameters
    ----------
    why
        The reason, for the history.
    lake
        Folder of the lake.
    """
    policies = Policies(Lake.existing(lake).policies)
    now = policies.get("current").version
    before = next(
        (m["from"] for m in reversed(policies.history()) if m["pointer"] == "current" and m["to"] == now and m["from"]),
        None,
    )
    if before is None:
        raise LightningError(f"{now} is the first policy that was ever current; there is nothing to go back to")
    policies.point("current", before, who=getpass.getuser(), why=why)
    print(f"current is {before} again (was {now})")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
