"""Redaction, consent and hiding: what a request loses before the log, and so before any disk.

    rules = Rules(RedactConfig(rules=["email"], hide=["billing-bot"]), ConsentConfig(), key=b"…")
    rules.apply(accepted)       the request decoded, changed and encoded again; the same object when nothing changed

In this order for each span, log record and data point: consent (drop the row or hide its content), hiding by
service, dropped and hashed attributes, then the patterns over every text there is: names, keys, values however
nested, bodies, events, bytes. Fields that no OTLP version known here has are discarded, since nobody could look into
them. Whatever changes the text of a call also takes its token ids and log-probabilities, which would give the text
back, and says so: `lightning.content=redacted`. Token ids on a span without the text they stand for are taken too.

Should a rule fail on some request, its content is hidden as a whole rather than stored as it came.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from otel_lightning.collector.check import REQUESTS, Accepted
from otel_lightning.collector.config import ConsentConfig, RedactConfig
from otel_lightning.collector.messages import add_reason, keep
from otel_lightning.collector.patterns import REDACTED, Finder, names_a_secret, number_text, text_of
from otel_lightning.collector.schema import CHOICE_PREFIX, MOVED, PROMPT_TOKEN_IDS

LOG = logging.getLogger("lightning-collect")
CONTENT = "lightning.content"
HASH_DIGITS = 32
# What the shape of an episode consists of: kept when content is hidden.
STRUCTURE = frozenset(MOVED) | {
    "error.type",
    "exception.type",
    "gen_ai.output.type",
    "gen_ai.response.finish_reasons",
    "gen_ai.evaluation.name",
    "gen_ai.evaluation.score.value",
    "gen_ai.evaluation.score.label",
    "gen_ai.token.type",
    "llm.provider",
    "llm.system",
    "gen_ai.system",
}
STRUCTURE_PREFIXES = (
    "service.",
    "telemetry.",
    "deployment.",
    "gen_ai.request.",
    "gen_ai.usage.",
    "llm.token_count.",
    "llm.usage.",
    "agentlightning.rollout_id",
    "agentlightning.attempt_id",
)
# Beside the structure, what describes who asked and where it ran: no part of what a model read or wrote.
CIRCUMSTANCE_PREFIXES = (
    "user.", "enduser.", "client.", "server.", "http.", "url.", "net.", "network.", "host.", "process.", "os.",
    "device.", "session.", "code.", "thread.", "cloud.", "container.", "k8s.", "peer.", "rpc.", "db.", "messaging.",
)  # fmt: skip
INPUT_TEXT = ("gen_ai.input.messages", "input.value", "llm.input_messages.", "gen_ai.prompt")
OUTPUT_TEXT = ("gen_ai.output.messages", "output.value", "llm.output_messages.", "gen_ai.completion")
TOKEN_KEY = re.compile(r"(?:^|[._])(?:token_ids|logprobs|top_logprobs|prompt_logprobs)$")
TOKEN_KEYS_IN_JSON = ("token_ids", "logprobs")
OUR_IDS = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
SMALL_INT = 10**12  # an int below this has too few digits for a card


@dataclass
class Counts:
    """What rules did since start."""

    rows_changed: int = 0
    rows_hidden: int = 0
    rows_dropped: int = 0
    failures: int = 0


class Rules:
    """What one configuration asks for. `apply` may be called from several threads; counts are then approximate."""

    def __init__(self, redact: RedactConfig, consent: ConsentConfig | None = None, key: bytes | None = None) -> None:
        self.counts = Counts()
        self._finder = Finder(redact.rules, redact.patterns)
        self._drop, self._hash = _Keys(redact.drop), _Keys(redact.hash)
        self._hide, self._consent, self._key = frozenset(redact.hide), consent, key or b""
        self._all_token_ids = redact.drop_token_ids
        self._edits = bool(self._finder) or bool(redact.drop) or bool(redact.hash)

    def apply(self, accepted: Accepted) -> Accepted:
        """What may be stored of `accepted`. Rows that lack consent may be missing, and are counted as rejected."""
        if not accepted.rows:
            return accepted
        request = REQUESTS[accepted.signal].FromString(bytes(accepted.body))
        try:
            dropped, changed = self._apply(accepted.signal, request)
        except Exception as error:
            # Nothing is stored as it came because a rule stumbled over it.
            LOG.error("a redaction rule failed (%s); the content of that request was hidden", type(error).__name__)
            self.counts.failures += 1
            request = REQUESTS[accepted.signal].FromString(bytes(accepted.body))
            request.DiscardUnknownFields()
            self._hide_all(accepted.signal, request)
            dropped, changed = 0, True
        if not changed and not dropped:
            return accepted
        why = f"{dropped} rows without consent are not stored" if dropped else ""
        return replace(
            accepted,
            body=request.SerializeToString(),
            rows=accepted.rows - dropped,
            rejected=accepted.rejected + dropped,
            reason=add_reason(accepted.reason, why),
        )

    def _apply(self, signal: str, request: Any) -> tuple[int, bool]:
        """Rows dropped, and whether anything else changed."""
        size = request.ByteSize()
        request.DiscardUnknownFields()
        changed = request.ByteSize() != size
        dropped = 0
        for group in _groups(signal, request):
            named = {item.key: item.value for item in group.resource.attributes}
            service = named["service.name"].string_value if "service.name" in named else ""
            hide_service = service in self._hide or "*" in self._hide
            agreed = self._agrees(group.resource.attributes) is True
            hidden_here = hide_service
            for scope in _scopes(signal, group):
                for holder, rows in _rows(signal, scope):
                    if self._consent is not None and self._consent.otherwise == "drop":
                        before = len(rows)
                        keep(rows, lambda row, agreed=agreed: self._maykeep(row, agreed))
                        dropped += before - len(rows)
                    for row in rows:
                        if hide_service or not self._maykeep(row, agreed):
                            _hide_row(signal, row)
                            self.counts.rows_hidden += 1
                            hidden_here = True
                        if self._edit_row(signal, row):
                            self.counts.rows_changed += 1
                            changed = True
                    if holder is not None:
                        if hidden_here:
                            _hide_metric(holder)
                        changed |= self._edits and self._edit(holder)
                if hidden_here:
                    _keep_structure(scope.scope.attributes)
                changed |= self._edits and self._edit(scope)
            if hidden_here:
                _keep_structure(group.resource.attributes)
            changed |= hidden_here | (self._edits and self._edit(group))
        self.counts.rows_dropped += dropped
        return dropped, changed

    def _hide_all(self, signal: str, request: Any) -> None:
        for group in _groups(signal, request):
            _keep_structure(group.resource.attributes)
            for scope in _scopes(signal, group):
                _keep_structure(scope.scope.attributes)
                for holder, rows in _rows(signal, scope):
                    for row in rows:
                        _hide_row(signal, row)
                    if holder is not None:
                        _hide_metric(holder)

    # Consent

    def _maykeep(self, row: Any, agreed: bool) -> bool:
        """Whether a row's own word, or else its resource's, allows its content. Silence does not."""
        own = self._agrees(row.attributes)
        return agreed if own is None else own

    def _agrees(self, attributes: Iterable[Any]) -> bool | None:
        if self._consent is None:
            return True
        for item in attributes:
            if item.key == self._consent.attribute:
                return _scalar_text(item.value) in self._consent.values
        return None

    # One row

    def _edit_row(self, signal: str, row: Any) -> bool:
        """Apply keys and patterns to a span, log record or data point; True when anything changed."""
        changed = text_changed = False
        if self._edits and self._needs_a_look(row):
            for field in _plan(row.DESCRIPTOR):
                if field.name == "attributes":
                    continue
                if self._edit_field(row, field):
                    changed = text_changed = True
            keys = self._edit_items(row.attributes)
            changed |= bool(keys)
            text_changed |= not all(map(_is_no_text, keys))
        if signal == "metrics":
            return changed
        lone_ids = bool(self._finder) and _has_ids_without_text(row.attributes)
        if (text_changed or lone_ids or self._all_token_ids) and _take_token_ids(row):
            changed = text_changed = True
        if text_changed:
            _say_redacted(row)
        return changed

    def _needs_a_look(self, row: Any) -> bool:
        if self._drop or self._hash:
            return True
        texts: list[str] = []
        self._collect(row, texts)
        return self._finder.may_occur(texts)

    def _collect(self, message: Any, texts: list[str]) -> None:
        for field in _plan(message.DESCRIPTOR):
            value = getattr(message, field.name)
            if field.is_message:
                if field.is_value:
                    for item in value if field.repeated else (value,):
                        self._collect_value(item, texts)
                elif field.is_item:
                    for item in value:
                        texts.append(item.key)
                        before = len(texts)
                        self._collect_value(item.value, texts)
                        if names_a_secret(item.key):
                            texts.extend([f"{item.key}={text}" for text in texts[before:]])
                elif field.repeated:
                    for item in value:
                        self._collect(item, texts)
                elif message.HasField(field.name):
                    self._collect(value, texts)
            elif field.repeated:
                texts.extend(_as_text(item) for item in value)
            elif value:
                texts.append(_as_text(value))

    def _collect_value(self, value: Any, texts: list[str]) -> None:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            texts.append(value.string_value)
        elif kind == "array_value":
            for item in value.array_value.values:
                self._collect_value(item, texts)
        elif kind == "kvlist_value":
            for item in value.kvlist_value.values:
                texts.append(item.key)
                before = len(texts)
                self._collect_value(item.value, texts)
                if names_a_secret(item.key):
                    texts.extend([f"{item.key}={text}" for text in texts[before:]])
        elif kind == "bytes_value":
            texts.append(_as_text(value.bytes_value))
        elif kind in ("int_value", "double_value"):
            number = getattr(value, kind)
            if self._finder.has_own or abs(number) >= SMALL_INT:
                texts.append(_number(number))

    # Editing in place. Each returns whether anything changed.

    def _edit(self, message: Any) -> bool:
        """Everything of a message but the rows below it."""
        changed = False
        for field in _plan(message.DESCRIPTOR):
            if field.name not in _ROW_FIELDS:
                changed |= self._edit_field(message, field)
        return changed

    def _edit_field(self, message: Any, field: _Field) -> bool:
        value = getattr(message, field.name)
        changed = False
        if field.is_message:
            if field.is_item:
                changed = bool(self._edit_items(value))
            elif field.repeated:
                for item in value:
                    changed |= self._edit_value(item) if field.is_value else self._edit(item)
            elif message.HasField(field.name):
                changed = self._edit_value(value) if field.is_value else self._edit(value)
        elif field.repeated:
            edited = [self._edited(item) for item in value]
            if edited != list(value):
                value[:] = edited
                changed = True
        elif value:
            edited = self._edited(value)
            if edited is not value:
                setattr(message, field.name, edited)
                changed = True
        return changed

    def _edit_items(self, items: Any) -> list[str]:
        """KeyValues: dropped, hashed, or keys and values edited. The keys (as they came) of those that changed."""
        changed = [item.key for item in items if self._drop(item.key)]
        if changed:
            keep(items, lambda item: not self._drop(item.key))
        for item in items:
            name = item.key
            if self._hash(name):
                text = _scalar_text(item.value)
                item.value.Clear()
                item.value.string_value = hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]
                changed.append(name)
                continue
            if name.startswith("lightning.target.") and OUR_IDS.fullmatch(item.value.string_value):
                continue
            edited = self._edit_value(item.value, name)
            key = self._edited(name)
            if key is not name:
                item.key = key
            if edited or key is not name:
                changed.append(name)
        return changed

    def _edit_value(self, value: Any, name: str = "") -> bool:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            text = value.string_value
            edited = self._finder.named_value(name, text)
            if edited is text:
                return False
            value.string_value = edited
            return True
        if kind == "array_value":
            return any([self._edit_value(item, name) for item in value.array_value.values])
        if kind == "kvlist_value":
            return bool(self._edit_items(value.kvlist_value.values))
        if kind == "bytes_value":
            edited = self._edited(value.bytes_value)
            if edited is value.bytes_value or edited == value.bytes_value:
                return False
            value.bytes_value = edited
            return True
        if kind in ("int_value", "double_value"):
            text = _number(getattr(value, kind))
            edited = self._finder.replace(text)
            if edited is text:
                return False
            value.string_value = edited
            return True
        return False

    def _edited(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._finder.replace(value)
        text = _as_text(value)
        edited = self._finder.replace(text)
        return value if edited is text else edited.encode()


class _Keys:
    """Attribute keys by exact name or, with a trailing `*`, by what they begin with."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes)

    def __call__(self, key: str) -> bool:
        return key in self._exact or (bool(self._prefixes) and key.startswith(self._prefixes))


# The shapes of OTLP requests

_GROUPS = {"spans": "resource_spans", "events": "resource_logs", "metrics": "resource_metrics"}
_SCOPES = {"spans": "scope_spans", "events": "scope_logs", "metrics": "scope_metrics"}
_POINT_KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
_ROW_FIELDS = frozenset({*_SCOPES.values(), "spans", "log_records", "metrics", *_POINT_KINDS})


def _groups(signal: str, request: Any) -> Any:
    return getattr(request, _GROUPS[signal])


def _scopes(signal: str, group: Any) -> Any:
    return getattr(group, _SCOPES[signal])


def _rows(signal: str, scope: Any) -> Iterator[tuple[Any, Any]]:
    """The lists of rows of a scope, each with the metric that holds it (None for spans and log records)."""
    if signal == "spans":
        yield None, scope.spans
    elif signal == "events":
        yield None, scope.log_records
    else:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            yield metric, getattr(metric, kind).data_points if kind else []


@dataclass(frozen=True, slots=True)
class _Field:
    """A field in which text can be."""

    name: str
    repeated: bool
    is_message: bool
    is_value: bool = False
    is_item: bool = False


_PLANS: dict[str, tuple[_Field, ...]] = {}
_ID_FIELDS = frozenset({"trace_id", "span_id", "parent_span_id"})


def _plan(descriptor: Any) -> tuple[_Field, ...]:
    """The fields of a message type that hold text, directly or below."""
    known = _PLANS.get(descriptor.full_name)
    if known is None:
        _PLANS[descriptor.full_name] = ()  # a type that holds itself
        fields: list[_Field] = []
        for field in descriptor.fields:
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                name = field.message_type.name
                is_value, is_item = name == "AnyValue", name == "KeyValue"
                if is_value or is_item or _plan(field.message_type):
                    fields.append(_Field(field.name, field.is_repeated, True, is_value, is_item))
            elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.name not in _ID_FIELDS:
                fields.append(_Field(field.name, field.is_repeated, False))
        known = _PLANS[descriptor.full_name] = tuple(fields)
    return known


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _number(number: float) -> str:
    return number_text(number) if number == number and abs(number) != float("inf") else ""


def _scalar_text(value: Any) -> str:
    """A value as the text that a configuration or a hash compares: `true`, `7`, the text itself, JSON for the rest."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    return value.SerializeToString(deterministic=True).hex() if kind else ""


# Hiding


def _is_structure(key: str) -> bool:
    return key in STRUCTURE or key.startswith(STRUCTURE_PREFIXES)


def _is_no_text(key: str) -> bool:
    return _is_structure(key) or key.startswith(CIRCUMSTANCE_PREFIXES)


def _keep_structure(attributes: Any) -> bool:
    return keep(attributes, lambda item: _is_structure(item.key) and not item.value.HasField("kvlist_value"))


def _hide_row(signal: str, row: Any) -> None:
    """Leave ids, times, kind, status code and structure of a row."""
    _keep_structure(row.attributes)
    if signal == "metrics":
        row.ClearField("exemplars")
        return
    _say_redacted(row)
    if signal == "events":
        row.ClearField("body")
        row.ClearField("severity_text")
        return
    kinds = {item.key: item.value.string_value for item in row.attributes}
    row.name = kinds.get("gen_ai.operation.name") or kinds.get("openinference.span.kind") or "span"
    row.trace_state = ""
    row.status.message = ""
    for event in row.events:
        _keep_structure(event.attributes)
        if not event.name.startswith(("gen_ai.", "exception")):
            event.name = "event"
    for link in row.links:
        link.trace_state = ""
        _keep_structure(link.attributes)


def _hide_metric(metric: Any) -> None:
    metric.description = ""
    _keep_structure(metric.metadata)


# Token ids


def _has_ids_without_text(attributes: Any) -> bool:
    """Token ids whose text is not on the same span: no rule can judge them."""
    prompt = choice = has_input = has_output = False
    for item in attributes:
        key = item.key
        if key == PROMPT_TOKEN_IDS:
            prompt = True
        elif key.startswith(CHOICE_PREFIX):
            choice = True
        elif key.startswith(INPUT_TEXT):
            has_input = True
        elif key.startswith(OUTPUT_TEXT):
            has_output = True
        elif TOKEN_KEY.search(key):
            prompt = choice = True
    return (prompt and not has_input) or (choice and not has_output)


def _take_token_ids(row: Any) -> bool:
    """Remove token ids and log-probabilities from a row's attributes and from JSON inside them."""
    taken = _take_from(row.attributes)
    for event in getattr(row, "events", ()):
        taken |= _take_from(event.attributes)
    if hasattr(row, "body") and row.HasField("body"):
        taken |= _take_from_value(row.body)
    return taken


def _take_from(attributes: Any) -> bool:
    taken = keep(attributes, lambda item: not _is_token_key(item.key))
    for item in attributes:
        taken |= _take_from_value(item.value)
    return taken


def _is_token_key(key: str) -> bool:
    return key.startswith(CHOICE_PREFIX) or TOKEN_KEY.search(key) is not None


def _take_from_value(value: Any) -> bool:
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return _take_from(value.kvlist_value.values)
    if kind == "array_value":
        return any([_take_from_value(item) for item in value.array_value.values])
    if kind != "string_value" or not any(key in value.string_value for key in TOKEN_KEYS_IN_JSON):
        return False
    try:
        document = json.loads(value.string_value)
    except (ValueError, RecursionError):
        # Ids may be in a text that cannot be read as JSON, perhaps since it was cut: it goes as a whole.
        if re.search(r"(?:token_ids|logprobs)\W{1,6}[\[{]", value.string_value):
            value.string_value = REDACTED
            return True
        return False
    pruned = _pruned(document)
    if pruned == document:
        return False
    value.string_value = text_of(pruned)
    return True


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if not _is_token_key(key)}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value


def _say_redacted(row: Any) -> None:
    for item in row.attributes:
        if item.key == CONTENT:
            if item.value.string_value != "off":
                item.value.Clear()
                item.value.string_value = "redacted"
            return
    row.attributes.add(key=CONTENT).value.string_value = "redacted"
