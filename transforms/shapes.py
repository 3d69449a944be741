"""Empty relations with the columns of the lake's tables, for a lake that has no file of a signal yet; and what a configuration becomes."""

from __future__ import annotations

STRINGS = {
    "spans": (
        "collector_id trace_id span_id parent_span_id trace_state name status_message service_name service_instance_id "
        "scope_name scope_version resource_attributes scope_attributes resource_schema_url scope_schema_url operation "
        "oi_kind provider request_model response_model llm_model_name response_id session_id conversation_id user_id "
        "agent_name tool_name tool_call_id rollout_id task_id group_id split capture policy_version logprobs_mode "
        "tokenizer content target_trace_id target_span_id target_response_id target_tool_call_id reward_source "
        "reward_version reward_identifier"
    ),
    "events": (
        "collector_id service_name service_instance_id scope_name scope_version resource_attributes scope_attributes "
        "resource_schema_url scope_schema_url trace_id span_id event_name severity_text body content_sha256"
    ),
    "metrics": (
        "collector_id service_name service_instance_id scope_name scope_version resource_attributes scope_attributes "
        "resource_schema_url scope_schema_url name description unit type temporality point content_sha256"
    ),
}
OTHERS = {
    "spans": {
        "seq": "ubigint", "received_unix_nano": "ubigint", "flags": "uinteger", "kind": "tinyint",
        "start_unix_nano": "ubigint", "end_unix_nano": "ubigint", "status_code": "tinyint",
        "dropped_attributes_count": "uinteger", "dropped_events_count": "uinteger", "dropped_links_count": "uinteger",
        "input_tokens": "bigint", "output_tokens": "bigint", "attempt": "bigint", "span_seq": "bigint",
        "span_count": "bigint", "target_choice": "bigint", "prompt_token_ids": "integer[]",
        "choices": "struct(token_ids integer[], logprobs double[])[]",
        "events": "struct(time_unix_nano ubigint, name varchar, attributes varchar, dropped_attributes_count uinteger)[]",
        "links": "struct(trace_id varchar, span_id varchar, trace_state varchar, flags uinteger, attributes varchar, dropped_attributes_count uinteger)[]",
    },
    "events": {
        "seq": "ubigint", "received_unix_nano": "ubigint", "flags": "uinteger", "time_unix_nano": "ubigint",
        "observed_unix_nano": "ubigint", "severity_number": "integer", "dropped_attributes_count": "uinteger",
    },
    "metrics": {
        "seq": "ubigint", "received_unix_nano": "ubigint", "monotonic": "boolean", "start_unix_nano": "ubigint",
        "time_unix_nano": "ubigint", "value": "double",
    },
}  # fmt: skip
MAPS = {
    "attributes_str": "map(varchar, varchar)",
    "attributes_int": "map(varchar, bigint)",
    "attributes_dbl": "map(varchar, double)",
    "attributes_bool": "map(varchar, boolean)",
    "attributes_json": "map(varchar, varchar)",
}

# What a run makes of its configuration before the first step.
CONFIGURED = {
    "reward_names": "name varchar, weight double, combine varchar, is_outcome boolean",
    "reward_labels": "name varchar, label varchar, value double",
    "prices": "model varchar, starts boolean, input decimal(18, 9), output decimal(18, 9)",
}


def empty_relation(signal: str) -> str:
    """A select without rows and with the columns of `spans`, `events` or `metrics`."""
    types = {**dict.fromkeys(STRINGS[signal].split(), "varchar"), **OTHERS[signal], **MAPS}
    return "select " + ", ".join(f"null::{kind} as {name}" for name, kind in types.items()) + " where false"
