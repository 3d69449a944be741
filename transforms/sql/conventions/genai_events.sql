-- OpenTelemetry GenAI up to 1.36: content travels in log records of the call's span, one record a message.
-- grain: one row per (trace_id, span_id, side, n, part): the same columns in every file of this folder
-- kind: bucket
-- The record's own time is often unset; records of a call are ordered by observed time, then by place in the batch.
with

records as (
    select distinct on (content_sha256)
        trace_id, span_id, body, observed_unix_nano, collector_id, seq,
        coalesce(event_name, attributes_str['event.name']) as event_name
    from events
    where coalesce(event_name, attributes_str['event.name']) in (
        'gen_ai.system.message', 'gen_ai.user.message', 'gen_ai.assistant.message', 'gen_ai.tool.message', 'gen_ai.choice'
    )
    order by content_sha256, collector_id, seq
),

messages as (
    select
        records.trace_id, records.span_id, body,
        case when event_name = 'gen_ai.choice' then 'output' else 'input' end as side,
        case when event_name = 'gen_ai.choice' then coalesce(body -> '$.message', '{}'::json) else body end as message,
        case event_name
            when 'gen_ai.choice' then 'assistant'
            else split_part(event_name, '.', 2)
        end as role,
        row_number() over (
            partition by records.trace_id, records.span_id, event_name = 'gen_ai.choice'
            order by coalesce((body ->> '$.index')::int, 0), observed_unix_nano, records.collector_id, records.seq
        ) - 1 as n
    from records
    join span_kinds as kinds using (trace_id, span_id)
    where kinds.span_kind = 'llm' and kinds.convention = 'genai_events'
),

calls as (
    select
        trace_id, span_id, side, n,
        list({
            id: call ->> '$.id', name: call ->> '$.function.name',
            arguments: case json_type(call, '$.function.arguments') when 'VARCHAR' then call ->> '$.function.arguments'
                else coalesce(json_extract(call, '$.function.arguments')::varchar, '{}') end
        } order by m) as tool_calls
    from (
        select trace_id, span_id, side, n,
            unnest(coalesce(message -> '$.tool_calls', body -> '$.tool_calls')::json[]) as call,
            generate_subscripts(coalesce(message -> '$.tool_calls', body -> '$.tool_calls')::json[], 1) as m
        from messages
    )
    group by all
)

select
    messages.trace_id, messages.span_id, messages.side, messages.n::int as n, 0 as part,
    case when messages.side = 'output' then coalesce((body ->> '$.index')::int, messages.n) end::int as choice,
    messages.role,
    case json_type(message, '$.content')
        when 'VARCHAR' then message ->> '$.content'
        when 'ARRAY' then list_aggregate(list_transform((message -> '$.content')::json[], lambda x: coalesce(x ->> '$.text', '')), 'string_agg', '')
    end as text,
    coalesce(calls.tool_calls, []) as tool_calls,
    message ->> '$.id' as tool_call_id,
    body ->> '$.finish_reason' as finish_reason
from messages
left join calls using (trace_id, span_id, side, n)
