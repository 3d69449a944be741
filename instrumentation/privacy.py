"""What leaves the process: hooks that mask text, switches that hide it, rules for single attributes. It fails closed.

    instrument(mask=[r"\\b\\d{16}\\b", my_function], hide_inputs=True, attributes={"user.id": "drop", "http.*": "mask"})

Applied to a copy, in the thread that sends: the agent never waits for a hook and other people's exporters see what they saw.
A hook that raises, hangs beyond its budget or returns no text means that the content of that span is withheld
(`lightning.content: redacted`); and whatever changes a text also takes its token ids and log-probabilities, which would give
it back. What a model server records of its own is beyond this: redact that in the collector.

A regular expression that backtracks without end holds Python's lock and cannot be interrupted: a callable can.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link
from opentelemetry.trace.status import Status

from otel_lightning.instrumentation.settings import Settings

MASKED = "[masked]"
CONTENT_KEY = "lightning.content"

INPUT = re.compile(
    r"^(input\.(value|mime_type)$|llm\.(input_messages|prompts|prompt_template|tools|function_call)\b|gen_ai\.(input\.messages"
    r"|system_instructions|prompt|tool\.(call\.arguments|definitions)|task\.input|retrieval\.query)|llm\.request\.functions"
    r"|traceloop\.entity\.input|tool\.parameters$|embedding\.embeddings|ai\.(prompt|toolCall\.args)|tool_arguments$"
    r"|pydantic_ai\.all_messages|all_messages_events$|events$|message$|lightning\.prompt\.token_ids)"
)
OUTPUT = re.compile(
    r"^(output\.(value|mime_type)$|llm\.(output_messages|choices|completions)\b|gen_ai\.(output\.messages|completion"
    r"|tool\.call\.result|task\.output)|traceloop\.entity\.output|retrieval\.documents|reranker\.|ai\.(response\.(text|object|"
    r"toolCalls|reasoning)|toolCall\.result)|tool_response$|final_result$|lightning\.choice\.\d+\.)"
)
TOKENS = re.compile(r"^lightning\.(prompt\.(token_ids|prefix_|length)|choice\.\d+\.)")
# Who and where, never what was said: masking these leaves a call's text, and so its token ids, as they were.
ABOUT = re.compile(
    r"^(metadata$|session\.|gen_ai\.(conversation|agent)\.|agent\.name|graph\.|user\.|enduser\.|tag\.|http\.|url\.|server\.|client\.|net\.|exception\.)"
)
# Written by programs alone; masking these would only break joins. Everything else is masked, session ids too.
MACHINE = re.compile(
    r"^(openinference\.span\.kind|gen_ai\.(operation\.name|provider\.name|system|request\.model|response\.(model|id|finish_reasons)"
    r"|tool\.call\.id)|llm\.(model_name|provider|system|finish_reason)|lightning\..*)$"
)
IDS_IN_JSON = ("prompt_token_ids", "token_ids", "logprobs")
# What is left when a hook fails: names, ids and numbers that cannot hold what a person typed.
STRUCTURE = re.compile(
    r"^(openinference\.span\.kind|gen_ai\.(operation\.name|provider\.name|system|request\.model|response\.(model|id|finish_reasons)"
    r"|agent\.(name|id)|tool\.(name|type|call\.id)|conversation\.id|output\.type)|llm\.(model_name|provider|system|finish_reason)"
    r"|session\.id|agent\.name|graph\.node\.(id|parent_id)|tool\.name|error\.type|server\.address"
    r"|lightning\.(rollout|task|group)\.id|lightning\.(split|attempt|capture|policy\.version|content|tokenizer|logprobs\.mode)"
    r"|lightning\.target\.[a-z_]+|lightning\.reward\.[a-z]+|gen_ai\.evaluation\.(name|score\.label))$"
)


class Withheld(Exception):
    """A hook failed: nothing of this may leave."""


class Privacy:
    """The rules of one process. `span` and `record` return what may be sent; neither raises."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guard = _Guard(settings.mask_budget_s)
        self.withheld = 0
        self._hooks: list[Callable[[str, str], str]] | None = None
        self._loading = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether anything is changed on the way out."""
        return self._settings.private

    def span(self, span: ReadableSpan, aside: Sequence[str] = ()) -> ReadableSpan:
        """The span as it may be sent. `aside` are texts that its token ids stand for though it does not carry them."""
        if not self.active:
            return span
        try:
            return self._guard.run(lambda: self._cleaned(span, aside)) if self._hooked else self._cleaned(span, aside)
        except Exception:
            self.withheld += 1
            return _rebuilt(span, *_bare(span))

    def text(self, text: str, key: str) -> str | None:
        """One text as it may be sent; None when it is withheld."""
        if not self._settings.content:
            return None
        if not self._hooked:
            return text
        try:
            return self._guard.run(lambda: self._masked(text, key))
        except Exception:
            self.withheld += 1
            return None

    def attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of a log record as they may be sent."""
        if not self.active:
            return dict(attributes)
        try:
            clean = lambda: self._clean_attributes(attributes, ())  # noqa: E731
            return (self._guard.run(clean) if self._hooked else clean())[0]
        except Exception:
            self.withheld += 1
            return _structure(attributes)

    def body(self, body: Any) -> Any:
        """The body of a log record as it may be sent."""
        if not self.active:
            return body
        if not self._settings.content or self._settings.hide_inputs or self._settings.hide_outputs:
            return None
        try:
            return self._guard.run(lambda: self._walk(body, "body")) if self._hooked else body
        except Exception:
            self.withheld += 1
            return None

    @property
    def _hooked(self) -> bool:
        settings = self._settings
        return bool(settings.mask or settings.mask_function or any(callable(r) for _, r in settings.attributes)) or any(
            rule == "mask" for _, rule in settings.attributes
        )

    def _cleaned(self, span: ReadableSpan, aside: Sequence[str]) -> ReadableSpan:
        attributes, changed = self._clean_attributes(span.attributes or {}, aside)
        events = []
        for event in span.events:
            cleaned, event_changed = self._clean_attributes(event.attributes or {}, (), event=True)
            changed = changed or event_changed
            events.append(Event(event.name, cleaned, event.timestamp))
        links = [Link(link.context, self._clean_attributes(link.attributes or {}, ())[0]) for link in span.links]
        status = span.status
        if status.description:
            if not self._settings.content or self._settings.hide_inputs or self._settings.hide_outputs:
                status = Status(status.status_code, None)
            else:
                status = Status(status.status_code, self._masked(status.description, "status.message"))
        name = self._masked(span.name, "name")
        if changed and CONTENT_KEY not in attributes:
            attributes[CONTENT_KEY] = "redacted"
        return _rebuilt(span, name, attributes, events, links, status)

    def _clean_attributes(
        self, attributes: Mapping[str, Any], aside: Sequence[str], event: bool = False
    ) -> tuple[dict[str, Any], bool]:
        settings, clean, changed = self._settings, {}, False
        hide_all = not settings.content
        for key, value in attributes.items():
            if hide_all and (INPUT.match(key) or OUTPUT.match(key) or value == "__REDACTED__"):
                continue
            if hide_all and event and key in ("exception.message", "exception.stacktrace"):
                continue
            if (settings.hide_inputs and INPUT.match(key)) or (settings.hide_outputs and OUTPUT.match(key)):
                changed = True
                continue
            if event and (settings.hide_inputs or settings.hide_outputs) and key.startswith("exception.m"):
                continue
            action = next(
                (action for pattern, action in settings.attributes if fnmatch.fnmatchcase(key, pattern)), None
            )
            if action == "drop":
                changed = changed or bool(INPUT.match(key) or OUTPUT.match(key))
                continue
            if action is None and MACHINE.match(key):
                clean[key] = value
                continue
            if action is None:
                masked = self._walk(value, key)
            elif action == "mask":
                masked = MASKED if isinstance(value, str) else self._walk(value, key)
            else:
                masked = _text(action(str(value), key))
            changed = changed or (masked != value and not ABOUT.match(key))
            clean[key] = masked
        if not changed and self._hooks_loaded and any(self._walk(text, "text") != text for text in aside):
            changed = True
        if changed or hide_all:
            clean = _without_tokens(clean)
        return clean, changed

    @property
    def _hooks_loaded(self) -> list[Callable[[str, str], str]]:
        with self._loading:
            if self._hooks is None:
                self._hooks = [_hook(mask) for mask in self._settings.mask]
                if self._settings.mask_function:
                    module, _, function = self._settings.mask_function.partition(":")
                    self._hooks.append(getattr(importlib.import_module(module), function))
            return self._hooks

    def _masked(self, text: str, key: str) -> str:
        for hook in self._hooks_loaded:
            text = _text(hook(text, key))
        return text

    def _walk(self, value: Any, key: str) -> Any:
        """Every text in a value, also inside of JSON that travels as text, where quotes and accents are escaped."""
        if not self._hooks_loaded:
            return value
        if isinstance(value, str):
            if value[:1] in "{[" and value[-1:] in "}]" and len(value) > 2:
                try:
                    parsed = json.loads(value)
                except ValueError:
                    return self._masked(value, key)
                walked = self._walk(parsed, key)
                return value if walked == parsed else json.dumps(walked, ensure_ascii=False)
            return self._masked(value, key)
        if isinstance(value, Mapping):
            return {self._masked(str(name), key): self._walk(item, key) for name, item in value.items()}
        if isinstance(value, list | tuple):
            walked = [self._walk(item, key) for item in value]
            return tuple(walked) if isinstance(value, tuple) else walked
        return value


class _Guard:
    """Runs hooks in a thread of their own, with a deadline. While one hangs, nothing further is tried: all is withheld."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._jobs: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]]] | None = None
        self._stuck: queue.Queue[Any] | None = None

    def run(self, job: Callable[[], Any]) -> Any:
        if self._stuck is not None:
            if self._stuck.empty():
                raise Withheld("a hook still hangs")
            self._stuck = None
        if self._jobs is None:
            self._jobs = queue.Queue()
            threading.Thread(target=self._work, args=(self._jobs,), name="lightning-mask", daemon=True).start()
        answer: queue.Queue[Any] = queue.Queue()
        self._jobs.put((job, answer))
        try:
            failed, result = answer.get(timeout=self._budget_s)
        except queue.Empty:
            self._stuck = answer
            raise Withheld("a hook hangs") from None
        if failed:
            raise Withheld("a hook raised")
        return result

    def after_fork(self) -> None:
        """The thread stayed behind in the parent."""
        self._jobs, self._stuck = None, None

    @staticmethod
    def _work(jobs: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]]]) -> None:
        while True:
            job, answer = jobs.get()
            try:
                answer.put((False, job()))
            except BaseException:  # also SystemExit from a hook: this thread must live
                answer.put((True, None))


def without_captured_ids(span: ReadableSpan) -> ReadableSpan:
    """The raw answer minus ids that the token record holds already: prompts would be sent again on every turn."""
    value = (span.attributes or {}).get("output.value")
    if not isinstance(value, str) or ('"token_ids"' not in value and '"prompt_token_ids"' not in value):
        return span
    try:
        stripped = _strip_ids(json.loads(value))
    except ValueError:
        return span
    attributes = dict(span.attributes or {})
    attributes["output.value"] = json.dumps(stripped, ensure_ascii=False)
    return _rebuilt(span, span.name, attributes, span.events, span.links, span.status)


def _hook(mask: Any) -> Callable[[str, str], str]:
    if not isinstance(mask, str | re.Pattern):
        return mask
    pattern = re.compile(mask)
    return lambda text, key: pattern.sub(MASKED, text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Withheld("a hook must return text")
    return value


def _without_tokens(attributes: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in attributes.items():
        if TOKENS.match(key):
            continue
        if isinstance(value, str) and any(f'"{name}"' in value for name in IDS_IN_JSON):
            try:
                value = json.dumps(_strip_ids(json.loads(value)), ensure_ascii=False)
            except ValueError:
                continue
        kept[key] = value
    return kept


def _strip_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip_ids(item) for key, item in value.items() if key not in IDS_IN_JSON}
    if isinstance(value, list):
        return [_strip_ids(item) for item in value]
    return value


def _structure(attributes: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in attributes.items()
        if STRUCTURE.match(key) or (isinstance(value, bool | int | float) and not TOKENS.match(key))
    }
    kept[CONTENT_KEY] = "redacted"
    return kept


def _bare(span: ReadableSpan) -> tuple[str, dict[str, Any], list[Event], list[Link], Status]:
    events = [Event(event.name, {}, event.timestamp) for event in span.events]
    links = [Link(link.context) for link in span.links]
    return "withheld", _structure(span.attributes or {}), events, links, Status(span.status.status_code)


def _rebuilt(
    span: ReadableSpan,
    name: str,
    attributes: Mapping[str, Any],
    events: Sequence[Event],
    links: Sequence[Link],
    status: Status,
) -> ReadableSpan:
    return _Changed(span, name=name, attributes=attributes, events=events, links=links, status=status)


class _Changed(ReadableSpan):
    """A span with other content that still says how much the SDK dropped before."""

    def __init__(self, span: ReadableSpan, **changed: Any) -> None:
        super().__init__(
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            kind=span.kind,
            instrumentation_scope=span.instrumentation_scope,
            start_time=span.start_time,
            end_time=span.end_time,
            **changed,
        )
        self._dropped = span.dropped_attributes, span.dropped_events, span.dropped_links

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]
