-- Tool executions, tied to the call that asked: by tool call id, else to the nearest earlier call beside or above
-- that asked for a tool of that name.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- A tool span nested in another of the same tool is that execution seen twice: the outer one is kept.
with

executions as (
    select
        kinds.trace_id, kinds.span_id, kinds.parent_span_id,
        coalesce(kinds.tool_name, kinds.name) as name,
        kinds.tool_call_id, kinds.tool_arguments as arguments, kinds.tool_result as result,
        kinds.status_code = 2 as error,
        kinds.start_unix_nano, kinds.end_unix_nano,
        walk.agent_span_id, walk.scope_span_id
    from span_kinds as kinds
    join walk using (trace_id, span_id)
    left join span_kinds as parent on parent.trace_id = kinds.trace_id and parent.span_id = kinds.parent_span_id
    where kinds.span_kind = 'tool' and coalesce(parent.span_kind, '') <> 'tool'
),

asked as (
    select
        trace_id, span_id, end_unix_nano, agent_span_id,
        unnest(asked).id as tool_call_id, unnest(asked).choice as choice
    from call_facts
),

by_id as (
    select
        executions.trace_id, executions.span_id,
        asked.trace_id as call_trace_id, asked.span_id as call_span_id, asked.choice,
        row_number() over (
            partition by executions.trace_id, executions.span_id
            order by asked.trace_id <> executions.trace_id, asked.end_unix_nano <= executions.start_unix_nano desc,
                asked.end_unix_nano desc, asked.trace_id, asked.span_id
        ) as place
    from executions
    join asked using (tool_call_id)
),

by_place as (
    select
        executions.trace_id, executions.span_id,
        arg_max(calls.span_id, (calls.end_unix_nano, calls.span_id)) as call_span_id
    from executions
    join call_facts as calls
        on calls.trace_id = executions.trace_id
        and calls.agent_span_id is not distinct from executions.agent_span_id
        and calls.end_unix_nano <= executions.start_unix_nano
    where len(calls.asked) > 0
    group by all
)

select
    executions.trace_id, executions.span_id,
    coalesce(by_id.call_trace_id, case when by_place.call_span_id is not null then executions.trace_id end) as call_trace_id,
    coalesce(by_id.call_span_id, by_place.call_span_id) as call_span_id,
    coalesce(by_id.choice, 0) as call_choice,
    executions.tool_call_id, executions.name, arguments, result, error, start_unix_nano, end_unix_nano
from executions
left join by_id on by_id.trace_id = executions.trace_id and by_id.span_id = executions.span_id and by_id.place = 1
left join by_place on by_place.trace_id = executions.trace_id and by_place.span_id = executions.span_id
