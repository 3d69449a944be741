"""What can go wrong and whose turn it is to act.

    LightningError            the user must change something; exit code 1
    ├── UsageError            the command line itself is off; exit code 2
    ├── ConfigError           a configuration file or value is off; names file and key
    ├── SenderError           what a client sent cannot be accepted, now or later
    ├── BusyError             we are full or not ready; trying again helps
    └── StorageError          our disk failed; nothing is acknowledged until it works again

Every message is one line that says what happened, with values, and what to do about it. It never
holds prompt content.
"""

from __future__ import annotations


class LightningError(Exception):
    """A failure that a person can act on; printed as one line, without a traceback."""

    exit_code = 1


class UsageError(LightningError):
    """The command line is wrong."""

    exit_code = 2


class ConfigError(LightningError):
    """A configuration is wrong; the message names the file, the key and, if any, the nearest right name."""


class SenderError(LightningError):
    """What was sent is wrong and will be wrong again."""


class BusyError(LightningError):
    """Refused for now; the same request may succeed later."""


class StorageError(LightningError):
    """The disk under us failed or is full."""
