"""What runs inside an agent's process or beside it: OpenTelemetry only, nothing heavy, nothing before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_lightning.instrumentation.emit import EmitError, Emitter
    from otel_lightning.instrumentation.rewards import feedback, reward
    from otel_lightning.instrumentation.rollouts import rollout
    from otel_lightning.instrumentation.start import instrument

__all__ = ["EmitError", "Emitter", "feedback", "instrument", "reward", "rollout"]

_HOME = {
    "EmitError": "emit",
    "Emitter": "emit",
    "feedback": "rewards",
    "instrument": "start",
    "reward": "rewards",
    "rollout": "rollouts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
