"""The columns of `spans`, `events` and `metrics`: the one place that names them.

Attributes are kept by type in maps; the scalars that every query needs are moved, by exact key, into
columns of their own (`MOVED`). A value of another type than its column's stays in its map.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"

STR, INT = "str", "int"
# attribute key -> (column, type of value that moves)
MOVED: dict[str, tuple[str, str]] = {
    "gen_ai.operation.name": ("operation", STR),
    "openinference.span.kind": ("oi_kind", STR),
    "gen_ai.provider.name": ("provider", STR),
    "gen_ai.request.model": ("request_model", STR),
    "gen_ai.response.model": ("response_model", STR),
    "llm.model_name": ("llm_model_name", STR),
    "gen_ai.response.id": ("response_id", STR),
    "session.id": ("session_id", STR),
    "gen_ai.conversation.id": ("conversation_id", STR),
    "user.id": ("user_id", STR),
    "gen_ai.agent.name": ("agent_name", STR),
    "gen_ai.tool.name": ("tool_name", STR),
    "gen_ai.tool.call.id": ("tool_call_id", STR),
    "gen_ai.usage.input_tokens": ("input_tokens", INT),
    "gen_ai.usage.output_tokens": ("output_tokens", INT),
    "lightning.rollout.id": ("rollout_id", STR),
    "lightning.task.id": ("task_id", STR),
    "lightning.group.id": ("group_id", STR),
    "lightning.split": ("split", STR),
    "lightning.attempt": ("attempt", INT),
    "lightning.capture": ("capture", STR),
    "lightning.policy.version": ("policy_version", STR),
    "lightning.logprobs.mode": ("logprobs_mode", STR),
    "lightning.tokenizer": ("tokenizer", STR),
    "lightning.span.seq": ("span_seq", INT),
    "lightning.span.count": ("span_count", INT),
    "lightning.content": ("content", STR),
    "lightning.target.trace_id": ("target_trace_id", STR),
    "lightning.target.span_id": ("target_span_id", STR),
    "lightning.target.response_id": ("target_response_id", STR),
    "lightning.target.tool_call_id": ("target_tool_call_id", STR),
    "lightning.target.choice": ("target_choice", INT),
    "lightning.reward.source": ("reward_source", STR),
    "lightning.reward.version": ("reward_version", STR),
    "lightning.reward.identifier": ("reward_identifier", STR),
}
# What no two rows share: a dictionary of such values is work and space for nothing.
WITHOUT_DICTIONARY = frozenset(
    {"seq", "received_unix_nano", "span_id", "start_unix_nano", "end_unix_nano", "response_id", "content_sha256"}
    | {"time_unix_nano", "observed_unix_nano", "attributes_dbl.key_value.value", "value"}
)
DICTIONARY_BYTES = 8 << 20  # agents send their history again with every call: of equal texts one is kept
ROW_GROUP_ROWS = 64 * 1024
PROMPT_TOKEN_IDS = "lightning.prompt.token_ids"
CHOICE_PREFIX = "lightning.choice."

SHARED = pa.dictionary(
    pa.int32(), pa.string()
)  # texts in memory, on their way to Parquet; nothing stored has this type
ATTRIBUTE_MAPS = [
    ("attributes_str", pa.map_(pa.string(), pa.string())),
    ("attributes_int", pa.map_(pa.string(), pa.int64())),
    ("attributes_dbl", pa.map_(pa.string(), pa.float64())),
    ("attributes_bool", pa.map_(pa.string(), pa.bool_())),
    ("attributes_json", pa.map_(pa.string(), pa.string())),
]
COMMON_HEAD = [
    ("collector_id", pa.string()),
    ("seq", pa.uint64()),
    ("received_unix_nano", pa.uint64()),
]
SCOPE = [
    ("service_name", pa.string()),
    ("service_instance_id", pa.string()),
    ("scope_name", pa.string()),
    ("scope_version", pa.string()),
]
CONTEXT = [
    *ATTRIBUTE_MAPS,
    ("resource_attributes", pa.string()),
    ("scope_attributes", pa.string()),
]
SCHEMA_URLS = [("resource_schema_url", pa.string()), ("scope_schema_url", pa.string())]

EVENT = pa.struct(
    [
        ("time_unix_nano", pa.uint64()),
        ("name", pa.string()),
        ("attributes", pa.string()),
        ("dropped_attributes_count", pa.uint32()),
    ]
)
LINK = pa.struct(
    [
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("trace_state", pa.string()),
        ("flags", pa.uint32()),
        ("attributes", pa.string()),
        ("dropped_attributes_count", pa.uint32()),
    ]
)
CHOICE = pa.struct([("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float64()))])

SPANS = pa.schema(
    [
        *COMMON_HEAD,
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("parent_span_id", pa.string()),
        ("trace_state", pa.string()),
        ("flags", pa.uint32()),
        ("name", pa.string()),
        ("kind", pa.int8()),
        ("start_unix_nano", pa.uint64()),
        ("end_unix_nano", pa.uint64()),
        ("status_code", pa.int8()),
        ("status_message", pa.string()),
        *SCOPE,
        *CONTEXT,
        ("events", pa.list_(EVENT)),
        ("links", pa.list_(LINK)),
        ("dropped_attributes_count", pa.uint32()),
        ("dropped_events_count", pa.uint32()),
        ("dropped_links_count", pa.uint32()),
        *SCHEMA_URLS,
        *((column, pa.string() if kind == STR else pa.int64()) for column, kind in MOVED.values()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("choices", pa.list_(CHOICE)),
    ],
    metadata={"lightning.schema": "spans", "lightning.schema_version": SCHEMA_VERSION},
)

EVENTS = pa.schema(
    [
        *COMMON_HEAD,
        *SCOPE,
        *CONTEXT,
        *SCHEMA_URLS,
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("flags", pa.uint32()),
        ("time_unix_nano", pa.uint64()),
        ("observed_unix_nano", pa.uint64()),
        ("event_name", pa.string()),
        ("severity_number", pa.int32()),
        ("severity_text", pa.string()),
        ("body", pa.string()),
        ("dropped_attributes_count", pa.uint32()),
        ("content_sha256", pa.string()),
    ],
    metadata={"lightning.schema": "events", "lightning.schema_version": SCHEMA_VERSION},
)

METRICS = pa.schema(
    [
        *COMMON_HEAD,
        *SCOPE,
        *CONTEXT,
        *SCHEMA_URLS,
        ("name", pa.string()),
        ("description", pa.string()),
        ("unit", pa.string()),
        ("type", pa.string()),
        ("temporality", pa.string()),
        ("monotonic", pa.bool_()),
        ("start_unix_nano", pa.uint64()),
        ("time_unix_nano", pa.uint64()),
        ("value", pa.float64()),
        ("point", pa.string()),
        ("content_sha256", pa.string()),
    ],
    metadata={"lightning.schema": "metrics", "lightning.schema_version": SCHEMA_VERSION},
)

SCHEMAS = {"spans": SPANS, "events": EVENTS, "metrics": METRICS}
