-- What each episode was asked: the first user message of its first call that has one.
-- grain: one row per rollout_id
-- kind: bucket
select rollout_id, messages.first_user
from (
    select
        steps.rollout_id,
        arg_min((facts.user_trace_id, facts.user_span_id), steps.step) as said_in
    from call_facts as facts
    join call_steps as steps using (trace_id, span_id)
    where facts.heard_user and steps.rollout_id is not null
    group by steps.rollout_id
)
join messages on messages.trace_id = said_in[1] and messages.span_id = said_in[2]
where messages.first_user is not null
