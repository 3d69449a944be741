-- What each log record names: its trace, a rollout, a session, a conversation, a response id, a tool call's trace.
-- grain: one row per distinct (node, key); a node is a record (e:content hash)
-- kind: map
with

marked as (
    select
        'e:' || content_sha256 as node,
        trace_id,
        attributes_str['lightning.target.trace_id'] as target_trace_id,
        coalesce(attributes_str['lightning.rollout.id'], resource_attributes ->> '$."lightning.rollout.id"') as rollout_id,
        attributes_str['session.id'] as session_id,
        attributes_str['gen_ai.conversation.id'] as conversation_id,
        attributes_str['lightning.target.response_id'] as target_response_id,
        case when coalesce(event_name, attributes_str['event.name']) = 'gen_ai.evaluation.result'
            then attributes_str['gen_ai.response.id'] end as response_id
    from events
    where coalesce(event_name, attributes_str['event.name']) like 'gen_ai.%' or event_name like 'lightning.%'
)

select distinct node, key
from (
    select node, 't:' || trace_id as key from marked where trace_id is not null
    union all
    select node, 't:' || target_trace_id from marked where target_trace_id is not null
    union all
    select node, 'r:' || rollout_id from marked where rollout_id is not null
    union all
    select node, 's:' || session_id from marked where session_id is not null
    union all
    select node, 'c:' || conversation_id from marked where conversation_id is not null
    union all
    select node, 'p:' || target_response_id from marked where target_response_id is not null
    union all
    select node, 'p:' || response_id from marked where response_id is not null
    union all
    select node, node from marked
)
