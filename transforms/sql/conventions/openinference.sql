-- OpenInference: messages are flat, indexed attributes (llm.input_messages.N.message.…); indexes may have gaps.
-- grain: one row per (trace_id, span_id, side, n, part): the same columns in every file of this folder
-- kind: bucket
-- side: input or output; n orders the messages of a side; choice is the answer's index on the output side.
-- The Responses API gives each output item a message of its own: they are parts of one choice. The legacy completions
-- API answers in llm.choices.N; its prompt is no conversation and is not read as one. A chat that the Agents SDK streams
-- leaves its answer in output.value alone, as a list of one Responses object.
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

completions as (
    select
        trace_id, span_id, 'output' as side, regexp_extract(entry.key, '^llm\.choices\.(\d+)\.', 1)::int as n,
        'assistant' as role, entry.value as text
    from entries
    where regexp_matches(entry.key, '^llm\.choices\.\d+\.completion\.text$')
),

streamed as (
    select trace_id, span_id, unnest(items) as item, generate_subscripts(items, 1) - 1 as n
    from (
        select
            spans.trace_id, spans.span_id,
            case when value like '[%' and json_valid(value) and value ->> '$[0].object' = 'response'
                then (value -> '$[0].output')::json[] end as items
        from (select trace_id, span_id, attributes_str['output.value'] as value from spans_unique) as spans
        join span_kinds as kinds using (trace_id, span_id)
        where kinds.span_kind = 'llm' and kinds.convention = 'openinference'
    )
    anti join (select trace_id, span_id from messages where side = 'output') using (trace_id, span_id)
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
    role, text, tool_calls, tool_call_id, null::varchar as finish_reason
from joined
left join responses using (trace_id, span_id)

union all by name

select
    trace_id, span_id, side, n, 0 as part, n as choice, role, text, [] as tool_calls, null as tool_call_id,
    null::varchar as finish_reason
from completions

union all by name

select
    trace_id, span_id, 'output' as side, n::int as n, 0 as part, 0 as choice, 'assistant' as role,
    list_aggregate(list_transform((item -> '$.content')::json[], lambda c: coalesce(c ->> '$.text', '')), 'string_agg', '') as text,
    case when item ->> '$.type' = 'function_call'
        then [{id: item ->> '$.call_id', name: item ->> '$.name', arguments: coalesce(item ->> '$.arguments', '{}')}]
        else [] end as tool_calls,
    null as tool_call_id, null::varchar as finish_reason
from streamed
where item ->> '$.type' in ('message', 'function_call')
