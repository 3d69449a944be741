-- Tool executions, tied to the call that asked: by tool call id, else to the nearest earlier call beside or above
-- that asked for a tool of that name.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- A tool span nested in another of the same tool is that execution seen twice: the outer one is kept.
with

executions as (
    select
        spans.trace_id, spans.span_id, spans.parent_span_id,
        coalesce(spans.tool_name, spans.attributes_str['tool.name'], spans.name) as name,
        coalesce(
            spans.tool_call_id,
            case when json_valid(spans.attributes_str['output.value']) then coalesce(
                spans.attributes_str['output.value'] ->> '$.data.tool_call_id',
                spans.attributes_str['output.value'] ->> '$.tool_call_id'
            ) end
        ) as tool_call_id,
        coalesce(spans.attributes_str['gen_ai.tool.call.arguments'], spans.attributes_json['gen_ai.tool.call.arguments'],
            spans.attributes_str['input.value']) as arguments,
        coalesce(
            case when json_valid(spans.attributes_str['output.value']) then spans.attributes_str['output.value'] ->> '$.data.content' end,
            spans.attributes_str['gen_ai.tool.call.result'], spans.attributes_json['gen_ai.tool.call.result'],
            spans.attributes_str['output.value']
        ) as result,
        spans.status_code = 2 as error,
        spans.start_unix_nano, spans.end_unix_nano,
        walk.agent_span_id, walk.scope_span_id
    from spans_unique as spans
    join span_kinds as kinds using (trace_id, span_id)
    join walk using (trace_id, span_id)
    left join span_kinds as parent on parent.trace_id = spans.trace_id and parent.span_id = spans.parent_span_id
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
