"""Traces from elsewhere: files in, OTLP requests out, the collector's own log behind."""
