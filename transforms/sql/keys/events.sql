-- What each log record names: its trace, a rollout, a session, a conversation, a response id, a tool call.
-- grain: one row per (node, kind, key, file); a node is a record (e:content hash), `rows` 1 on its own key, else 0
-- kind: map
-- Kinds as in spans.sql and found.sql; q asks for a tool call. A record's own key is v for an evaluation, which changes rewards
-- and nothing else, and e for any other.
with

marked as (
    select
        'e:' || content_sha256 as node,
        file,
        trace_id,
        attributes_str['lightning.target.trace_id'] as target_trace_id,
        coalesce(attributes_str['lightning.rollout.id'], resource_attributes ->> '$."lightning.rollout.id"') as rollout_id,
        attributes_str['session.id'] as session_id,
        attributes_str['gen_ai.conversation.id'] as conversation_id,
        attributes_str['lightning.target.response_id'] as target_response_id,
        coalesce(attributes_str['lightning.target.tool_call_id'], attributes_str['gen_ai.tool.call.id']) as tool_call_id,
        coalesce(event_name, attributes_str['event.name']) = 'gen_ai.evaluation.result' as evaluation,
        attributes_str['gen_ai.response.id'] as response_id
    from events
    where coalesce(event_name, attributes_str['event.name']) like 'gen_ai.%' or event_name like 'lightning.%'
),

named as (
    select node, file, 't' as kind, trace_id as name, 0 as rows from marked where trace_id is not null
    union all
    select node, file, 't', target_trace_id, 0 from marked where target_trace_id is not null
    union all
    select node, file, 'r', rollout_id, 0 from marked where rollout_id is not null
    union all
    select node, file, 's', session_id, 0 from marked where session_id is not null
    union all
    select node, file, 'c', conversation_id, 0 from marked where conversation_id is not null
    union all
    -- A reward may name a conversation where a span has a session of that name, and the other way about.
    select node, file, 's', conversation_id, 0 from marked where evaluation and conversation_id is not null
    union all
    select node, file, 'c', session_id, 0 from marked where evaluation and session_id is not null
    union all
    select node, file, 'p', target_response_id, 0 from marked where target_response_id is not null
    union all
    select node, file, 'p', response_id, 0 from marked where evaluation and response_id is not null
    union all
    select node, file, 'q', tool_call_id, 0 from marked where evaluation and tool_call_id is not null
    union all
    select node, file, case when evaluation then 'v' else 'e' end, node, 1 from marked
)

select node, kind, md5_number_lower(case kind when 'q' then 'k' else kind end || name) as key, file, max(rows) as rows
from named
group by node, kind, name, file
