"""Logging as every command of ours does it: to stderr, one line a record, never prompt content."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal


def set_up(name: str, level: str = "INFO", form: Literal["text", "json"] = "text") -> logging.Logger:
    """The logger `name`, writing to stderr; safe to call twice.

    `HH:MM:SS level name message` for people, one JSON object a line for programs.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = _Handler(sys.stderr)
        plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        handler.setFormatter(_Json() if form == "json" else plain)
        logger.addHandler(handler)
        logger.propagate = False
    return logger


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Clears a status line first, where one may be."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
        super().emit(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Only where it happened: the text of an exception may quote what was being processed.
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)
