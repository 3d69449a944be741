-- Start and end of episodes, as whoever ran them announced it: `lightning.rollout.start` and `.end` records.
-- grain: one row per distinct record (a resent record is the same record)
-- kind: map
select distinct on (content_sha256)
    case when event_name = 'lightning.rollout.start' then 'start' else 'end' end as mark,
    coalesce(attributes_str['lightning.rollout.id'], resource_attributes ->> '$."lightning.rollout.id"') as rollout_id,
    greatest(coalesce(attributes_int['lightning.attempt'], 1), 1) as attempt,
    attributes_str['lightning.task.id'] as task_id,
    attributes_str['lightning.group.id'] as group_id,
    attributes_str['lightning.split'] as split,
    coalesce(attributes_str['lightning.target.trace_id'], trace_id) as trace_id,
    attributes_str['session.id'] as session_id,
    attributes_str['gen_ai.conversation.id'] as conversation_id,
    attributes_str['status'] as status,
    attributes_str['reason'] as reason,
    attributes_int['calls'] as calls,
    attributes_int['spans'] as spans,
    case when time_unix_nano > 0 then time_unix_nano else observed_unix_nano end as time_unix_nano
from events
where event_name in ('lightning.rollout.start', 'lightning.rollout.end')
    and coalesce(attributes_str['lightning.rollout.id'], resource_attributes ->> '$."lightning.rollout.id"') is not null
order by content_sha256, collector_id, seq
