-- pydantic-ai's telemetry before its version 2: messages are the JSON list `events` on the span of the call, tools and agents
-- have attributes of their own. Later versions speak GenAI and need nothing from here.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- With its messages in log records instead (`event.name` as an attribute) the call is read as any such call is.
with

mine as (
    select
        *,
        attributes_str as attributes,
        try_cast(attributes_str['events'] as json) as said_events,
        case
            when operation = 'chat' then 'llm'
            when attributes_str['all_messages_events'] is not null or attributes_str['final_result'] is not null then 'agent'
            else 'tool'
        end as span_kind
    from spans_unique
    where (operation = 'chat' and json_valid(attributes_str['events']))
        or attributes_str['all_messages_events'] is not null
        or (operation is null and attributes_str['tool_arguments'] is not null and tool_name is not null)
        or (operation is null and attributes_str['agent_name'] is not null and attributes_str['final_result'] is not null)
),

said as (
    select
        trace_id, span_id,
        list_transform(
            from_json(
                said_events,
                '[{"event.name":"VARCHAR","role":"VARCHAR","content":"JSON","id":"VARCHAR","tool_calls":"JSON","index":"INTEGER","finish_reason":"VARCHAR","message":{"role":"VARCHAR","content":"JSON","tool_calls":"JSON"}}]'
            ),
            lambda e: {
                choice: case when e."event.name" = 'gen_ai.choice' then coalesce(e.index, 0) end,
                role: coalesce(e.message.role, e.role),
                text: case json_type(coalesce(e.message.content, e.content))
                    when 'VARCHAR' then coalesce(e.message.content, e.content) ->> '$'
                    when 'ARRAY' then array_to_string(list_transform(
                        from_json(coalesce(e.message.content, e.content), '["JSON"]'),
                        lambda p: case when json_type(p) = 'VARCHAR' then p ->> '$' else coalesce(p ->> '$.text', p ->> '$.content') end
                    ), '')
                end,
                tool_calls: list_transform(
                    from_json(coalesce(e.message.tool_calls, e.tool_calls), '[{"id":"VARCHAR","function":{"name":"VARCHAR","arguments":"JSON"}}]'),
                    lambda c: {id: c.id, name: c.function.name, arguments: coalesce(c.function.arguments ->> '$', '{}')}
                ),
                tool_call_id: e.id,
                finish_reason: e.finish_reason
            }
        ) as messages
    from mine
    where span_kind = 'llm' and said_events is not null
)

select
    trace_id, span_id,
    'pydantic_ai' as convention,
    100 as precedence,
    span_kind,
    case when span_kind = 'agent' then coalesce(attributes['agent_name'], agent_name) end as agent,
    null::varchar as for_agent,
    null::varchar as near_agent,
    null::varchar as session_id,
    null::varchar as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    null::varchar as operation,
    null::varchar as provider,
    null::varchar as model,
    null::varchar as response_id,
    null::varchar as previous_response_id,
    null::varchar[] as finish_reasons,
    null::bigint as prompt_tokens,
    null::bigint as completion_tokens,
    null::varchar as sampling,
    case when json_valid(attributes['model_request_parameters']) then list_transform(
        from_json(
            coalesce(attributes['model_request_parameters'] -> '$.function_tools', '[]'),
            '[{"name":"VARCHAR","description":"VARCHAR","parameters_json_schema":"JSON"}]'
        ),
        lambda t: to_json({name: t.name, description: t.description, parameters: t.parameters_json_schema})::varchar
    ) end as tools,
    null::varchar as content,
    false as failed,
    case when span_kind = 'tool' then tool_name end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then attributes['tool_arguments'] end as tool_arguments,
    case when span_kind = 'tool' then attributes['tool_response'] end as tool_result,
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
