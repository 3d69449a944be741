"""What plain `opentelemetry-instrument` finds by entry point: a distro and a configurator with our choices and defaults."""

from __future__ import annotations

from typing import Any

from opentelemetry.instrumentation.distro import BaseDistro

from otel_lightning.instrumentation import start


class Distro(BaseDistro):
    """Fills in the environment, and leaves instrumentors to `start`, which loads one per library when it is imported."""

    def _configure(self, **kwargs: Any) -> None:
        start.arm()

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Not now: see choice.py."""


class Configurator:
    """Sets up providers and exporters."""

    def configure(self, **kwargs: Any) -> None:
        """Called once by opentelemetry-instrument."""
        start.arm()
        start.begin()
