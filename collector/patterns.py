"""What counts as an e-mail address, a phone number, a payment card or a secret, and patterns of one's own.

    finder = Finder(named=["email", "card"], own={"ticket": r"TICKET-\\d+"})
    finder.replace('{"to": "bob@example.com"}')      ->  '{"to": "[email]"}'

Every pattern runs in RE2, whose time is linear in the text whatever the pattern; one that RE2 does not know
(look-around, back-references) is refused when the configuration is read. Text is searched as it stands and with its
JSON escapes undone, as deep as they are nested, so that `jos\\u00e9@…` inside a JSON document is found like any other.

Not found: what was encoded otherwise (base64, URL escapes but %40) or cut into pieces over several attributes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import re2

from otel_lightning.app.errors import ConfigError

_Span = tuple[int, int]
REDACTED = "[redacted]"
MAX_LAYERS = 4  # JSON in JSON in JSON in JSON: no instrumentation nests deeper
MAX_MATCHES = 1000  # each search may read the rest of the text once: beyond this, the whole text goes instead
_ESCAPE = re.compile(
    r'\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\(["\\/bfnrt])'
)
_SIMPLE = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

EMAIL = r"[\pL\pN._+\-]+(?:@|%40)[\pL\pN\-]+(?:\.[\pL\pN\-]+)*\.\pL{2,}"
# International with + or 00, North American with separators, national with a leading 0 and a separator. Bare runs of
# digits are ids far more often than they are phone numbers, and are left.
PHONE = (
    r"(?:\+[1-9]\d{0,2}|\b00[1-9]\d{0,2}[ .\-/])(?:[ .\-/]?\(?\d{1,5}\)?){2,6}"
    r"|(?:\b1[ .\-])?(?:\(\d{3}\) ?|\b\d{3}[ .\-])\d{3}[ .\-]\d{4}\b"
    r"|\(?\b0\d{2,5}\)?[ /\-]\d{3,4}(?:[ \-]?\d{2,5}){0,3}\b"
)
CARD = r"\d(?:[ \-]?\d){12,}"
# Not a bare `token`: lists of sampled tokens call each of theirs so.
SECRET_NAME = r"(?:api|access|secret|private|auth)[_\-]?key|(?:client[_\-]?)?secret|(?:access|auth|api|refresh|id)[_\-]?token|password|passwd"
SECRET = "|".join(
    (
        r"\bsk-[A-Za-z0-9_\-]{16,}",  # OpenAI, Anthropic and those who copied them
        r"\b(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,}",  # Stripe
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
        r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_\-]{20,}",
        r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}",  # Slack
        r"\bAIza[0-9A-Za-z_\-]{30,}",  # Google
        r"\bhf_[A-Za-z0-9]{20,}",  # Hugging Face
        r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*",  # JSON web tokens
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s]*-----END [A-Z ]*PRIVATE KEY-----|[A-Za-z0-9+/=\s]*)",
        r"(?i)\bbearer +[A-Za-z0-9._~+/\-]{16,}=*",
        rf"(?i)(?:{SECRET_NAME})\b[\"']?\s*[:=]\s*[\"']?[^\s\"',;}}{{\[][^\s\"',;}}{{]{{7,}}",
    )
)
# First digits and lengths that card networks hand out.
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01]|720)\d{12,13}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}"
)


def _any(text: str, match: Any) -> Iterator[_Span]:
    yield match.span()


def _phones(text: str, match: Any) -> Iterator[_Span]:
    start, end = match.span()
    digits = sum(char.isdigit() for char in match.group())
    before, after = text[start - 1 : start], text[end : end + 1]
    # 3.0123 456 is a fraction and a number; 0625-7505 between dashes and letters is a piece of a UUID.
    alone = before not in (".", ",") and not _is_joined(before) and not _is_joined(after)
    if 7 <= digits <= 15 and (alone or match.group()[0] == "+"):
        yield start, end


def _is_joined(char: str) -> bool:
    return char.isalnum() or char in ("-", "_") if char else False


def _cards(text: str, match: Any) -> Iterator[_Span]:
    """Runs of 13 to 19 digits with an issuer's prefix and a right check digit; separators may group them."""
    start = match.start()
    groups = [(start + group.start(), start + group.end()) for group in re.finditer(r"\d+", match.group())]
    taken = 0
    for first in range(len(groups)):
        if groups[first][0] < taken:
            continue
        digits = ""
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > 19:
                break
            if _ISSUERS.fullmatch(digits) and luhn(digits):
                taken = groups[last][1]
                yield groups[first][0], taken
                break


def luhn(digits: str) -> bool:
    """True when the last digit checks the others, as on every payment card."""
    total = 0
    for index, char in enumerate(reversed(digits)):
        number = int(char) * (1 + index % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


NAMED: dict[str, tuple[str, Callable[[str, Any], Iterator[_Span]]]] = {
    "email": (EMAIL, _any),
    "phone": (PHONE, _phones),
    "card": (CARD, _cards),
    "secret": (SECRET, _any),
}


def compile_pattern(name: str, pattern: str) -> Any:
    """`pattern` as RE2 knows it; ConfigError in one line when it does not, or when it would match nothing at all."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args else "syntax"
        raise ConfigError(
            f"redact.patterns.{name} is no pattern that can run in linear time ({why}); "
            "use RE2 syntax: no look-around, no back-references"
        ) from None
    if compiled.search("") is not None:
        raise ConfigError(f"redact.patterns.{name} matches the empty text; make it ask for something")
    return compiled


class Finder:
    """Finds and replaces what the rules name. `names` are in order of precedence."""

    def __init__(self, named: Iterable[str] = (), own: Mapping[str, str] | None = None) -> None:
        own = own or {}
        rules = [(name, *NAMED[name]) for name in named] + [(name, text, _any) for name, text in own.items()]
        self._rules = [(name, compile_pattern(name, text), spans) for name, text, spans in rules]
        self.names = [name for name, _, _ in self._rules]
        self.has_own = bool(own)
        # One search over many texts at once says that none of them holds anything, which is the usual case.
        anchored = any(anchor in text for text in own.values() for anchor in (r"\A", r"\z"))
        self._whole = None if anchored else "|".join(f"(?:{text})" for _, text, _ in rules)
        self._any = compile_pattern("any", f"(?m){self._whole}") if self._whole else None

    def __bool__(self) -> bool:
        return bool(self._rules)

    def may_occur(self, texts: list[str]) -> bool:
        """False when no text of `texts` holds anything; True when one of them may."""
        if self._any is None:
            return bool(self._rules)
        joined = "\n\0\n".join(texts)
        return any(self._any.search(layer) is not None for layer in _layers(joined))

    def occurs(self, text: str) -> bool:
        """Whether any rule finds something in `text`, as it stands or behind JSON escapes."""
        return any(True for layer in _layers(text) for _ in self._spans(layer))

    def replace(self, text: str) -> str:
        """`text` with everything found replaced by `[rule]`; the same object when nothing was.

        JSON stays JSON. What cannot be replaced piece by piece goes as a whole: `[redacted]`.
        """
        if not self.occurs(text):
            return text
        stripped = text.lstrip()
        replaced = self._in_json(text) if stripped[:1] in ("{", "[", '"') else None
        if replaced is None or self.occurs(self._without_marks(replaced)):
            replaced = self._in_text(text if replaced is None else replaced)
        return REDACTED if self.occurs(self._without_marks(replaced)) else replaced

    def named_value(self, name: str, value: str) -> str:
        """`replace` for a value that its name may give away: the `hunter2` of `password`."""
        replaced = self.replace(value)
        if replaced is value and names_a_secret(name) and self.occurs(f"{name}={value}"):
            return REDACTED
        return replaced

    def _without_marks(self, text: str) -> str:
        for name in (*self.names, "redacted"):
            text = text.replace(f"[{name}]", " ")
        return text

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        for name, pattern, spans in self._rules:
            for number, match in enumerate(pattern.finditer(text)):
                if number == MAX_MATCHES:
                    yield 0, len(text), "redacted"
                    return
                for start, end in spans(text, match):
                    if end > start:
                        yield start, end, name

    def _in_text(self, text: str) -> str:
        found = list(self._spans(text))
        offsets: list[int] | None = None
        layer = text
        for _ in range(MAX_LAYERS):
            if "\\" not in layer:
                break
            layer, inner = _unescaped(layer)
            offsets = inner if offsets is None else [offsets[index] for index in inner]
            found += [(offsets[start], offsets[end], name) for start, end, name in self._spans(layer)]
        pieces: list[str] = []
        at = 0
        for start, end, name in sorted(found, key=lambda item: (item[0], -item[1])):
            if start >= at:
                pieces += (text[at:start], f"[{name}]")
            at = max(at, end)
        pieces.append(text[at:])
        return "".join(pieces)

    def _in_json(self, text: str) -> str | None:
        try:
            value = json.loads(text)
            changed = self._walk(value)
        except (ValueError, RecursionError):
            return None
        return text_of(changed)

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.replace(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            text = number_text(value)
            replaced = self.replace(text)
            return value if replaced is text else replaced
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        return {
            self.replace(key): self.named_value(key, item) if isinstance(item, str) else self._walk(item)
            for key, item in value.items()
        }


@lru_cache(maxsize=4096)
def names_a_secret(name: str) -> bool:
    """Whether a value under this name is worth a look together with the name."""
    return re.search(rf"(?i)(?:{SECRET_NAME})$", name) is not None


def number_text(number: float) -> str:
    """A number as a person would write it, since a card number may be sent as one."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def text_of(value: Any) -> str:
    """Plain Python as compact JSON that is valid UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def _layers(text: str) -> Iterator[str]:
    yield text
    for _ in range(MAX_LAYERS):
        if "\\" not in text:
            return
        unescaped = _ESCAPE.sub(_character, text)
        if unescaped == text:
            return
        text = unescaped
        yield text


def _unescaped(text: str) -> tuple[str, list[int]]:
    """`text` with one layer of JSON escapes undone, and where each of its characters (and its end) was."""
    pieces: list[str] = []
    offsets: list[int] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        pieces += (text[at : match.start()], _character(match))
        offsets += range(at, match.start())
        offsets.append(match.start())
        at = match.end()
    pieces.append(text[at:])
    offsets += range(at, len(text) + 1)
    return "".join(pieces), offsets


def _character(match: re.Match[str]) -> str:
    high, low, code, simple = match.groups()
    if simple is not None:
        return _SIMPLE.get(simple, simple)
    if high is not None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    number = int(code, 16)
    return "\ufffd" if 0xD800 <= number <= 0xDFFF else chr(number)
