"""What the environment says: one place that reads LIGHTNING_* and fills in the OTEL_* that people forget.

Nothing here raises: a setting that cannot be read keeps its default, is noted in `problems`, and doctor shows it. Only the
standard library is imported, so that a process which never meets a framework pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
DEFAULT_ENDPOINT = "http://127.0.0.1:4318"
CONTENT = "LIGHTNING_CAPTURE_CONTENT"
TOKENS = "LIGHTNING_CAPTURE_TOKENS"
ROOT = "LIGHTNING_ROOT"
ROLLOUT_ID = "LIGHTNING_ROLLOUT_ID"

# What an agent's environment needs and usually lacks; a value that the user has set stays.
OTEL_DEFAULTS = {
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "100000",  # 128 drops the oldest messages of a long chat without a word
    "OTEL_SPAN_EVENT_COUNT_LIMIT": "10000",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
    "AUTOGEN_DISABLE_RUNTIME_TRACING": "true",  # its message bus makes five spans a call and splits the trace
}
CONTENT_ON = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"}
CONTENT_OFF = {
    "OPENINFERENCE_HIDE_INPUTS": "true",
    "OPENINFERENCE_HIDE_OUTPUTS": "true",
    "OPENINFERENCE_HIDE_LLM_INVOCATION_PARAMETERS": "false",
    "TRACELOOP_TRACE_CONTENT": "false",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "no_content",
}


def fill_in(environment: MutableMapping[str, str]) -> None:
    """Add what is missing; the content switch decides for every instrumentation at once."""
    for key, value in OTEL_DEFAULTS.items():
        environment.setdefault(key, value)
    if truth(environment.get(CONTENT), True):
        for key, value in CONTENT_ON.items():
            environment.setdefault(key, value)
    else:
        environment.update(CONTENT_OFF)


def truth(value: str | None, default: bool) -> bool:
    """0, false, no and off are false; anything else that is set is true."""
    if value is None or not value.strip():
        return default
    return value.strip().lower() not in ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """All of it, read once. `overrides` of `read` are what `instrument()` was given; they win over the environment."""

    endpoint: str = DEFAULT_ENDPOINT
    content: bool = True
    tokens: bool = False
    root: str = "auto"  # auto: a process is an episode only when a driver names it (LIGHTNING_ROLLOUT_ID)
    rollout_id: str | None = None
    exit_budget_s: float = 5.0  # the longest that an agent's exit, SIGTERM or fork may wait for the collector
    delay_s: float = 0.2  # short: a process that is killed loses this much
    queue_spans: int = 8192
    queue_bytes: int = 64 << 20  # prompts are large; a dead collector must not eat the agent's memory
    batch_spans: int = 256
    batch_bytes: int = 4 << 20
    hide_inputs: bool = False
    hide_outputs: bool = False
    mask: tuple[Any, ...] = ()  # regular expressions and callables (text, attribute key) -> text
    mask_function: str | None = None  # module:function, imported when the first span is sent
    attributes: tuple[tuple[str, Any], ...] = ()  # (pattern of the key, "drop", "mask" or a callable)
    mask_budget_s: float = 1.0
    began_unix_nano: int | None = None  # when the process did
    problems: tuple[str, ...] = field(default=())

    @property
    def private(self) -> bool:
        """Whether anything is changed on the way out."""
        return bool(
            not self.content
            or self.hide_inputs
            or self.hide_outputs
            or self.mask
            or self.mask_function
            or self.attributes
        )

    @property
    def process_root(self) -> bool:
        """Whether this process as a whole is one episode."""
        return self.root == "process" or (self.root == "auto" and self.rollout_id is not None)


def read(environment: MutableMapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from an environment (default: this process's) and what `instrument()` was given."""
    env = os.environ if environment is None else environment
    problems: list[str] = []

    def number(key: str, default: float, scale: float = 1.0) -> float:
        value = env.get(key)
        if not value:
            return default
        try:
            parsed = float(value) * scale
        except ValueError:
            parsed = -1.0
        if parsed < 0:
            problems.append(f"{key}={value} is not a number of 0 or more; {default:g} is used")
            return default
        return parsed

    root = (env.get(ROOT) or "auto").strip().lower()
    if root not in ("auto", "process", "none"):
        problems.append(f"{ROOT}={root} must be auto, process or none; auto is used")
        root = "auto"
    rules: list[tuple[str, Any]] = []
    for rule in filter(None, (part.strip() for part in env.get("LIGHTNING_ATTRIBUTES", "").split(","))):
        pattern, _, action = rule.partition("=")
        if action.strip() not in ("drop", "mask"):
            problems.append(f"LIGHTNING_ATTRIBUTES rule '{rule}' must be KEY=drop or KEY=mask; it drops")
        rules.append((pattern.strip(), "mask" if action.strip() == "mask" else "drop"))
    given: dict[str, Any] = {
        "endpoint": env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get(ENDPOINT) or DEFAULT_ENDPOINT,
        "content": truth(env.get(CONTENT), True),
        "tokens": truth(env.get(TOKENS), False),
        "root": root,
        "rollout_id": env.get(ROLLOUT_ID) or None,
        "exit_budget_s": number("LIGHTNING_EXIT_BUDGET_S", 5.0),
        "delay_s": number("OTEL_BSP_SCHEDULE_DELAY", 0.2, 0.001),
        "queue_spans": max(1, int(number("OTEL_BSP_MAX_QUEUE_SIZE", 8192))),
        "queue_bytes": max(1, int(number("LIGHTNING_QUEUE_BYTES", 64 << 20))),
        "batch_spans": max(1, int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 256))),
        "hide_inputs": truth(env.get("LIGHTNING_HIDE_INPUTS"), False),
        "hide_outputs": truth(env.get("LIGHTNING_HIDE_OUTPUTS"), False),
        "mask": tuple(filter(None, env.get("LIGHTNING_MASK", "").splitlines())),
        "mask_function": env.get("LIGHTNING_MASK_FUNCTION") or None,
        "attributes": tuple(rules),
        "mask_budget_s": number("LIGHTNING_MASK_BUDGET_S", 1.0),
    }
    for key, value in overrides.items():
        if value is not None:
            given[key] = value
    return Settings(**given, problems=tuple(problems))


Mask = str | Callable[[str, str], str]
