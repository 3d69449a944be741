"""lightning-serve: an OpenAI-compatible server for the policies of a lake, or for one model folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from otel_lightning.app.cli import run

app = App(
    name="lightning-serve",
    help="Serve policies as an OpenAI-compatible API and record every answer's tokens as OTLP.",
    version_flags=[],
)


@app.default
def serve(
    *,
    lake: Path | None = None,
    policy: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    otlp: str | None = None,
    threads: int | None = None,
    config: Path | None = None,
    insecure: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Parameters
    ----------
    lake
        Serve the policies of this lake; `current`, `candidate` or a version selects one.
    policy
        Serve this one Hugging Face model folder.
    host
        Address to listen on (default: 127.0.0.1).
    port
        Port (default: 8000; 0 = any free one).
    otlp
        Where token records go (default: OTEL_EXPORTER_OTLP_ENDPOINT, else nowhere).
    threads
        Threads for torch (default: 1).
    config
        YAML file with the same and more settings.
    insecure
        Listen on other addresses than loopback without a token and TLS.
    """
    from otel_lightning.app.config import load_config
    from otel_lightning.serving.config import ServeConfig

    flags = {
        "lake": lake,
        "policy": policy,
        "host": host,
        "port": port,
        "otlp": otlp,
        "threads": threads,
        "insecure": insecure or None,
        "token": os.environ.get("LIGHTNING_SERVE_TOKEN"),
    }
    settings = load_config(ServeConfig, config, flags)
    from otel_lightning.serving.serve import serve as serve_until_stopped

    return serve_until_stopped(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
