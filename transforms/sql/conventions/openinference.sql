-- OpenInference: messages are flat, indexed attributes (llm.input_messages.N.message.…); indexes may have gaps.
-- grain: one row per (trace_id, span_id, side, n, part): the same columns in every file of this folder
-- kind: bucket
-- side: input or output; n orders the messages of a side; choice is the answer's index on the output side.
-- The Responses API gives each output item a message of its own: they are parts of one choice.
with

entries as (
    select spans.trace_id, spans.span_id, unnest(map_entries(spans.attributes_str)) as entry
    from spans_unique as spans
    join span_kinds as kinds using (trace_id, span_id)
    where kinds.span_kind = 'llm' and kinds.convention = 'openinference'
),

fields as (
    select
        trace_id, span_id,
        regexp_extract(entry.key, '^llm\.(input|output)_messages\.(\d+)\.(?:message\.)?(.+)$', ['side', 'n', 'field']) as part,
        entry.value as value
    from entries
    where starts_with(entry.key, 'llm.input_messages.') or starts_with(entry.key, 'llm.output_messages.')
),

messages as (
    select
        trace_id, span_id, part.side as side, part.n::int as n,
        max(value) filter (where part.field = 'role') as role,
        max(value) filter (where part.field = 'content') as content,
        max(value) filter (where part.field = 'tool_call_id') as tool_call_id,
        max(value) filter (where part.field = 'function.0') as function_result
    from fields
    group by all
),

texts as (
    select trace_id, span_id, side, n, string_agg(text, '' order by m) as text
    from (
        select
            trace_id, span_id, part.side as side, part.n::int as n,
            regexp_extract(part.field, '^contents\.(\d+)\.', 1)::int as m,
            max(value) filter (where part.field like '%.message_content.type') as type,
            max(value) filter (where part.field like '%.message_content.text') as text
        from fields
        where starts_with(part.field, 'contents.')
        group by all
    )
    where coalesce(type, 'text') in ('text', 'input_text', 'output_text')
    group by all
),

calls as (
    select
        trace_id, span_id, side, n,
        list({id: id, name: name, arguments: coalesce(arguments, '{}')} order by m) as tool_calls
    from (
        select
            trace_id, span_id, part.side as side, part.n::int as n,
            regexp_extract(part.field, '^tool_calls\.(\d+)\.', 1)::int as m,
            max(value) filter (where part.field like '%.tool_call.id') as id,
            max(value) filter (where part.field like '%.tool_call.function.name') as name,
            max(value) filter (where part.field like '%.tool_call.function.arguments') as arguments
        from fields
        where starts_with(part.field, 'tool_calls.')
        group by all
    )
    where name is not null
    group by all
),

joined as (
    select
        messages.trace_id, messages.span_id, messages.side, messages.n,
        messages.role,
        coalesce(messages.content, texts.text, function_result ->> '$.content') as text,
        coalesce(calls.tool_calls, []) as tool_calls,
        coalesce(messages.tool_call_id, function_result ->> '$.call_id') as tool_call_id
    from messages
    left join texts using (trace_id, span_id, side, n)
    left join calls using (trace_id, span_id, side, n)
),

responses as (
    select trace_id, span_id
    from spans_unique
    where attributes_str['output.value'] like '%"object":"response"%'
        or attributes_str['output.value'] like '%"object": "response"%'
)

select
    joined.trace_id, joined.span_id, joined.side, joined.n, 0 as part,
    case when side = 'input' then null when responses.span_id is null then joined.n else 0 end::int as choice,
    role, text, tool_calls, tool_call_id
from joined
left join responses using (trace_id, span_id)
