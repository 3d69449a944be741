-- LangSmith's OTLP export: langsmith.span.kind; inputs and outputs of a run are one JSON text each, gen_ai.prompt and
-- gen_ai.completion.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Under LangChain that JSON is LangChain's serialisation of messages and generations, around the OpenAI SDK the request
-- and the answer themselves, of Chat Completions or of Responses. A run that failed has status OK and an exception as
-- span event. langsmith.trace.session_name is the project, no session.
with

mine as (
    select
        *,
        attributes_str as attributes,
        case attributes_str['langsmith.span.kind']
            when 'llm' then 'llm'
            when 'tool' then 'tool'
            when 'chain' then 'chain'
            else 'other'
        end as span_kind,
        case when span_kind = 'llm' and json_valid(attributes['gen_ai.prompt']) then attributes['gen_ai.prompt'] end as asked,
        case when span_kind = 'llm' and json_valid(attributes['gen_ai.completion']) then attributes['gen_ai.completion'] end as answered
    from spans_unique
    where attributes_str['langsmith.span.kind'] is not null
),

lists as (
    select
        trace_id, span_id, asked, answered,
        case
            when json_type(asked, '$.messages[0]') = 'ARRAY' then asked -> '$.messages[0]'
            when json_type(asked, '$.messages') = 'ARRAY' then asked -> '$.messages'
            when json_type(asked, '$.input') = 'ARRAY' then asked -> '$.input'
        end as input,
        coalesce(
            case when json_type(answered, '$.generations[0]') = 'ARRAY' then answered -> '$.generations[0]' end,
            case when json_type(answered, '$.choices') = 'ARRAY' then answered -> '$.choices' end
        ) as choices,
        case when json_type(answered, '$.output') = 'ARRAY' then answered -> '$.output' end as items
    from mine
    where span_kind = 'llm'
),

-- Each message as (choice, its fields, finish reason), whichever form it has.
entries as (
    select
        trace_id, span_id,
        list_transform(coalesce(from_json(input, '["JSON"]'), []), lambda m: {
            choice: null::int, fields: coalesce(m -> '$.kwargs', m -> '$.data', m), finish_reason: null::varchar
        }) as prompt,
        list_transform(coalesce(from_json(choices, '["JSON"]'), []), lambda c, i: {
            choice: coalesce(try_cast(c ->> '$.index' as int), i - 1)::int,
            fields: coalesce(c -> '$.message.kwargs', c -> '$.message'),
            finish_reason: coalesce(c ->> '$.finish_reason', c ->> '$.generation_info.finish_reason', c ->> '$.message.kwargs.response_metadata.finish_reason')
        }) as answers,
        list_transform(list_filter(coalesce(from_json(items, '["JSON"]'), []), lambda m: m ->> '$.type' <> 'reasoning'), lambda m: {
            choice: 0, fields: m, finish_reason: null::varchar
        }) as output_items,
        case when asked ->> '$.instructions' is not null
            then [{choice: null::int, fields: json_object('role', 'system', 'content', asked ->> '$.instructions'), finish_reason: null::varchar}] else [] end as instructions,
        case when json_type(asked, '$.input') = 'VARCHAR'
            then [{choice: null::int, fields: json_object('role', 'user', 'content', asked ->> '$.input'), finish_reason: null::varchar}] else [] end as plain_input
    from lists
),

said as (
    select
        trace_id, span_id,
        list_transform(instructions || plain_input || prompt || answers || output_items, lambda e: {
            choice: e.choice,
            role: case when e.fields ->> '$.type' in ('human', 'ai', 'system', 'tool', 'function') then e.fields ->> '$.type'
                else e.fields ->> '$.role' end,
            text: case json_type(e.fields, '$.content')
                when 'VARCHAR' then e.fields ->> '$.content'
                when 'ARRAY' then array_to_string(list_transform(
                    from_json(e.fields -> '$.content', '["JSON"]'),
                    lambda p: case when json_type(p) = 'VARCHAR' then p ->> '$' else p ->> '$.text' end
                ), '')
                else case when e.fields ->> '$.type' = 'function_call_output' then e.fields ->> '$.output' end
            end,
            tool_calls: case when e.fields ->> '$.type' = 'function_call' then [{
                id: e.fields ->> '$.call_id', name: e.fields ->> '$.name', arguments: e.fields ->> '$.arguments'
            }] else list_transform(
                coalesce(from_json(e.fields -> '$.tool_calls', '["JSON"]'), []),
                lambda c: {
                    id: c ->> '$.id',
                    name: coalesce(c ->> '$.function.name', c ->> '$.name'),
                    arguments: coalesce(c ->> '$.function.arguments', c ->> '$.args', '{}')
                }
            ) end,
            tool_call_id: coalesce(e.fields ->> '$.tool_call_id', case when e.fields ->> '$.type' = 'function_call_output' then e.fields ->> '$.call_id' end),
            finish_reason: e.finish_reason
        }) as messages
    from entries
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
    coalesce(response_model, answered ->> '$.llm_output.model_name', answered ->> '$.model', request_model) as model,
    coalesce(
        response_id, answered ->> '$.llm_output.id', answered ->> '$.id',
        answered ->> '$.generations[0][0].message.kwargs.response_metadata.id'
    ) as response_id,
    asked ->> '$.previous_response_id' as previous_response_id,
    null::varchar[] as finish_reasons,
    input_tokens as prompt_tokens,
    output_tokens as completion_tokens,
    case when span_kind = 'llm' then json_object(
        'temperature', coalesce(attributes_dbl['langsmith.metadata.ls_temperature'], try_cast(attributes['langsmith.metadata.ls_temperature'] as double), try_cast(asked ->> '$.temperature' as double)),
        'max_tokens', coalesce(attributes_int['langsmith.metadata.ls_max_tokens'], try_cast(coalesce(asked ->> '$.max_tokens', asked ->> '$.max_completion_tokens') as bigint)),
        'top_p', try_cast(asked ->> '$.top_p' as double),
        'seed', try_cast(asked ->> '$.seed' as bigint),
        'n', try_cast(asked ->> '$.n' as bigint)
    ) end::varchar as sampling,
    case when span_kind = 'llm' then from_json(coalesce(
        case when json_valid(attributes['gen_ai.tool.definitions']) then attributes['gen_ai.tool.definitions'] end, asked -> '$.tools'
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
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
