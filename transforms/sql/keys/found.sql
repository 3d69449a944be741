-- Keys that only the steps know: what stands in attributes, and what was said.
-- grain: one row per (node, kind, key)
-- kind: bucket
-- Kinds as in spans.sql. Some join only what asks for them: k is a tool call and q asks for it; d: and its scope is a prompt of
-- one process, which a bare call of another scope beside it may repeat (b: and its scope asks); h is a prompt with its answer,
-- which a token record without another name may be of (g asks). The last two are kept by ten minutes, since intervals must
-- overlap (up to a day).
with

heard as (
    select
        trace_id, span_kind, scope_name, scope_span_id is null as bare, service_instance_id, talk_hash, answer_hash,
        unnest(range((start_unix_nano // 600_000_000_000)::bigint,
            least(end_unix_nano // 600_000_000_000, start_unix_nano // 600_000_000_000 + 143)::bigint + 1)) as part_of_day
    from llm_spans
    where talk_hash is not null and start_unix_nano > 0
),

unjoined as (
    select trace_id, span_id
    from llm_spans
    where span_kind = 'capture'
    except
    select capture_trace_id, capture_span_id from capture_joins where joined_by in ('response_id', 'traceparent')
),

named as (
    select trace_id as node, 's' as kind, session_id as name from llm_spans where session_id is not null
    union all
    select trace_id, 'c', conversation_id from llm_spans where conversation_id is not null
    union all
    select trace_id, 'r', explicit_rollout_id from llm_spans where explicit_rollout_id is not null
    union all
    select trace_id, 'p', response_id from llm_spans where response_id is not null
    union all
    select trace_id, 'p', previous_response_id from llm_spans where previous_response_id is not null
    union all
    select trace_id, 'i', service_instance_id
    from llm_spans
    where span_kind = 'llm' and scope_span_id is null and service_instance_id is not null
    union all
    select trace_id, 'k', unnest(asked).id from llm_spans where len(asked) > 0
    union all
    select trace_id, 'k', tool_call_id from tool_facts where tool_call_id is not null
    union all
    select trace_id, 'q', tool_call_id from tool_facts where tool_call_id is not null and call_trace_id is distinct from trace_id
    union all
    select trace_id, 'q', answers_tool_call_id from llm_spans where answers_tool_call_id is not null
    union all
    select
        trace_id, case when bare then 'b:' else 'd:' end || left(md5(scope_name), 16),
        service_instance_id || ' ' || talk_hash || part_of_day
    from heard
    where span_kind = 'llm' and service_instance_id is not null and scope_name is not null
    union all
    select trace_id, 'h', talk_hash || answer_hash || part_of_day from heard where span_kind = 'llm'
    union all
    select heard.trace_id, 'g', talk_hash || answer_hash || part_of_day
    from heard
    semi join unjoined using (trace_id)
    where span_kind = 'capture'
    union all
    select node, 't', target_trace_id from reward_records where target_trace_id is not null
    union all
    select node, 'r', target_rollout_id from reward_records where target_rollout_id is not null
    union all
    select node, 's', target_session_id from reward_records where target_session_id is not null
    union all
    select node, 'c', target_session_id from reward_records where target_session_id is not null
    union all
    select node, 'p', target_response_id from reward_records where target_response_id is not null
    union all
    select node, 'q', target_tool_call_id from reward_records where target_tool_call_id is not null
    union all
    select node, 'p', response_id from reward_records where response_id is not null
    union all
    select node, 'q', tool_call_id from reward_records where tool_call_id is not null
)

select distinct
    node, kind,
    md5_number_lower(case left(kind, 1) when 'q' then 'k' when 'b' then 'd' when 'g' then 'h' else left(kind, 1) end || name) as key
from named
where name is not null
