"""What OTLP answers look like: export responses and google.rpc.Status bodies, in the request's encoding."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from orjson import dumps

from otel_lightning.collector.check import Accepted

RESPONSES = {
    "spans": (ExportTraceServiceResponse, "rejected_spans"),
    "events": (ExportLogsServiceResponse, "rejected_log_records"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
}
INVALID_ARGUMENT, UNAVAILABLE = 3, 14
# HTTP status -> google.rpc.Code
STATUS_CODES = {
    400: INVALID_ARGUMENT,
    401: 16,
    403: 7,
    404: 12,
    405: 12,
    408: 4,
    413: 8,
    415: 3,
    431: 8,
    503: UNAVAILABLE,
}


def export_response(accepted: Accepted) -> Message:
    """Success; `partial_success` is set only when something was rejected."""
    message, field = RESPONSES[accepted.signal]
    response = message()
    if accepted.rejected:
        setattr(response.partial_success, field, accepted.rejected)
        response.partial_success.error_message = accepted.reason
    return response


def status(code: int, text: str) -> Status:
    """An error body; what is wrong with a request is told in the place that OTLP gives for it, too."""
    found = Status(code=code, message=text)
    if code == INVALID_ARGUMENT:
        found.details.add().Pack(BadRequest(field_violations=[BadRequest.FieldViolation(description=text)]))
    return found


def encode(message: Message, is_json: bool) -> bytes:
    """`message` in the encoding the sender used."""
    return dumps(MessageToDict(message)) if is_json else message.SerializeToString()
