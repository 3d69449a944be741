"""One instrumentor per library, however many are installed: which, and from which version on.

Chosen by what comes out (the raw answer, the tool calls, the response id of streams), in the order of CHOICES. What is not
listed is loaded as `opentelemetry-instrument` would; of several packages that claim one name, the first by FAMILIES.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

GROUP = "opentelemetry_instrumentor"
log = logging.getLogger("otel_lightning")

# Distributions in order of preference; what is listed under NEVER doubles or spoils what another one does.
CHOICES = {
    "openai": (
        "openinference-instrumentation-openai",
        "opentelemetry-instrumentation-genai-openai",
        "opentelemetry-instrumentation-openai",
        "opentelemetry-instrumentation-openai-v2",
    ),
    "langchain": (
        "openinference-instrumentation-langchain",
        "opentelemetry-instrumentation-genai-langchain",
        "opentelemetry-instrumentation-langchain",
    ),
    "openai-agents": (
        "openinference-instrumentation-openai-agents",
        "opentelemetry-instrumentation-genai-openai-agents",
        "opentelemetry-instrumentation-openai-agents",
        "opentelemetry-instrumentation-openai-agents-v2",
    ),
}
NEVER = {
    "openinference-instrumentation-autogen-agentchat": "AutoGen traces its agents and tools itself",
    "openinference-instrumentation-autogen": "AutoGen traces its agents and tools itself",
    "openinference-instrumentation-google-adk": "it overwrites the spans of google-adk 2",
}
FAMILIES = ("openinference-instrumentation-", "opentelemetry-instrumentation-genai-", "opentelemetry-instrumentation-")

# library: (distribution, module whose import starts it, oldest version under test, extra of ours that brings the instrumentor)
LIBRARIES = {
    "openai": ("openai", "openai", "1.69.0", "openai"),
    "langchain": ("langchain-core", "langchain_core", "1.0.0", "langchain"),
    "openai-agents": ("openai-agents", "agents", "0.3.0", "agents"),
    "autogen": ("autogen-core", "autogen_core", "0.7.1", "autogen"),
}
MODULES = {"openai": "openai", "langchain": "langchain_core", "openai-agents": "agents"}


@dataclass(frozen=True)
class Chosen:
    """An instrumentor to load when `module` is imported; at once when `module` is None."""

    library: str
    distribution: str
    version: str
    entry_point: Any
    module: str | None
    passed_over: tuple[str, ...] = ()


@cache
def installed(distribution: str) -> str | None:
    """The installed version, None when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def parsed(version: str) -> tuple[int, ...]:
    """The numbers of a version, as far as they go."""
    numbers = []
    for part in version.split("."):
        digits = "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def chosen() -> list[Chosen]:
    """What to load, of what is installed; OTEL_PYTHON_DISABLED_INSTRUMENTATIONS is heeded."""
    disabled = {n.strip() for n in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    if "*" in disabled:
        return []
    by_library: dict[str, list[tuple[int, str, str, Any]]] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        distribution = _name(entry_point.dist.name) if entry_point.dist else ""
        if distribution in NEVER or entry_point.name in disabled:
            continue
        library, rank = _place(entry_point.name, distribution)
        version = entry_point.dist.version if entry_point.dist else ""
        by_library.setdefault(library, []).append((rank, distribution, version, entry_point))
    result = []
    for library, candidates in sorted(by_library.items()):
        candidates.sort(key=lambda c: c[:2])
        _, distribution, version, entry_point = candidates[0]
        others = tuple(sorted({c[1] for c in candidates[1:]} - {distribution}))
        result.append(Chosen(library, distribution, version, entry_point, _module(library, entry_point.name), others))
    return result


def load(choice: Chosen, **options: Any) -> bool:
    """Instrument; False, and one line in the log, when it cannot."""
    try:
        made = choice.entry_point.load()()
        if not getattr(made, "is_instrumented_by_opentelemetry", False):  # else by another starter, or the application
            # Instrumentors state the range that they were released with; ours is the one that was tried.
            made.instrument(skip_dep_check=tested(choice.library), **options)
        _give_way(type(made))
        return True
    except Exception as error:
        log.warning("%s %s cannot instrument: %s: %s", choice.distribution, choice.version, type(error).__name__, error)
        return False


def tested(library: str) -> bool:
    """Whether the installed version of a library is one that these instrumentors are tested with (see tests/agents)."""
    if library not in LIBRARIES:
        return False
    distribution, _, oldest, _ = LIBRARIES[library]
    version = installed(distribution)
    return version is not None and parsed(version) >= parsed(oldest)


def _give_way(kind: Any) -> None:
    """An application that instruments with a provider of its own gets that; ours is extended onto it."""
    from otel_lightning.instrumentation.provider import telemetry

    instrument = kind.instrument

    @functools.wraps(instrument)
    def again(self: Any, **options: Any) -> Any:
        provider, made = options.get("tracer_provider"), telemetry()
        if provider is not None and made is not None and self.is_instrumented_by_opentelemetry:
            self.uninstrument()
            made.extend(provider)
        return instrument(self, **options)

    kind.instrument = again


def _place(name: str, distribution: str) -> tuple[str, int]:
    for library, order in CHOICES.items():
        if distribution in order:
            return library, order.index(distribution)
    rank = next((i for i, family in enumerate(FAMILIES) if distribution.startswith(family)), len(FAMILIES))
    return name.replace("_", "-").lower(), rank


def _module(library: str, name: str) -> str | None:
    if library in MODULES:
        return MODULES[library]
    module = name.replace("-", "_")
    try:
        return module if importlib.util.find_spec(module) is not None else None
    except (ImportError, ValueError):
        return None


def _name(distribution: str) -> str:
    return distribution.replace("_", "-").replace(".", "-").lower()
