"""lightning-instrument doctor: in one screen, what will go wrong with this agent's traces and the line that fixes it.

    lightning-instrument doctor [--json] [python agent.py …]

Looks at the environment and the packages that it runs in, knocks at the collector, asks the model server that
OPENAI_BASE_URL names for one token. With a command it reads what the script imports. Exit 1 when something needs fixing.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from otel_lightning.instrumentation import choice, endpoint, settings

ROOTED = ("langchain", "openai-agents", "autogen")  # frameworks whose runs have a root of their own
SERVER_TIMEOUT_S = 10.0
FEW_ATTRIBUTES = 10_000


@dataclass(frozen=True)
class Finding:
    """One line: ok, note or FIX, what about, and for a FIX the line that does it."""

    level: str
    subject: str
    words: str
    fix: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings."""
    parser = argparse.ArgumentParser(
        prog="lightning-instrument doctor", description="Say what will go wrong, and its cure."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command that you would run")
    options = parser.parse_args(argv)
    findings = list(examine(options.command))
    for finding in findings:
        if options.json:
            print(json.dumps(asdict(finding)))
        else:
            print(f"{finding.level:<5} {finding.subject:<12} {finding.words}")
            if finding.fix:
                print(f"{'':<18} → {finding.fix}")
    return 1 if any(finding.level == "FIX" for finding in findings) else 0


def examine(command: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings, the gravest first among equals of one subject."""
    given = settings.read()
    imported = _imported(command)
    yield from _settings(given)
    yield from _collector(given)
    yield from _exporting()
    yield from _content(given)
    yield from _limits()
    yield from _instrumentors(imported)
    yield from _start(command)
    yield from _root(given, imported)
    yield from _server(given)


def _settings(given: settings.Settings) -> Iterator[Finding]:
    for problem in given.problems:
        yield Finding("FIX", "settings", problem, "correct or unset it")


def _collector(given: settings.Settings) -> Iterator[Finding]:
    where = given.endpoint
    host, port = endpoint.host_and_port(where)
    said = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if not endpoint.reachable(where, 2.0):
        port_words = f"port {port} of {host}"
        yield Finding("FIX", "collector", f"nobody listens on {port_words}: every span will be dropped", f"lightning-collect --http {host}:{port}")  # fmt: skip
        meant = endpoint.by_port(where)
        if said and meant and (said == endpoint.GRPC) != (meant == endpoint.GRPC):
            yield _protocol(where, said, meant)
        return
    heard = endpoint.spoken(where, 2.0)
    truth = heard or endpoint.by_port(where)
    if said and truth and (said == endpoint.GRPC) != (truth == endpoint.GRPC):
        yield _protocol(where, said, truth)
    elif heard is None and not where.startswith("https://"):
        yield Finding("FIX", "collector", f"{where} answers neither HTTP nor gRPC", f"export {settings.ENDPOINT}={settings.DEFAULT_ENDPOINT}")  # fmt: skip
    else:
        yield Finding("ok", "collector", f"{where} answers, {truth or endpoint.protocol('TRACES', where)}")


def _protocol(where: str, said: str, truth: str) -> Finding:
    return Finding(
        "FIX",
        "protocol",
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {said}, but {where} speaks {truth} (other SDKs would lose every span)",
        f"export OTEL_EXPORTER_OTLP_PROTOCOL={truth}",
    )


def _exporting() -> Iterator[Finding]:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Finding("FIX", "sdk", "OTEL_SDK_DISABLED=true: nothing is recorded", "unset OTEL_SDK_DISABLED")
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if "otlp" not in exporter:
        yield Finding("FIX", "exporter", f"OTEL_TRACES_EXPORTER={exporter}: no span is sent", "export OTEL_TRACES_EXPORTER=otlp")  # fmt: skip
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    if "always_on" not in sampler:
        yield Finding("FIX", "sampler", f"OTEL_TRACES_SAMPLER={sampler} leaves episodes out", "unset OTEL_TRACES_SAMPLER")  # fmt: skip


def _content(given: settings.Settings) -> Iterator[Finding]:
    if not given.content:
        yield Finding("FIX", "content", f"{settings.CONTENT}=0: what was said is left out, nothing can be trained", f"unset {settings.CONTENT}")  # fmt: skip
        return
    switches = {
        "OPENINFERENCE_HIDE_INPUTS": True,
        "OPENINFERENCE_HIDE_OUTPUTS": True,
        "OPENINFERENCE_HIDE_INPUT_MESSAGES": True,
        "OPENINFERENCE_HIDE_OUTPUT_MESSAGES": True,
        "OPENINFERENCE_HIDE_INPUT_TEXT": True,
        "OPENINFERENCE_HIDE_OUTPUT_TEXT": True,
        "LIGHTNING_HIDE_INPUTS": True,
        "LIGHTNING_HIDE_OUTPUTS": True,
        "TRACELOOP_TRACE_CONTENT": False,
    }
    off = [
        key for key, hides in switches.items() if key in os.environ and settings.truth(os.environ[key], False) is hides
    ]
    capture = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only").lower()
    if capture in ("false", "no_content", "none"):
        off.append("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT")
    for key in off:
        yield Finding("FIX", "content", f"{key}={os.environ[key]} leaves out what was said", f"unset {key}")
    if not off:
        yield Finding("ok", "content", f"captured ({settings.CONTENT}=0 turns it off)")


def _limits() -> Iterator[Finding]:
    fine = True
    for key in ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"):
        value = os.environ.get(key, "")
        if value.isdigit() and int(value) < FEW_ATTRIBUTES:
            fine = False
            yield Finding(
                "FIX", "limits", f"{key}={value}: long chats lose their oldest messages", f"export {key}=100000"
            )
    for key in ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
        if os.environ.get(key):
            fine = False
            yield Finding("FIX", "limits", f"{key}={os.environ[key]} cuts messages off", f"unset {key}")
    if fine:
        yield Finding("ok", "limits", "100000 attributes a span, no length limit")


def _instrumentors(imported: set[str] | None) -> Iterator[Finding]:
    found = {chosen.library: chosen for chosen in choice.chosen()}
    for library, (distribution, module, oldest, extra) in choice.LIBRARIES.items():
        version = choice.installed(distribution)
        if version is None or (imported is not None and module not in imported and library != "openai"):
            continue
        if choice.parsed(version) < choice.parsed(oldest):
            yield Finding("FIX", library, f"{distribution} {version} is older than {oldest}, the oldest that is tested", f"pip install -U '{distribution}>={oldest}'")  # fmt: skip
        needed = "openai" if library == "autogen" else library
        chosen = found.get(needed)
        if chosen is None:
            yield Finding("FIX", library, f"{distribution} {version} has no instrumentor here: its calls leave no trace", f"pip install 'otel-lightning[{extra}]'")  # fmt: skip
            continue
        if library == "autogen":
            if choice.installed("openinference-instrumentation-autogen-agentchat"):
                yield Finding("note", library, "openinference-instrumentation-autogen-agentchat would double its spans: left out")  # fmt: skip
            yield Finding("ok", library, f"{distribution} {version}, its own spans and {chosen.distribution}")
            continue
        broken = _broken(chosen)
        if broken:
            yield Finding("FIX", library, f"{chosen.distribution} {chosen.version} does not work with {distribution} {version}: {broken}", f"pip install -U 'otel-lightning[{extra}]'")  # fmt: skip
            continue
        yield Finding("ok", library, f"{distribution} {version}, {chosen.distribution} {chosen.version}")
        for other in chosen.passed_over:
            yield Finding("FIX", library, f"{other} would double every call under other starters; here it is left out", f"pip uninstall {other}")  # fmt: skip


def _broken(chosen: choice.Chosen) -> str:
    """Why an instrumentor cannot be loaded, or does not accept a version that we have not tried; empty when all is well."""
    try:
        made = chosen.entry_point.load()()
        conflict = None if choice.tested(chosen.library) else made._check_dependency_conflicts()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return str(conflict or "")


def _start(command: Sequence[str]) -> Iterator[Finding]:
    if (
        command
        and Path(command[0]).name.startswith("python")
        and any(
            a.startswith("-") and not a.startswith("--") and set(a[1:]) & set("EIS")
            for a in _interpreter_options(command)
        )
    ):
        yield Finding("FIX", "start", "python -E, -I or -S ignores the environment", "from otel_lightning.instrumentation import instrument; instrument()")  # fmt: skip
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(path.rstrip("/").endswith("opentelemetry/instrumentation/auto_instrumentation") for path in paths):
        yield Finding("note", "start", "opentelemetry-instrument is active as well; one of the two is enough")
    if choice.installed("opentelemetry-distro"):
        yield Finding("note", "start", "for plain opentelemetry-instrument, beside opentelemetry-distro: OTEL_PYTHON_DISTRO=lightning OTEL_PYTHON_CONFIGURATOR=lightning")  # fmt: skip


def _root(given: settings.Settings, imported: set[str] | None) -> Iterator[Finding]:
    if given.process_root:
        yield Finding("ok", "root", "the whole process is one episode")
        return
    present = {
        library
        for library, (distribution, module, _, _) in choice.LIBRARIES.items()
        if choice.installed(distribution)
        and (imported is None or module in imported or module.split("_")[0] in imported)
    }
    if imported is not None and "otel_lightning.rollout" in imported:
        yield Finding("ok", "root", "the agent says its episodes with rollout()")
    elif roots := sorted(present & set(ROOTED)):
        yield Finding("ok", "root", f"each run of {' and '.join(roots)} has its own")
    elif "openai" in present:
        yield Finding("FIX", "root", "bare calls of the OpenAI SDK have no root: calls that do not continue one another come apart", "lightning-instrument --root process …, or 'with rollout():' around each episode")  # fmt: skip


def _server(given: settings.Settings) -> Iterator[Finding]:
    base = os.environ.get("OPENAI_BASE_URL", "")
    host = urlsplit(base).hostname or ""
    remedy = "point OPENAI_BASE_URL at lightning-serve, or at vLLM with LIGHTNING_CAPTURE_TOKENS=1"
    if not base or host.endswith(("openai.com", "openai.azure.com")):
        level = "FIX" if given.tokens else "note"
        yield Finding(level, "tokens", "this model server gives no token ids: sft can be trained, grpo cannot", remedy)
        return
    try:
        answer = _ask(base.rstrip("/"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        code = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        yield Finding("FIX", "tokens", f"{base} did not answer a request for token ids ({code})", remedy)
        return
    if answer:
        yield Finding("ok", "tokens", f"{base} gives token ids")
    else:
        yield Finding("FIX", "tokens", f"{base} gives no token ids: sft can be trained, grpo cannot", remedy)


def _ask(base: str) -> bool:
    model = os.environ.get("OPENAI_MODEL") or _json(f"{base}/models")["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    answer = _json(f"{base}/chat/completions", {**body, "logprobs": True, "return_token_ids": True})
    return isinstance(answer["choices"][0].get("token_ids"), list)


def _json(url: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SERVER_TIMEOUT_S) as response:
        return json.load(response)


def _interpreter_options(command: Sequence[str]) -> list[str]:
    options = []
    for argument in command[1:]:
        if not argument.startswith("-") or argument in ("-m", "-c"):
            break
        options.append(argument)
    return options


def _imported(command: Sequence[str]) -> set[str] | None:
    """Top-level packages that the script of a command imports; None without a script that can be read."""
    script = next((argument for argument in command if argument.endswith(".py")), None)
    if script is None:
        return None
    try:
        tree = ast.parse(Path(script).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
            if node.module == "otel_lightning.instrumentation" and any(a.name == "rollout" for a in node.names):
                names.add("otel_lightning.rollout")
    for outer, inner in (
        ("langchain", "langchain_core"),
        ("langgraph", "langchain_core"),
        ("langchain_openai", "langchain_core"),
    ):
        if outer in names:
            names.add(inner)
    for outer in ("autogen_agentchat", "autogen_ext"):
        if outer in names:
            names.add("autogen_core")
    return names


if __name__ == "__main__":
    sys.exit(main())
