"""Where telemetry goes and what is spoken there: the protocol follows the port, and where the port says nothing, a probe.

Exporters are made when the first batch leaves, in the thread that sends it: an agent's start never waits for a network.
Everything else (headers, certificates, compression, timeouts, endpoints of one signal) is what the OTEL_EXPORTER_OTLP_*
variables say, read by OpenTelemetry's own exporters.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

HTTP, GRPC = "http/protobuf", "grpc"
PROBE_TIMEOUT_S = 0.5
# The HTTP/2 connection preface and an empty SETTINGS frame: gRPC answers with a SETTINGS frame, HTTP/1 with "HTTP/1.1 4xx".
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Of a URL, or of the `host:port` that gRPC users write; port 0 when there is none to be found."""
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        port = {"https": 443, "http": 80}.get(parts.scheme, 4317)
    return parts.hostname or "localhost", port


def reachable(endpoint: str, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether anything listens there."""
    try:
        with socket.create_connection(host_and_port(endpoint), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def spoken(endpoint: str, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """What the listener itself speaks; None when nobody answers or nothing can be told (TLS)."""
    if endpoint.startswith("https://"):
        return None
    try:
        with socket.create_connection(host_and_port(endpoint), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(PREFACE)
            answer = connection.recv(16)
    except (OSError, ValueError):
        return None
    if answer.startswith(b"HTTP/1"):
        return HTTP
    if len(answer) >= 4 and answer[3] == 4:  # an HTTP/2 frame of type SETTINGS
        return GRPC
    return None


def by_port(endpoint: str) -> str | None:
    """What the registered ports mean."""
    return {4317: GRPC, 4318: HTTP}.get(host_and_port(endpoint)[1])


def protocol(signal: str, endpoint: str) -> str:
    """What to speak: what the listener speaks if it can be told, else what the user says, else what the port means."""
    said = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    heard = spoken(endpoint)
    chosen = heard or said or by_port(endpoint) or (HTTP if "//" in endpoint else GRPC)
    return GRPC if chosen.strip() == GRPC else HTTP


def endpoint_of(signal: str, default: str) -> str:
    """The base or signal endpoint that the exporter of this signal will use."""
    return (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or default
    )


def exporter(signal: str, endpoint: str | None = None) -> Any:
    """OpenTelemetry's own exporter for TRACES, LOGS or METRICS. `endpoint` names a base URL instead of the environment's."""
    from otel_lightning.instrumentation.settings import DEFAULT_ENDPOINT

    where = endpoint or endpoint_of(signal, DEFAULT_ENDPOINT)
    grpc = protocol(signal, where) == GRPC
    named = any(os.environ.get(key) for key in (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
    options: dict[str, Any] = {}
    if endpoint is not None or not named:
        options["endpoint"] = where if grpc else f"{where.rstrip('/')}/v1/{signal.lower()}"
    if grpc and not where.startswith("https://") and "OTEL_EXPORTER_OTLP_INSECURE" not in os.environ:
        options["insecure"] = True
    return _Quieted(_classes(signal, grpc)(**options))


def _classes(signal: str, grpc: bool) -> Any:
    if signal == "TRACES":
        if grpc:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

            return GrpcSpans
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter
    if signal == "LOGS":
        if grpc:
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs

            return GrpcLogs
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

        return OTLPLogExporter
    if grpc:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics

        return GrpcMetrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter


class _Quiet(threading.local, logging.Filter):
    """What OpenTelemetry's exporters would say in pages while they run for us is said in one line at exit."""

    on = False

    def __init__(self) -> None:
        logging.Filter.__init__(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.on


quiet = _Quiet()


class _Quieted:
    """An exporter of ours whose complaints stay out of the application's log."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if not isinstance(logger, logging.Logger) or not name.startswith("opentelemetry.exporter."):
                continue
            if quiet not in logger.filters:
                logger.addFilter(quiet)

    def export(self, *arguments: Any, **options: Any) -> Any:
        before, quiet.on = quiet.on, True
        try:
            return self._inner.export(*arguments, **options)
        finally:
            quiet.on = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
