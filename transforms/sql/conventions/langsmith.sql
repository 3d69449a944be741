-- LangSmith's OTLP export: langsmith.span.kind; inputs and outputs of a run are one JSON text each, gen_ai.prompt and
-- gen_ai.completion.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Under LangChain that JSON is LangChain's serialisation of messages and generations, around the OpenAI SDK the request
-- and the answer themselves, of Chat Completions or of Responses. A run that failed has status OK and an exception as
-- span event. langsmith.trace.session_name is the project, no session.
with

mine as not materialized (
    select
        *,
        attributes_str as attributes,
        case attributes_str['langsmith.span.kind']
            when 'llm' then 'llm'
            when 'tool' then 'tool'
            when 'chain' then 'chain'
            else 'other'
        end as span_kind
    from spans_unique
    where attributes_str['langsmith.span.kind'] is not null
),

-- Each document is read once.
documents as (
    select
        *,
        case when span_kind = 'llm' then try(json_extract(attributes['gen_ai.prompt'], [
            '$.messages', '$.input', '$.instructions', '$.previous_response_id', '$.temperature', '$.max_tokens', '$.max_completion_tokens',
            '$.top_p', '$.seed', '$.n', '$.tools'
        ])) end as asked,
        case when span_kind = 'llm' then try(json_extract(attributes['gen_ai.completion'], [
            '$.generations', '$.choices', '$.output', '$.llm_output.model_name', '$.model', '$.llm_output.id', '$.id',
            '$.generations[0][0].message.kwargs.response_metadata.id'
        ])) end as answered
    from mine
),

lists as (
    select
        *,
        case
            when starts_with(asked[1], '[[') then from_json(asked[1], '[["JSON"]]')[1]
            when starts_with(asked[1], '[') then from_json(asked[1], '["JSON"]')
            when starts_with(asked[2], '[') then from_json(asked[2], '["JSON"]')
        end as input,
        case
            when starts_with(answered[1], '[[') then from_json(answered[1], '[["JSON"]]')[1]
            when starts_with(answered[2], '[') then from_json(answered[2], '["JSON"]')
        end as offered,
        case when starts_with(answered[3], '[') then from_json(answered[3], '["JSON"]') end as items
    from documents
),

-- Each message as (choice, its fields, finish reason), whichever form it has.
entries as (
    select
        *,
        list_transform(coalesce(input, []), lambda m: {
            choice: null::int, fields: coalesce(m -> '$.kwargs', m -> '$.data', m), finish_reason: null::varchar
        }) as prompt,
        list_transform(coalesce(offered, []), lambda c, i: {
            choice: coalesce(try_cast(c ->> '$.index' as int), i - 1)::int,
            fields: coalesce(c -> '$.message.kwargs', c -> '$.message'),
            finish_reason: coalesce(c ->> '$.finish_reason', c ->> '$.generation_info.finish_reason', c ->> '$.message.kwargs.response_metadata.finish_reason')
        }) as answers,
        list_transform(list_filter(coalesce(items, []), lambda m: m ->> '$.type' <> 'reasoning'), lambda m: {
            choice: 0, fields: m, finish_reason: null::varchar
        }) as output_items,
        case when asked[3] ->> '$' is not null
            then [{choice: null::int, fields: json_object('role', 'system', 'content', asked[3] ->> '$'), finish_reason: null::varchar}] else [] end as instructions,
        case when starts_with(asked[2], '"')
            then [{choice: null::int, fields: json_object('role', 'user', 'content', asked[2] ->> '$'), finish_reason: null::varchar}] else [] end as plain_input
    from lists
),

turns as (
    select
        *,
        list_transform(instructions || plain_input || prompt || answers || output_items, lambda e: {
            choice: e.choice, finish_reason: e.finish_reason,
            fields: from_json(e.fields, '{"type":"VARCHAR","role":"VARCHAR","content":"JSON","output":"VARCHAR","tool_calls":["JSON"],'
                || '"tool_call_id":"VARCHAR","call_id":"VARCHAR","name":"VARCHAR","arguments":"VARCHAR"}')
        }) as turns
    from entries
),

said as (
    select
        *,
        case when span_kind = 'llm' then list_transform(turns, lambda e: {
            choice: e.choice,
            role: case when e.fields.type in ('human', 'ai', 'system', 'tool', 'function') then e.fields.type else e.fields.role end,
            text: case
                when starts_with(e.fields.content, '"') then e.fields.content ->> '$'
                when starts_with(e.fields.content, '[') then array_to_string(list_transform(
                    from_json(e.fields.content, '["JSON"]'),
                    lambda p: case when starts_with(p, '"') then p ->> '$' else p ->> '$.text' end
                ), '')
                else case when e.fields.type = 'function_call_output' then e.fields.output end
            end,
            tool_calls: case when e.fields.type = 'function_call' then [{
                id: e.fields.call_id, name: e.fields.name, arguments: e.fields.arguments
            }] else list_transform(
                coalesce(e.fields.tool_calls, []),
                lambda c: {
                    id: c ->> '$.id',
                    name: coalesce(c ->> '$.function.name', c ->> '$.name'),
                    arguments: coalesce(c ->> '$.function.arguments', c ->> '$.args', '{}')
                }
            ) end,
            tool_call_id: coalesce(e.fields.tool_call_id, case when e.fields.type = 'function_call_output' then e.fields.call_id end),
            finish_reason: e.finish_reason
        }) end as messages
    from turns
)

select
    trace_id, span_id,
    'langsmith' as convention,
    100 as precedence,
    span_kind,
    null::varchar as agent,
    attributes['langsmith.metadata.lc_agent_name'] as for_agent,
    null::varchar as near_agent,
    coalesce(session_id, attributes['langsmith.metadata.session_id'], attributes['langsmith.metadata.thread_id'], attributes['langsmith.metadata.conversation_id']) as session_id,
    coalesce(user_id, attributes['langsmith.metadata.user_id']) as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    case when span_kind = 'llm' then 'chat' end as operation,
    coalesce(provider, attributes['gen_ai.system'], attributes['langsmith.metadata.ls_provider']) as provider,
    coalesce(response_model, answered[4] ->> '$', answered[5] ->> '$', request_model) as model,
    coalesce(
        response_id, answered[6] ->> '$', answered[7] ->> '$', answered[8] ->> '$'
    ) as response_id,
    asked[4] ->> '$' as previous_response_id,
    null::varchar[] as finish_reasons,
    input_tokens as prompt_tokens,
    output_tokens as completion_tokens,
    case when span_kind = 'llm' then json_object(
        'temperature', coalesce(attributes_dbl['langsmith.metadata.ls_temperature'], try_cast(attributes['langsmith.metadata.ls_temperature'] as double), try_cast(asked[5] ->> '$' as double)),
        'max_tokens', coalesce(attributes_int['langsmith.metadata.ls_max_tokens'], try_cast(coalesce(asked[6] ->> '$', asked[7] ->> '$') as bigint)),
        'top_p', try_cast(asked[8] ->> '$' as double),
        'seed', try_cast(asked[9] ->> '$' as bigint),
        'n', try_cast(asked[10] ->> '$' as bigint)
    ) end::varchar as sampling,
    case when span_kind = 'llm' then from_json(coalesce(
        case when json_valid(attributes['gen_ai.tool.definitions']) then attributes['gen_ai.tool.definitions'] end, asked[11]
    ), '["VARCHAR"]') end as tools,
    null::varchar as content,
    len(list_filter(events, lambda e: e.name = 'exception')) > 0 as failed,
    case when span_kind = 'tool' then coalesce(tool_name, name) end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then attributes['gen_ai.prompt'] end as tool_arguments,
    case when span_kind = 'tool' then coalesce(
        try_cast(attributes['gen_ai.completion'] as json) ->> '$.output.content',
        try_cast(attributes['gen_ai.completion'] as json) ->> '$.output',
        attributes['gen_ai.completion']
    ) end as tool_result,
    messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from said
