"""lightning-collect: an OTLP collector that runs beside an agent and keeps what it acknowledges."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from otel_lightning.app.cli import run

app = App(
    name="lightning-collect",
    help="Receive OTLP (gRPC and HTTP) and keep it as Parquet. What is acknowledged is on disk.",
    version_flags=[],
)


@app.default
def serve(
    *,
    lake: Path | None = None,
    grpc: str | None = None,
    http: str | None = None,
    config: Path | None = None,
    insecure: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve until Ctrl-C or SIGTERM; then everything acknowledged is in Parquet.

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
    """
    from otel_lightning.app.config import load_config
    from otel_lightning.collector.config import CollectConfig
    from otel_lightning.collector.serve import serve as serve_until_stopped

    flags = {
        "lake": lake,
        "grpc": grpc,
        "http": http,
        "insecure": insecure or None,
    }
    return serve_until_stopped(load_config(CollectConfig, config, flags))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
