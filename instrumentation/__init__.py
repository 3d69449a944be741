"""What runs inside an agent's process or beside it: OpenTelemetry only, nothing heavy."""

from otel_lightning.instrumentation.emit import EmitError, Emitter

__all__ = ["EmitError", "Emitter"]
