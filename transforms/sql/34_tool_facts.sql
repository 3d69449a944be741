-- Tool executions, tied to the call that asked: by tool call id, else to the nearest earlier call beside or above
-- that asked for a tool of that name.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- A tool span nested in another of the same tool is that execution seen twice: the outer one is kept, with what it lacks.
with

nested as (
    select
        trace_id, parent_span_id as span_id,
        min(tool_call_id) as tool_call_id, min(tool_arguments) as arguments, min(tool_result) as result
    from span_kinds
    where span_kind = 'tool' and parent_span_id is not null
    group by trace_id, parent_span_id
    having count(*) = 1
),

executions as (
    select
        kinds.trace_id, kinds.span_id, kinds.parent_span_id,
        coalesce(kinds.tool_name, kinds.name) as name,
        coalesce(kinds.tool_call_id, nested.tool_call_id) as tool_call_id,
        coalesce(kinds.tool_arguments, nested.arguments) as arguments,
        coalesce(kinds.tool_result, nested.result) as result,
        kinds.status_code = 2 as error,
        kinds.start_unix_nano, kinds.end_unix_nano,
        walk.agent_span_id, walk.scope_span_id
    from span_kinds as kinds
    join walk using (trace_id, span_id)
    left join nested using (trace_id, span_id)
    left join span_kinds as parent on parent.trace_id = kinds.trace_id and parent.span_id = kinds.parent_span_id
    where kinds.span_kind = 'tool' and coalesce(parent.span_kind, '') <> 'tool'
),

asked as (
    select
        trace_id, span_id, end_unix_nano, agent_span_id,
        unnest(asked).id as tool_call_id, unnest(asked).choice as choice
    from call_facts
    where len(asked) > 0
),

-- By id: who asked in the same trace, the last to end before the tool starts; else anybody, by the same rule.
asked_here as (
    select trace_id as call_trace_id, tool_call_id, end_unix_nano, min((trace_id, span_id, choice)) as call
    from asked
    group by all
),

last_asked_here as (
    select call_trace_id, tool_call_id, arg_max(call, end_unix_nano) as call from asked_here group by all
),

asked_anywhere as (
    select tool_call_id, end_unix_nano, min((trace_id, span_id, choice)) as call
    from asked
    group by all
),

last_asked_anywhere as (
    select tool_call_id, arg_max(call, end_unix_nano) as call from asked_anywhere group by all
),

by_id as (
    select
        executions.trace_id, executions.span_id,
        coalesce(here.call, last_here.call, anywhere.call, last_anywhere.call) as call
    from (select * from executions where tool_call_id is not null) as executions
    asof left join asked_here as here
        on here.call_trace_id = executions.trace_id and here.tool_call_id = executions.tool_call_id
        and here.end_unix_nano <= executions.start_unix_nano
    left join last_asked_here as last_here
        on last_here.call_trace_id = executions.trace_id and last_here.tool_call_id = executions.tool_call_id
    asof left join asked_anywhere as anywhere
        on anywhere.tool_call_id = executions.tool_call_id and anywhere.end_unix_nano <= executions.start_unix_nano
    left join last_asked_anywhere as last_anywhere on last_anywhere.tool_call_id = executions.tool_call_id
),

-- Else by place: the last call of the same agent that ended before and asked for something.
askers as (
    select trace_id, coalesce(agent_span_id, '') as agent_span_id, end_unix_nano, max(span_id) as span_id
    from asked
    group by all
),

by_place as (
    select executions.trace_id, executions.span_id, askers.span_id as call_span_id
    from executions
    asof join askers
        on askers.trace_id = executions.trace_id and askers.agent_span_id = coalesce(executions.agent_span_id, '')
        and askers.end_unix_nano <= executions.start_unix_nano
)

select
    executions.trace_id, executions.span_id,
    coalesce(by_id.call[1], case when by_place.call_span_id is not null then executions.trace_id end) as call_trace_id,
    coalesce(by_id.call[2], by_place.call_span_id) as call_span_id,
    coalesce(by_id.call[3], 0) as call_choice,
    executions.tool_call_id, executions.name, arguments, result, error, start_unix_nano, end_unix_nano
from executions
left join by_id using (trace_id, span_id)
left join by_place using (trace_id, span_id)
