"""Configuration as types: one YAML file, unknown keys refused, the nearest right name offered.

    class CollectConfig(Config):
        lake: Path = Path("lake")

    config = load_config(CollectConfig, Path("collect.yaml"), {"lake": "elsewhere"})

Secrets are never YAML literals: use `SecretStr` fields read from a file or an environment variable.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from otel_lightning.app.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, and a key nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


T = TypeVar("T", bound=BaseModel)


def load_config(cls: type[T], path: Path | None, overrides: Mapping[str, Any] | None = None) -> T:
    """Read `path` (YAML; None means defaults only), lay `overrides` over it, validate as `cls`.

    Overrides whose value is None are left out, so that flags nobody gave change nothing. A key with
    dots ("optim.lr") reaches into nested sections. Raises ConfigError with one line a problem, each
    naming file, key and nearest right name.
    """
    data: dict[str, Any] = {}
    where = str(path) if path is not None else "command line"
    if path is not None:
        data = read_yaml(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(data, key.split("."), value)
    return parse_config(cls, data, where)


def read_environment(
    cls: type[BaseModel], prefix: str, environment: Mapping[str, str], reserved: typing.Iterable[str] = ()
) -> dict[str, Any]:
    """Overrides for `load_config` from variables: `<prefix>ROLL_S=3`, `<prefix>REDACT__RULES='[email]'`.

    A value is read as YAML, two underscores reach into a section. ConfigError when a variable with the prefix is
    neither a key nor `reserved`.
    """
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(prefix) or name.removeprefix(prefix) in reserved or _SERVICE_VARIABLE.search(name):
            continue
        keys = name.removeprefix(prefix).lower().split("__")
        known = set(cls.model_fields)
        if keys[0] not in known:
            guess = nearest(keys[0], known)
            hint = f"; did you mean {prefix}{guess.upper()}?" if guess else f"; keys are {', '.join(sorted(known))}"
            raise ConfigError(f"environment: unknown variable {name}{hint}")
        try:
            found[".".join(keys)] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[".".join(keys)] = text
    return found


# Kubernetes describes every service of a namespace to every container of it: a service named like the command would
# set LIGHTNING_COLLECT_PORT_4318_TCP and its siblings.
_SERVICE_VARIABLE = re.compile(r"_(?:SERVICE_(?:HOST|PORT)|PORT)(?:_|$)")


def parse_config(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Validate `data` as `cls`; `where` (a file name) opens each line of the error."""
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(cls, dict(item), where) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; give a YAML file") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: is not valid YAML ({getattr(error, 'problem', 'syntax')})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold keys and values, but its top level is a {type(data).__name__}")
    return data


def nearest(name: str, choices: typing.Iterable[str]) -> str | None:
    """The choice most like `name`, or None when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return close[0] if close else None


def _put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        if not isinstance(inner, dict):
            inner = {}
        inner = dict(inner)
        data[key] = inner
        data = inner
    data[keys[-1]] = value


def _explain(cls: type[BaseModel], item: dict[str, Any], where: str) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top level)"
    if item["type"] == "extra_forbidden":
        names = _fields_at(cls, item["loc"][:-1])
        guess = nearest(location[-1], names)
        if guess is not None:
            return f"{where}: unknown key '{key}'; did you mean '{guess}'?"
        known = ", ".join(sorted(names)) or "none"
        return f"{where}: unknown key '{key}'; known keys here: {known}"
    if item["type"] == "missing":
        return f"{where}: key '{key}' is missing; add it"
    if item["type"] in ("union_tag_invalid", "literal_error", "enum"):
        context = item.get("ctx", {})
        given = context.get("tag", item.get("input"))
        expected = str(context.get("expected_tags", context.get("expected", "")))
        guess = nearest(str(given), [part.strip(" '") for part in expected.replace(" or ", ",").split(",")])
        hint = f"; did you mean '{guess}'?" if guess else ""
        return f"{where}: '{key}' is {given!r}, but must be one of {expected}{hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = item.get("input")
    value = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool) else ""
    return f"{where}: '{key}': {message[:1].lower()}{message[1:]}{value}"


def _fields_at(cls: type[BaseModel], path: tuple[str | int, ...]) -> set[str]:
    """Names allowed at `path`; tags of discriminated unions in the path select the member."""
    models: list[type[BaseModel]] = [cls]
    for part in path:
        inner: list[type[BaseModel]] = []
        for model in models:
            field = model.model_fields.get(str(part)) or next(
                (f for f in model.model_fields.values() if f.alias == part), None
            )
            if field is not None:
                inner.extend(_models_in(field.annotation))
        if not inner:
            # A union's tag, a list index or a mapping's key: stay among the same candidates.
            tagged = [m for m in models if str(part) in _tags(m)]
            inner = tagged or models
        models = inner
    return {name for model in models for name in model.model_fields}


def _tags(model: type[BaseModel]) -> set[str]:
    tags: set[str] = {model.__name__}
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal:
            tags.update(str(value) for value in typing.get_args(field.annotation))
    return tags


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
