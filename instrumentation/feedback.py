"""lightning-feedback: say how it went, from a shell, for anything that was traced.

    lightning-feedback --session chat-17 --name resolved --value 1
    judge | lightning-feedback --file -

Only the standard library and OpenTelemetry; exit code 0 means that the collector has it on disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from otel_lightning.instrumentation.emit import EmitError, Emitter
from otel_lightning.instrumentation.endpoint import reachable

DEFAULT_ENDPOINT = "http://127.0.0.1:4318"
TARGETS = ("rollout", "trace", "span", "response", "session")
FIELDS = {*TARGETS, "name", "value", "label", "explanation", "source", "identifier"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    options = _parser().parse_args(argv)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it would say in pages is said below in a line
    try:
        records = list(_from_file(options.file)) if options.file else [_from_flags(options)]
        emitter = Emitter(options.endpoint)
        for record in records:
            emitter.evaluation(**record)
        if not reachable(options.endpoint, 5.0):
            raise EmitError(f"nobody answers at {options.endpoint}; is lightning-collect running there?")
        emitter.close()
    except EmitError as error:
        print(f"lightning-feedback: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lightning-feedback: {options.file}: cannot be read ({error.strerror})", file=sys.stderr)
        return 1
    print(f"{len(records)} evaluation{'s' if len(records) != 1 else ''} acknowledged by {options.endpoint}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-feedback", description="Send evaluations (rewards, feedback) of what an agent did."
    )
    target = parser.add_argument_group("target (exactly one)")
    target.add_argument("--session", metavar="ID", help="session or conversation")
    target.add_argument("--response", metavar="ID", help="id of a model's response, e.g. chatcmpl-…")
    target.add_argument("--trace", metavar="ID", help="trace, 32 hex digits")
    target.add_argument("--span", metavar="TRACE:SPAN", help="span, with its trace")
    target.add_argument("--rollout", metavar="ID", help="rollout")
    parser.add_argument("--name", help="what was evaluated, e.g. resolved")
    parser.add_argument("--value", type=float, help="a number, on any scale")
    parser.add_argument("--label", help="a word instead of a number, e.g. up")
    parser.add_argument("--explanation", help="why")
    parser.add_argument("--source", help="who says so, e.g. a judge's name")
    parser.add_argument("--identifier", help="tells several evaluations of one name and source apart")
    parser.add_argument("--file", metavar="FILE", help="JSON lines with the same keys; - reads standard input")
    parser.add_argument(
        "--endpoint",
        default=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or DEFAULT_ENDPOINT,
        help=f"OTLP endpoint (default: OTEL_EXPORTER_OTLP_ENDPOINT, else {DEFAULT_ENDPOINT})",
    )
    return parser


def _from_flags(options: argparse.Namespace) -> dict[str, Any]:
    given = {key: getattr(options, key) for key in FIELDS if getattr(options, key) is not None}
    return _record(given, "")


def _from_file(name: str) -> Iterator[dict[str, Any]]:
    """Every line is checked before the first is sent, so that a bad line leaves nothing half done."""
    if name == "-":
        yield from _lines(sys.stdin, "standard input")
        return
    with open(name, encoding="utf-8") as file:
        yield from _lines(file, name)


def _lines(file: Any, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}: "
        try:
            given = json.loads(line)
        except ValueError:
            raise EmitError(f"{where}is not JSON; nothing was sent") from None
        if not isinstance(given, dict):
            raise EmitError(f"{where}is not a JSON object; nothing was sent")
        unknown = sorted(set(given) - FIELDS)
        if unknown:
            raise EmitError(
                f"{where}unknown key '{unknown[0]}'; keys are {', '.join(sorted(FIELDS))}; nothing was sent"
            )
        yield _record(given, where)


def _record(given: dict[str, Any], where: str) -> dict[str, Any]:
    targets = [name for name in TARGETS if given.get(name)]
    if len(targets) != 1:
        raise EmitError(f"{where}name exactly one target: {', '.join(TARGETS)}")
    if not given.get("name"):
        raise EmitError(f"{where}name is missing; say what was evaluated, e.g. resolved")
    value = given.get("value")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise EmitError(f"{where}value must be a number")
    if value is None and given.get("label") is None:
        raise EmitError(f"{where}give a value or a label")
    if value is not None and (value != value or value in (float("inf"), float("-inf"))):
        raise EmitError(f"{where}the value {value} is not a finite number")
    record = {
        key: given[key] for key in ("name", "value", "label", "explanation", "source", "identifier") if key in given
    }
    target = targets[0]
    if target == "span":
        trace_id, _, span_id = str(given["span"]).partition(":")
        return record | {"trace_id": trace_id, "span_id": span_id}
    return record | {f"{target}_id": str(given[target])}


if __name__ == "__main__":
    sys.exit(main())
