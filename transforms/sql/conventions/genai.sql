-- OpenTelemetry GenAI, 1.37 and later: messages are JSON (gen_ai.input.messages, …), on the span or in an event record.
-- grain: one row per (trace_id, span_id, side, n, part): the same columns in every file of this folder
-- kind: bucket
-- One message may hold several tool results: each becomes a message of its own (part). Answers of the Responses API come
-- as several messages (reasoning, text) of one choice.
with

details as (
    select
        trace_id, span_id,
        max(coalesce(attributes_str['gen_ai.system_instructions'], attributes_json['gen_ai.system_instructions'])) as system,
        max(coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages'])) as input,
        max(coalesce(attributes_str['gen_ai.output.messages'], attributes_json['gen_ai.output.messages'])) as output
    from events
    where event_name = 'gen_ai.client.inference.operation.details'
    group by trace_id, span_id
),

documents as (
    select
        spans.trace_id, spans.span_id,
        coalesce(spans.attributes_str['openai.api.type'] = 'responses', false) as one_choice,
        coalesce(spans.attributes_str['gen_ai.system_instructions'], spans.attributes_json['gen_ai.system_instructions'], details.system) as system,
        coalesce(spans.attributes_str['gen_ai.input.messages'], spans.attributes_json['gen_ai.input.messages'], details.input) as input,
        coalesce(spans.attributes_str['gen_ai.output.messages'], spans.attributes_json['gen_ai.output.messages'], details.output) as output
    from spans_unique as spans
    join span_kinds as kinds using (trace_id, span_id)
    left join details using (trace_id, span_id)
    where kinds.span_kind in ('llm', 'capture') and kinds.convention in ('genai', 'capture', 'genai_events')
),

messages as (
    select trace_id, span_id, 'input' as side, -1 as n, null::int as choice, 'system' as role, null::varchar as finish_reason,
        case when json_valid(system) and json_type(system) = 'ARRAY' then system
            else to_json([{type: 'text', content: system}])::varchar end as parts
    from documents
    where system is not null
    union all
    select
        trace_id, span_id, side, (n - 1)::int,
        case when side = 'input' then null when one_choice then 0 else n - 1 end::int,
        message ->> '$.role', message ->> '$.finish_reason', message ->> '$.parts'
    from (
        select trace_id, span_id, one_choice, 'input' as side, unnest(input::json[]) as message,
            generate_subscripts(input::json[], 1) as n
        from documents where json_valid(input) and json_type(input) = 'ARRAY'
        union all
        select trace_id, span_id, one_choice, 'output' as side, unnest(output::json[]) as message,
            generate_subscripts(output::json[], 1) as n
        from documents where json_valid(output) and json_type(output) = 'ARRAY'
    )
),

parts as (
    select
        trace_id, span_id, side, n, role, part, m,
        part ->> '$.type' as type,
        coalesce(part ->> '$.id', part ->> '$.tool_call_id') as id
    from (
        select trace_id, span_id, side, n, role,
            unnest(parts::json[]) as part, generate_subscripts(parts::json[], 1) as m
        from messages
        where json_valid(parts) and json_type(parts) = 'ARRAY'
    )
),

spoken as (
    select
        trace_id, span_id, side, n,
        string_agg(part ->> '$.content', '' order by m) filter (where type = 'text') as text,
        list({
            id: id, name: part ->> '$.name',
            arguments: case json_type(part, '$.arguments') when 'VARCHAR' then part ->> '$.arguments'
                else coalesce(json_extract(part, '$.arguments')::varchar, '{}') end
        } order by m) filter (where type = 'tool_call') as tool_calls,
        count(*) filter (where type = 'tool_call_response') as results
    from parts
    group by all
)

select
    messages.trace_id, messages.span_id, messages.side, messages.n, 0 as part,
    messages.choice,
    messages.role, spoken.text, coalesce(spoken.tool_calls, []) as tool_calls, null as tool_call_id,
    messages.finish_reason
from messages
left join spoken using (trace_id, span_id, side, n)
where coalesce(spoken.results, 0) = 0

union all by name

select
    trace_id, span_id, side, n, m::int as part, null::int as choice,
    'tool' as role,
    case coalesce(json_type(part, '$.response'), json_type(part, '$.result'))
        when 'VARCHAR' then coalesce(part ->> '$.response', part ->> '$.result')
        else coalesce(json_extract(part, '$.response'), json_extract(part, '$.result'))::varchar
    end as text,
    [] as tool_calls, id as tool_call_id,
    null::varchar as finish_reason
from parts
where type = 'tool_call_response'
