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


@app.command
def run(*, lake: Path = DEFAULT_LAKE, config: Path | None = None) -> int:
    """Bring the derived tables up to date; only what was touched since the last run is recomputed.

    Parameters
    ----------
    lake
        Folder of the lake.
    config
        YAML with rewards, credit, rollouts, split (see transforms/README.md).
    """
    from otel_lightning.transforms.config import read_config
    from otel_lightning.transforms.run import run_transform

    report = run_transform(lake, read_config(config))
    what = "everything" if report.full else f"{report.new_files} new files"
    print(
        f"run {report.run}: {what}; {report.rollouts} rollouts over {report.traces} traces recomputed "
        f"in {report.seconds:.1f} s"
    )
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
