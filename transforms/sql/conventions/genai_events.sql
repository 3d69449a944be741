-- OpenTelemetry GenAI up to 1.36: content travels in log records of the call's span, one record a message.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- What stands on the span is read as GenAI's; only who said what is read here. The record's own time is often unset:
-- records of a call are ordered by observed time, then by place in the batch.
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

bodies as (
    select
        trace_id, span_id, observed_unix_nano, collector_id, seq,
        event_name = 'gen_ai.choice' as chosen,
        coalesce(try_cast(body ->> '$.index' as int), 0) as choice,
        case when event_name = 'gen_ai.choice' then 'assistant' else split_part(event_name, '.', 2) end as role,
        case when event_name = 'gen_ai.choice' then coalesce(body -> '$.message', '{}'::json) else body end as message,
        coalesce(message -> '$.tool_calls', body -> '$.tool_calls') as tool_calls,
        body ->> '$.finish_reason' as finish_reason
    from records
    where json_valid(body)
),

said as (
    select
        trace_id, span_id,
        list({
            choice: case when chosen then choice end,
            role: role,
            text: case json_type(message, '$.content')
                when 'VARCHAR' then message ->> '$.content'
                when 'ARRAY' then array_to_string(list_transform((message -> '$.content')::json[], lambda x: x ->> '$.text'), '')
            end,
            tool_calls: list_transform(
                from_json(tool_calls, '[{"id":"VARCHAR","function":{"name":"VARCHAR","arguments":"JSON"}}]'),
                lambda c: {id: c.id, name: c.function.name, arguments: coalesce(c.function.arguments ->> '$', '{}')}
            ),
            tool_call_id: message ->> '$.id',
            finish_reason: finish_reason
        } order by chosen, choice, observed_unix_nano, collector_id, seq) as messages
    from bodies
    group by trace_id, span_id
)

select
    trace_id, span_id,
    'genai_events' as convention,
    50 as precedence,
    'llm' as span_kind,
    null::varchar as agent,
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
    null::varchar[] as tools,
    null::varchar as content,
    false as failed,
    null::varchar as tool_name,
    null::varchar as tool_call_id,
    null::varchar as tool_arguments,
    null::varchar as tool_result,
    said.messages
from spans_unique
join said using (trace_id, span_id)
where operation in ('chat', 'text_completion', 'generate_content') and oi_kind is null and capture is null
