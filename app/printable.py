"""What others wrote, made fit for a terminal or a spreadsheet: text that is seen and does nothing."""

from __future__ import annotations

import re

# Control characters steer a terminal, bidirectional overrides show another text than there is.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """`text` with everything that would act on a terminal spelt out: ESC becomes `\\x1b`."""
    return _ACTING.sub(_spelt, text)


def cell(text: str) -> str:
    """`text` as a CSV field that no spreadsheet takes for a formula: one that looks like one gets a leading quote."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _spelt(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
