"""The three ways in meet here: `instrument()`, the environment (auto/sitecustomize.py), opentelemetry-instrument (distro.py).

Until a framework or OpenTelemetry itself is imported nothing happens but a look at each import's name.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_lightning.instrumentation.watch import watch

if TYPE_CHECKING:
    from types import ModuleType

    from otel_lightning.instrumentation.settings import Mask, Settings

# Their import is the sign that this process is an agent.
FRAMEWORKS = (
    *(
        "openai",
        "langchain_core",
        "agents",
        "autogen_core",
        "anthropic",
        "smolagents",
        "crewai",
        "litellm",
        "llama_index",
    ),
    *("google.genai", "google.adk", "mistralai", "groq", "dspy", "haystack", "pydantic_ai", "mcp"),
)
_state: dict[str, Any] = {"armed": False, "arranged": False, "settings": None}


def instrument(
    *,
    endpoint: str | None = None,
    content: bool | None = None,
    tokens: bool | None = None,
    root: str | None = None,
    mask: Sequence[Mask] | None = None,
    hide_inputs: bool | None = None,
    hide_outputs: bool | None = None,
    attributes: Mapping[str, str | Callable[[str, str], str]] | None = None,
) -> None:
    """Instrument this process. Call it first; a second call changes the settings that it names.

    What is not given is read from the environment (README.md lists it). `mask` holds regular expressions and functions
    (text, attribute key) -> text; `attributes` maps patterns of keys to "drop", "mask" or a function. Never raises for a
    collector that is away.
    """
    from otel_lightning.instrumentation import provider

    if endpoint is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    if content is not None:
        os.environ["LIGHTNING_CAPTURE_CONTENT"] = "1" if content else "0"
    settings = _settings(
        tokens=tokens,
        root=root,
        mask=tuple(mask) if mask is not None else None,
        hide_inputs=hide_inputs,
        hide_outputs=hide_outputs,
        attributes=tuple(attributes.items()) if attributes is not None else None,
    )
    arm()
    already = provider.telemetry()
    if already is not None:
        already.change(settings)
    begin()


def arm() -> None:
    """Watch for frameworks; costs nothing until one comes."""
    if _state["armed"]:
        return
    _state["armed"] = True
    watch.when("opentelemetry.trace", _meet_api)
    for name in FRAMEWORKS:
        watch.when(name, lambda module: begin())
    _state["given"] = {"began_unix_nano": time.time_ns(), **_state.get("given", {})}


def begin() -> None:
    """Set OpenTelemetry up and instrument what is there and what comes. Never raises."""
    from otel_lightning.instrumentation import provider

    try:
        settings = _state["settings"] or _settings()
        if provider.begin(settings) is not None and not _state["arranged"]:
            _state["arranged"] = True
            _arrange()
    except Exception as error:
        provider.log.warning("instrumentation failed to start: %s: %s", type(error).__name__, error)


def _settings(**overrides: Any) -> Settings:
    from otel_lightning.instrumentation import settings

    settings.fill_in(os.environ)
    given = {key: value for key, value in overrides.items() if value is not None}
    _state["given"] = _state.get("given", {}) | given
    _state["settings"] = settings.read(**_state["given"])
    return _state["settings"]


def _arrange() -> None:
    from otel_lightning.instrumentation import autogen, choice, langchain, openai_client

    watch.when("openai", openai_client.patch)
    for chosen in choice.chosen():
        if chosen.module is None:
            choice.load(chosen)
        else:
            watch.when(chosen.module, functools.partial(_load, chosen))
    watch.when("langchain_openai.chat_models.base", langchain.patch)
    watch.when("autogen_core._single_threaded_agent_runtime", autogen.patch_runtime)
    watch.when("autogen_agentchat.agents._base_chat_agent", autogen.patch_agents)
    watch.when("autogen_agentchat.teams._group_chat._base_group_chat", autogen.patch_teams)


def _load(chosen: Any, module: ModuleType) -> None:
    from otel_lightning.instrumentation import choice

    options: dict[str, Any] = {}
    if chosen.library == "openai-agents":
        if not hasattr(module, "add_trace_processor"):
            return  # a package of the application's own that happens to be called `agents`
        options["exclusive_processor"] = False  # the SDK's own tracing goes on as the application has it
    choice.load(chosen, **options)
    if chosen.library == "openai-agents":
        from otel_lightning.instrumentation import openai_agents

        openai_agents.patch(module)


def _meet_api(module: ModuleType) -> None:
    """Let whoever asks for a tracer find one, and let the application's own provider win whenever it comes."""
    from otel_lightning.instrumentation import provider

    original_get = module.get_tracer_provider

    @functools.wraps(original_get)
    def get_tracer_provider() -> Any:
        begin()
        return original_get()

    module.get_tracer_provider = get_tracer_provider  # type: ignore[attr-defined]
    name = "_set_tracer_provider" if hasattr(module, "_set_tracer_provider") else "set_tracer_provider"
    original_set = getattr(module, name)

    @functools.wraps(original_set)
    def set_tracer_provider(tracer_provider: Any, *arguments: Any, **options: Any) -> None:
        made = provider.telemetry()
        ours = made.provider if made is not None else None
        replaces = (
            ours is not None and tracer_provider is not ours and getattr(module, "_TRACER_PROVIDER", None) is ours
        )
        if made is not None and replaces:
            module._TRACER_PROVIDER = tracer_provider  # type: ignore[attr-defined]
            made.succeed(tracer_provider)
            return
        original_set(tracer_provider, *arguments, **options)
        if made is None:
            begin()

    setattr(module, name, set_tracer_provider)
