"""lightning-instrument: run an agent as it is, with complete traces; print the environment that does it; or say what is wrong.

    lightning-instrument python agent.py
    lightning-instrument --print-env >> agent.env
    lightning-instrument doctor python agent.py

Only the standard library is imported here; the command replaces this process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from otel_lightning.instrumentation import settings

AUTO = Path(__file__).parent / "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    options = _parser().parse_args(argv)
    given = dict(os.environ)
    if options.root:
        given[settings.ROOT] = options.root
    if options.rollout_id:
        given[settings.ROLLOUT_ID] = options.rollout_id
    if options.capture_tokens:
        given[settings.TOKENS] = "1"
    if options.no_content:
        given[settings.CONTENT] = "0"
    if options.print_env:
        for key, value in sorted(additions(given).items()):
            print(f"{key}={value}")
        return 0
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if command[:1] == ["doctor"]:
        from otel_lightning.instrumentation.doctor import main as doctor

        os.environ.update(given)
        return doctor(command[1:])
    if not command:
        _parser().print_usage(sys.stderr)
        print("lightning-instrument: name a command to run, e.g. lightning-instrument python agent.py", file=sys.stderr)
        return 2
    executable = shutil.which(command[0])
    if executable is None:
        print(f"lightning-instrument: the command '{command[0]}' is not found", file=sys.stderr)
        return 1
    given.update(additions(given))
    os.execve(executable, command, given)


def additions(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment so that every Python process in it is instrumented."""
    filled = dict(environment)
    filled.setdefault(settings.ENDPOINT, settings.DEFAULT_ENDPOINT)
    settings.fill_in(filled)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(AUTO)]
    filled["PYTHONPATH"] = os.pathsep.join([str(AUTO), *paths])
    ours = ("OTEL_", "LIGHTNING_", "OPENINFERENCE_", "TRACELOOP_", "AUTOGEN_DISABLE_")
    return {
        key: value
        for key, value in filled.items()
        if key == "PYTHONPATH" or environment.get(key) != value or (key.startswith(ours) and "HEADERS" not in key)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-instrument",
        description="Run a Python agent with complete traces. 'doctor [COMMAND …]' says what would go wrong instead.",
        epilog="Traces go to OTEL_EXPORTER_OTLP_ENDPOINT (default http://127.0.0.1:4318).",
    )
    parser.add_argument(
        "--print-env", action="store_true", help="print the environment that does the same, for containers"
    )
    parser.add_argument(
        "--root",
        choices=("auto", "process", "none"),
        help="process: everything that the process does is one episode (default auto: only if LIGHTNING_ROLLOUT_ID names it)",
    )
    parser.add_argument("--rollout-id", metavar="ID", help="the id of the episode that this process is")
    parser.add_argument(
        "--capture-tokens", action="store_true", help="ask the model server for token ids and log-probabilities"
    )
    parser.add_argument(
        "--no-content", action="store_true", help="leave out what was said: structure, ids and numbers only"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, as ever; or doctor")
    return parser


if __name__ == "__main__":
    sys.exit(main())
