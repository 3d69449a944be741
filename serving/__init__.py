"""The model server: OpenAI-compatible, and a token record of every answer as OTLP."""
