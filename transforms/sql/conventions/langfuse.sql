-- Langfuse's SDK: langfuse.observation.type; input and output are what the caller gave, as JSON or plain text.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- A generation's input is a list of messages, an object with `messages` (and `tools`), or text; its output a message, a list
-- of them (one a choice), or text. Neither response id nor, unless streamed, finish reason is written.
with

mine as (
    select
        *,
        attributes_str as attributes,
        attributes_str['langfuse.observation.type'] as observation,
        case
            when observation = 'generation' then 'llm'
            when observation in ('agent', 'tool', 'chain') then observation
            when observation in ('evaluator', 'guardrail') then 'judge'
            else 'other'
        end as span_kind,
        attributes['langfuse.observation.input'] as input,
        attributes['langfuse.observation.output'] as output,
        try_cast(input as json) as asked,
        try_cast(output as json) as answered,
        try_cast(attributes['langfuse.observation.model.parameters'] as json) as parameters,
        try_cast(attributes['langfuse.observation.usage_details'] as json) as usage,
        coalesce(
            try_cast(attributes['langfuse.observation.metadata.finish_reason'] as json) ->> '$',
            attributes['langfuse.observation.metadata.finish_reason']
        ) as finish_reason
    from spans_unique
    where attributes_str['langfuse.observation.type'] is not null
),

-- Each message as (choice, its fields), text as a message of its own.
entries as (
    select
        trace_id, span_id, finish_reason,
        case
            when json_type(asked) = 'ARRAY' then from_json(asked, '["JSON"]')
            when json_type(asked, '$.messages') = 'ARRAY' then from_json(asked -> '$.messages', '["JSON"]')
            when input is not null then [json_object('role', 'user', 'content', coalesce(asked ->> '$', input))]
        end as prompt,
        case
            when json_type(answered) = 'ARRAY' then from_json(answered, '["JSON"]')
            when json_type(answered) = 'OBJECT' and json_exists(answered, '$.role') then [answered]
            when output is not null then [json_object('role', 'assistant', 'content', coalesce(answered ->> '$', output))]
        end as answers
    from mine
    where span_kind = 'llm'
),

said as (
    select
        trace_id, span_id,
        list_transform(
            list_transform(coalesce(prompt, []), lambda m: {choice: null::int, fields: m})
                || list_transform(coalesce(answers, []), lambda m, i: {choice: (i - 1)::int, fields: m}),
            lambda e: {
                choice: e.choice,
                role: e.fields ->> '$.role',
                text: case json_type(e.fields, '$.content')
                    when 'VARCHAR' then e.fields ->> '$.content'
                    when 'ARRAY' then array_to_string(list_transform(
                        from_json(e.fields -> '$.content', '["JSON"]'),
                        lambda p: case when json_type(p) = 'VARCHAR' then p ->> '$' else p ->> '$.text' end
                    ), '')
                end,
                tool_calls: list_transform(
                    coalesce(from_json(e.fields -> '$.tool_calls', '[{"id":"VARCHAR","function":{"name":"VARCHAR","arguments":"JSON"}}]'), []),
                    lambda c: {id: c.id, name: c.function.name, arguments: coalesce(c.function.arguments ->> '$', '{}')}
                ),
                tool_call_id: e.fields ->> '$.tool_call_id',
                finish_reason: case when e.choice is not null then finish_reason end
            }
        ) as messages
    from entries
)

select
    trace_id, span_id,
    'langfuse' as convention,
    100 as precedence,
    span_kind,
    case when span_kind = 'agent' then coalesce(agent_name, name) end as agent,
    null::varchar as for_agent,
    null::varchar as near_agent,
    coalesce(session_id, attributes['langfuse.session.id']) as session_id,
    coalesce(user_id, attributes['langfuse.user.id']) as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    case when span_kind = 'llm' then 'chat' end as operation,
    null::varchar as provider,
    attributes['langfuse.observation.model.name'] as model,
    response_id,
    null::varchar as previous_response_id,
    case when span_kind = 'llm' and finish_reason is not null then [finish_reason] end as finish_reasons,
    try_cast(coalesce(usage ->> '$.input', usage ->> '$.prompt_tokens', usage ->> '$.input_tokens') as bigint) as prompt_tokens,
    try_cast(coalesce(usage ->> '$.output', usage ->> '$.completion_tokens', usage ->> '$.output_tokens') as bigint) as completion_tokens,
    case when span_kind = 'llm' then json_object(
        'temperature', try_cast(parameters ->> '$.temperature' as double),
        'top_p', try_cast(parameters ->> '$.top_p' as double),
        'top_k', try_cast(parameters ->> '$.top_k' as double),
        'max_tokens', try_cast(coalesce(parameters ->> '$.max_tokens', parameters ->> '$.max_completion_tokens') as bigint),
        'seed', try_cast(parameters ->> '$.seed' as bigint),
        'n', try_cast(parameters ->> '$.n' as bigint)
    ) end::varchar as sampling,
    case when span_kind = 'llm' and json_type(asked, '$.tools') = 'ARRAY' then from_json(asked -> '$.tools', '["VARCHAR"]') end as tools,
    null::varchar as content,
    coalesce(attributes['langfuse.observation.level'] = 'ERROR', false) as failed,
    case when span_kind = 'tool' then coalesce(tool_name, name) end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then case when json_array_length(asked, '$.args') = 0 then asked ->> '$.kwargs' else input end end as tool_arguments,
    case when span_kind = 'tool' then coalesce(answered ->> '$', output) end as tool_result,
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
