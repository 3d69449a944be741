"""Small things about protobuf messages that several parts need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def keep(items: Any, wanted: Callable[[Any], bool]) -> bool:
    """Remove from a repeated field what is not wanted, in linear time; True when something was."""
    kept = [item for item in items if wanted(item)]
    if len(kept) == len(items):
        return False
    del items[:]
    items.extend(kept)
    return True


def add_reason(reason: str, more: str) -> str:
    """One text of two reasons, either of which may be empty."""
    return "; ".join(part for part in (reason, more) if part)
