"""What runs inside an agent's process: OpenTelemetry only, nothing heavy."""
