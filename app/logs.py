"""Logging as every command of ours does it: to stderr, one line a record, never prompt content."""

from __future__ import annotations

import logging
import sys


def set_up(name: str, level: str = "INFO") -> logging.Logger:
    """The logger `name`, writing `HH:MM:SS level name message` to stderr; safe to call twice."""
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger
