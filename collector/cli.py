"""lightning-collect: an OTLP collector that runs beside an agent and keeps what it acknowledges."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from otel_lightning.app.cli import run

if TYPE_CHECKING:
    from otel_lightning.collector.config import CollectConfig

app = App(
    name="lightning-collect",
    help="Receive OTLP (gRPC and HTTP) and keep it as Parquet. What is acknowledged is on disk.",
    version_flags=[],
)


DEFAULT_LAKE = Path(os.environ.get("LIGHTNING_COLLECT_LAKE", "lake"))
Flag = Annotated[bool, Parameter(negative="")]


@app.default
def serve(
    *,
    lake: Path | None = None,
    grpc: str | None = None,
    http: str | None = None,
    config: Path | None = None,
    insecure: Flag = False,
    log: Literal["text", "json"] | None = None,
) -> int:
    """Serve until Ctrl-C or SIGTERM; then everything acknowledged is in Parquet.

    Every setting of the YAML file is also an environment variable (LIGHTNING_COLLECT_ROLL_S, and two underscores for a
    section: LIGHTNING_COLLECT_REDACT__RULES). Flags count before variables, variables before the file.

    Parameters
    ----------
    lake
        Folder of the lake (default: lake).
    grpc
        Address for OTLP/gRPC (default: 127.0.0.1:4317).
    http
        Address for OTLP/HTTP (default: 127.0.0.1:4318).
    config
        YAML file with the same and more settings.
    insecure
        Listen on other addresses than loopback without a token and TLS.
    log
        Lines for people, or one JSON object a line.
    """
    from otel_lightning.collector.memory import share_one_pool

    share_one_pool()
    from otel_lightning.collector.serve import serve as serve_until_stopped

    flags = {"lake": lake, "grpc": grpc, "http": http, "insecure": insecure or None, "log": log}
    return serve_until_stopped(_config(config, flags))


@app.command
def check(*, lake: Path = DEFAULT_LAKE, repair: Flag = False, json: Flag = False) -> int:
    """Verify every file of the lake, and say what lies in quarantine and why; 1 when something is damaged.

    Parameters
    ----------
    lake
        Folder of the lake.
    repair
        Make damaged files again from the log where it is still there, set them aside where it is not.
    json
        One JSON document instead of text.
    """
    from otel_lightning.app.progress import progress
    from otel_lightning.collector.scrub import scrub
    from otel_lightning.store.lake import Lake

    home = Lake.existing(lake)
    with progress("check") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.advance()

        found = scrub(home, repair=repair, progress=advance)
    if json:
        print(found.as_json())
        return 1 if found.damage else 0
    rows = found.rows
    print(
        f"{found.files} files, {found.bytes / 1e6:.1f} MB: {rows['spans']} spans, {rows['events']} events, "
        f"{rows['metrics']} metric points, every hash and page as written"
    )
    if found.replaced_files:
        print(f"{found.replaced_files} replaced files wait to be removed by the next compact")
    if found.log_segments:
        print(f"{found.log_segments} log segments are not Parquet yet or wait to be forwarded")
    if found.deleted_traces:
        print(f"{found.deleted_traces} traces are deleted")
    for piece in found.quarantine:
        print(f"quarantine/{piece['file']} ({piece.get('bytes', '?')} bytes): {piece['reason']}")
    for line in found.repaired:
        print(f"repaired: {line}")
    for finding in found.damage:
        print(f"damaged: {finding.path} {finding.problem}; {finding.advice}")
    return 1 if found.damage else 0


@app.command
def compact(*, lake: Path = DEFAULT_LAKE, memory_mb: int = 512, grace_s: float = 60.0) -> int:
    """Merge small files of a day into few big ones; a collector may be running.

    Parameters
    ----------
    lake
        Folder of the lake.
    memory_mb
        How much of a merge is in memory at once, uncompressed.
    grace_s
        How long replaced files stay for readers that have begun with them.
    """
    from otel_lightning.app.errors import UsageError
    from otel_lightning.collector.compact import compact as compact_lake
    from otel_lightning.collector.compact import parquet_tools
    from otel_lightning.store.files import disk_problem
    from otel_lightning.store.fs import RealDisk
    from otel_lightning.store.lake import Lake

    if memory_mb < 1 or grace_s < 0:
        raise UsageError("--memory-mb must be at least 1 and --grace-s at least 0")
    home = Lake.existing(lake)
    try:
        done = compact_lake(
            RealDisk(), home, parquet_tools(home), memory_bytes=memory_mb << 20, grace_s=grace_s, say=lambda text: print(text, flush=True)
        )  # fmt: skip
    except OSError as error:
        raise disk_problem(home.root, error) from None
    print(
        f"{done.files_before} files ({done.bytes_before / 1e6:.1f} MB) became {done.files_after} "
        f"({done.bytes_after / 1e6:.1f} MB); {done.copies} copies sent twice are gone; {done.removed} files removed"
    )
    return 0


@app.command
def retain(*, days: int, lake: Path = DEFAULT_LAKE, grace_s: float = 60.0) -> int:
    """Remove what arrived before the last so many days.

    Parameters
    ----------
    days
        Whole days to keep beside today.
    lake
        Folder of the lake.
    grace_s
        How long files stay for readers that have begun with them.
    """
    from otel_lightning.app.errors import UsageError
    from otel_lightning.collector.retain import retain as retain_days
    from otel_lightning.store.lake import Lake

    if days < 0:
        raise UsageError("--days must be 0 or more")
    done = retain_days(Lake.existing(lake), days, grace_s=grace_s)
    print(
        f"removed {done.rows} rows in {done.files} files from before {done.before}, and {done.quarantined} pieces in quarantine"
    )
    return 0


@app.command
def delete(
    trace_id: Annotated[tuple[str, ...], Parameter(negative="")],
    /,
    *,
    lake: Path = DEFAULT_LAKE,
    runs: Path = Path("runs"),
) -> int:
    """Delete traces: their content, their ids and their feedback, and keep out what is sent again.

    Parameters
    ----------
    trace_id
        One or more trace ids (32 hexadecimal digits).
    lake
        Folder of the lake.
    runs
        Folder with training runs, to say which policies were trained on these traces.
    """
    from otel_lightning.collector.delete import delete as delete_traces
    from otel_lightning.store.lake import Lake

    home = Lake.existing(lake)
    done = delete_traces(home, trace_id, runs)
    rows = done.rows
    print(
        f"deleted {done.traces} traces: {rows['spans']} spans, {rows['events']} events, {rows['metrics']} metric points; "
        f"{done.files} files rewritten, {done.quarantined} pieces removed from quarantine"
    )
    if done.unsearchable:
        print(
            f"{done.unsearchable} damaged pieces in {home.quarantine} cannot be searched; remove them if they may hold the trace"
        )
    if done.policies:
        print(f"trained on it: {', '.join(done.policies)}")
    if done.runs_unknown:
        print(f"not known for {', '.join(done.runs_unknown)}: their run folders are not below {runs} (see --runs)")
    if (home.derived / "manifest.json").exists():
        print(f"derived tables still hold it until: lightning-transform run --lake {lake}")
    return 0


@app.command(name="import")
def import_files(
    files: Annotated[tuple[Path, ...], Parameter(negative="")],
    /,
    *,
    lake: Path | None = None,
    config: Path | None = None,
    form: Literal["auto", "otlp", "phoenix", "langfuse"] = "auto",
    signal: Literal["spans", "events", "metrics"] | None = None,
    endpoint: str | None = None,
    again: Flag = False,
) -> int:
    """Take in files from elsewhere, through the same log and the same rules as what is sent.

    OTLP as JSON lines (what the OpenTelemetry Collector's file exporter writes) or protobuf bodies, and exports of
    Phoenix and Langfuse with spans and scores; each also as .gz or .zst.

    Parameters
    ----------
    files
        What to take in.
    lake
        Folder of the lake (default: lake).
    config
        The collector's YAML file: redaction and consent apply here too.
    form
        What the files are; auto looks into them.
    signal
        What protobuf bodies hold, where their names do not say so.
    endpoint
        OTLP/HTTP URL of the collector that runs on the lake, e.g. http://127.0.0.1:4318 (token: LIGHTNING_COLLECT_TOKEN).
    again
        Send files that were imported before once more.
    """
    from otel_lightning.collector.imports.run import import_all

    done = import_all(_config(config, {"lake": lake}), files, form=form, signal=signal, endpoint=endpoint, again=again)
    print(
        f"imported {done.rows['spans']} spans, {done.rows['events']} events, {done.rows['metrics']} metric points "
        f"from {done.files} files; {done.known} files were imported before; {done.rejected} rows were rejected"
    )
    for why, count in sorted(done.skipped.items()):
        print(f"left out {count}: {why}")
    return 0


def _config(path: Path | None, flags: dict[str, object]) -> CollectConfig:
    import os

    from otel_lightning.app.config import load_config, read_environment
    from otel_lightning.collector.config import ENVIRONMENT, OTHER_VARIABLES, CollectConfig

    variables = read_environment(CollectConfig, ENVIRONMENT, os.environ, reserved=OTHER_VARIABLES)
    path = path or (Path(os.environ[f"{ENVIRONMENT}CONFIG"]) if os.environ.get(f"{ENVIRONMENT}CONFIG") else None)
    given = {key: value for key, value in flags.items() if value is not None}
    return load_config(CollectConfig, path, {**variables, **given})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
