"""lightning-transform: spans to credit-assigned samples, and why anything fell out on the way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from otel_lightning.app.cli import run as run_app

app = App(
    name="lightning-transform",
    help="Turn the spans of a lake into calls, rollouts, rewards, credit and training samples.",
    version_flags=[],
)
DEFAULT_LAKE = Path("lake")
Where = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


@app.command
def run(*, lake: Path = DEFAULT_LAKE, config: Path | None = None, since: str | None = None, where: Where = None) -> int:
    """Bring the derived tables up to date; only what was touched since the last run is recomputed.

    Parameters
    ----------
    lake
        Folder of the lake.
    config
        YAML with rewards, credit, rollouts, split (see transforms/README.md).
    since
        Read only what arrived from that day on: 2026-11-20, or 7d for the last seven days. Another day than last time
        begins anew.
    where
        SQL condition over the columns of rollouts; the others get no credit, e.g. "service_name = 'support'".
    """
    from otel_lightning.transforms.config import read_config
    from otel_lightning.transforms.run import run_transform

    print(run_transform(lake, read_config(config, since=since, where=where), progress=True).summary)
    return 0


@app.command
def watch(
    *,
    lake: Path = DEFAULT_LAKE,
    config: Path | None = None,
    since: str | None = None,
    where: Where = None,
    every: float = 1.0,
) -> int:
    """Run whenever something arrived or an episode may be over, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    lake
        Folder of the lake.
    config
        YAML with rewards, credit, rollouts, split (see transforms/README.md).
    since
        Read only what arrived from that day on: 2026-11-20, or 7d for the seven days before now.
    where
        SQL condition over the columns of rollouts; the others get no credit.
    every
        Seconds between two looks; looking costs a list of file names.
    """
    from otel_lightning.transforms.config import read_config
    from otel_lightning.transforms.watch import StatusLine
    from otel_lightning.transforms.watch import watch as watch_lake

    with StatusLine(lake) as status:
        runs = watch_lake(lake, read_config(config, since=since, where=where), say=status.say, poll_s=every)
    print(f"stopped after {runs} run{'s' if runs != 1 else ''}")
    return 0


@app.command
def export(
    folder: Path,
    *,
    lake: Path = DEFAULT_LAKE,
    table: Annotated[list[str] | None, Parameter(negative="")] = None,
    jsonl: Annotated[bool, Parameter(negative="")] = False,
    where: Where = None,
) -> int:
    """Write samples (or trajectories, pairs) as a folder that datasets.load_dataset reads, or as JSON lines.

    Parameters
    ----------
    folder
        New folder: one below it for each table and split, and a data card. One that is there is not overwritten.
    lake
        Folder of the lake.
    table
        samples (default), trajectories or pairs; may be given several times.
    jsonl
        JSON lines instead of Parquet.
    where
        SQL condition over the columns of the table, e.g. "reward > 0.5 and agent = 'planner'".
    """
    from otel_lightning.transforms.export import export as export_tables

    for done in export_tables(lake, folder, tables=table or ["samples"], jsonl=jsonl, where=where):
        print(f"{done.rows:>9} {done.table}, {done.split}: {folder / done.path}")
    return 0


@app.command
def explain(*, lake: Path = DEFAULT_LAKE, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Say how many spans became how many trained tokens, what fell out and why, and what to do next.

    Parameters
    ----------
    lake
        Folder of the lake.
    json
        One JSON document instead of text.
    """
    from otel_lightning.transforms.explain import explain as explain_lake

    print(explain_lake(lake, as_json=json))
    return 0


@app.command
def show(trace_id: str, *, lake: Path = DEFAULT_LAKE) -> int:
    """Show one trace as a tree, each call with its rewards and its credit.

    Parameters
    ----------
    trace_id
        The trace (hex; the first characters are enough when they are unique) or a rollout id.
    lake
        Folder of the lake.
    """
    from otel_lightning.transforms.show import show_trace

    show_trace(lake, trace_id)
    return 0


@app.command
def sql(
    # A query may begin with a comment.
    query: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    lake: Path = DEFAULT_LAKE,
    json: Annotated[bool, Parameter(negative="")] = False,
    csv: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Ask anything: every table is a view, nothing can be changed, nothing outside the lake can be read.

    Parameters
    ----------
    query
        One SELECT (DuckDB SQL).
    lake
        Folder of the lake.
    json
        One JSON object a line.
    csv
        Comma-separated values with a header.
    """
    from otel_lightning.transforms.ask import ask

    ask(lake, query, "json" if json else "csv" if csv else "table")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())
