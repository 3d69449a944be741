-- OpenTelemetry GenAI up to 1.36: content travels in log records of the call's span, one record a message.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- What stands on the span is read as GenAI's; only who said what is read here. The record's own time is often unset:
-- records of a call are ordered by observed time, then by place in the batch. A tool's result that does not say which call
-- it answers follows the one call that it can be. An answer on the span around the call, where one instrumentation puts
-- those that were streamed, belongs to the call that alone was running there.
with

records as (
    select distinct on (content_sha256)
        trace_id, span_id, content_sha256, body, observed_unix_nano, collector_id, seq,
        coalesce(event_name, attributes_str['event.name']) as event_name
    from events
    where coalesce(event_name, attributes_str['event.name']) in (
        'gen_ai.system.message', 'gen_ai.user.message', 'gen_ai.assistant.message', 'gen_ai.tool.message', 'gen_ai.choice'
    )
    order by content_sha256, collector_id, seq
),

llm_spans as (
    select trace_id, span_id, parent_span_id, start_unix_nano, end_unix_nano
    from spans_unique
    where operation in ('chat', 'text_completion', 'generate_content') and oi_kind is null and capture is null
),

strays as (
    select trace_id, span_id, content_sha256, observed_unix_nano
    from records
    anti join llm_spans using (trace_id, span_id)
    where event_name = 'gen_ai.choice'
),

siblings as (
    select
        *,
        coalesce(max(end_unix_nano) over earlier <= start_unix_nano, true)
            and coalesce(lead(start_unix_nano) over (partition by trace_id, parent_span_id order by start_unix_nano, span_id) >= end_unix_nano, true)
            as alone
    from llm_spans
    semi join strays on strays.trace_id = llm_spans.trace_id and strays.span_id = llm_spans.parent_span_id
    window earlier as (
        partition by trace_id, parent_span_id order by start_unix_nano, span_id rows between unbounded preceding and 1 preceding
    )
),

found as (
    select strays.content_sha256, siblings.span_id
    from strays
    asof join siblings
        on strays.trace_id = siblings.trace_id and strays.span_id = siblings.parent_span_id
        and strays.observed_unix_nano >= siblings.start_unix_nano
    where siblings.alone and strays.observed_unix_nano <= siblings.end_unix_nano
),

bodies as (
    select
        trace_id, coalesce(found.span_id, records.span_id) as span_id, observed_unix_nano, collector_id, seq,
        event_name = 'gen_ai.choice' as chosen,
        coalesce(try_cast(body ->> '$.index' as int), 0) as choice,
        case when event_name = 'gen_ai.choice' then 'assistant' else split_part(event_name, '.', 2) end as role,
        case when event_name = 'gen_ai.choice' then coalesce(body -> '$.message', '{}'::json) else body end as message,
        coalesce(message -> '$.tool_calls', body -> '$.tool_calls') as tool_calls,
        body ->> '$.finish_reason' as finish_reason
    from records
    left join found using (content_sha256)
    where json_valid(body)
),

turns as (
    select
        * exclude (tool_calls),
        list_transform(
            from_json(tool_calls, '[{"id":"VARCHAR","function":{"name":"VARCHAR","arguments":"JSON"}}]'),
            lambda c: {
                id: case when not starts_with(c.id, 'fc_') then c.id end,
                name: c.function.name, arguments: coalesce(c.function.arguments ->> '$', '{}')
            }
        ) as tool_calls,
        lag(tool_calls) over (partition by trace_id, span_id order by chosen, choice, observed_unix_nano, collector_id, seq) as before
    from bodies
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
            tool_calls: tool_calls,
            tool_call_id: coalesce(message ->> '$.id', case when role = 'tool' and json_array_length(before) = 1 then before ->> '$[0].id' end),
            finish_reason: finish_reason
        } order by chosen, choice, observed_unix_nano, collector_id, seq) as messages
    from turns
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
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from llm_spans
join said using (trace_id, span_id)
