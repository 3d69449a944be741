"""OTLP over gRPC: the three Export services, raw bytes in, so that nothing is parsed twice."""

from __future__ import annotations

import hmac
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from otel_lightning.app.errors import BusyError, LightningError, SenderError
from otel_lightning.app.listen import Address, bind
from otel_lightning.collector.answers import INVALID_ARGUMENT, UNAVAILABLE, export_response, status
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.ingest import Ingest

SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "spans",
    "opentelemetry.proto.collector.logs.v1.LogsService": "events",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}
# Each waits for one group commit; more only queue behind the same fsync. A call's message is read when a
# worker takes it, so this also bounds how many messages are in memory.
WORKERS = 8
ACK_TIMEOUT_S = 30.0
IDLE_MS = 300_000


class GrpcServer:
    """The gRPC listener. LightningError from the constructor when the port cannot be had."""

    def __init__(
        self,
        ingest: Ingest,
        config: CollectConfig,
        address: Address,
        token: str | None = None,
        tls: tuple[bytes, bytes] | None = None,
        client_ca: bytes | None = None,
    ) -> None:
        self._ingest = ingest
        self._token = f"Bearer {token}".encode() if token else None
        self.scheme = "http" if tls is None else "https"
        self._server = grpc.server(
            futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", config.max_body_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", config.max_connections),
                # A peer that says nothing is let go; one that is gone without a word is noticed.
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.keepalive_time_ms", IDLE_MS // 2),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        for service, signal in SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(
                self._export(signal), request_deserializer=None, response_serializer=None
            )
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        bind(address).close()  # says in one line what is wrong with the address, where grpc would not
        try:
            if tls is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(
                    str(address), grpc.ssl_server_credentials([tls], client_ca, client_ca is not None)
                )
        except RuntimeError as error:
            raise LightningError(f"cannot listen on {address} ({error})") from None
        self.address = Address(address.host, port)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """Stop accepting, let open requests finish."""
        self._server.stop(grace=10).wait()

    def _export(self, signal: str) -> Any:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            self._authorize(context)
            try:
                accepted = self._ingest.acceptance.protobuf(signal, body)
            except SenderError as error:
                self._ingest.count_refusal("grpc_invalid_argument")
                details = status(INVALID_ARGUMENT, str(error)).SerializeToString()
                context.set_trailing_metadata((("grpc-status-details-bin", details),))
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if accepted.rows:
                try:
                    self._ingest.submit(accepted).result(ACK_TIMEOUT_S)
                except (BusyError, futures.TimeoutError) as error:
                    _unavailable(context, str(error) or "the disk does not keep up; send again")
            self._ingest.count_rejected(accepted.rejected)
            return export_response(accepted).SerializeToString()

        return export

    def _authorize(self, context: grpc.ServicerContext) -> None:
        if self._token is None:
            return
        metadata = dict(context.invocation_metadata())
        if not hmac.compare_digest(str(metadata.get("authorization", "")).encode(), self._token):
            self._ingest.count_refusal("grpc_unauthenticated")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed: set OTEL_EXPORTER_OTLP_HEADERS")


def _unavailable(context: grpc.ServicerContext, text: str) -> None:
    """UNAVAILABLE with RetryInfo under both keys that exporters read."""
    info = RetryInfo(retry_delay=Duration(seconds=1))
    details = Status(code=UNAVAILABLE, message=text)
    details.details.add().Pack(info)
    context.set_trailing_metadata(
        (
            ("google.rpc.retryinfo-bin", info.SerializeToString()),
            ("grpc-status-details-bin", details.SerializeToString()),
        )
    )
    context.abort(grpc.StatusCode.UNAVAILABLE, text)
