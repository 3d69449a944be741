"""The OTLP sidecar: what it acknowledges is on disk, and in Parquet soon after."""
