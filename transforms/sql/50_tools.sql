-- The table `tools`: one tool execution, in the episode of the call that asked for it, else of its trace.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
with

of_trace as (
    select trace_id, min(rollout_id) as rollout_id
    from calls
    where rollout_id is not null
    group by trace_id
    having count(distinct rollout_id) = 1
)

select
    facts.trace_id, facts.span_id, coalesce(calls.rollout_id, of_trace.rollout_id) as rollout_id,
    facts.call_trace_id, facts.call_span_id, facts.call_choice, facts.tool_call_id, facts.name, facts.arguments,
    facts.result, facts.error, facts.start_unix_nano, facts.end_unix_nano
from tool_facts as facts
left join calls on calls.trace_id = facts.call_trace_id and calls.span_id = facts.call_span_id
left join of_trace on of_trace.trace_id = facts.trace_id
