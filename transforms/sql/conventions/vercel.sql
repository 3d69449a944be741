-- Vercel AI SDK up to 6, and 7 with its LegacyOpenTelemetry: ai.operationId; messages are JSON in the SDK's own shape.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- The spans that call the model end in .doGenerate or .doStream, one an attempt; ai.generateText and its like above them
-- repeat the content and add the usage up, and are read as agents. One tool message may hold several results. Where the
-- SDK answers with an object, its JSON is what the model said.
with

mine as (
    select
        *,
        attributes_str as attributes,
        attributes_str['ai.operationId'] as ai_operation,
        case
            when ai_operation like '%.doGenerate' or ai_operation like '%.doStream' then 'llm'
            when ai_operation = 'ai.toolCall' then 'tool'
            when ai_operation in ('ai.generateText', 'ai.streamText', 'ai.generateObject', 'ai.streamObject') then 'agent'
            else 'other'
        end as span_kind,
        coalesce(attributes['ai.telemetry.functionId'], attributes['resource.name']) as function_id,
        coalesce(
            attributes_int['ai.usage.inputTokens'], attributes_int['ai.usage.promptTokens'], attributes_int['gen_ai.usage.prompt_tokens'], input_tokens
        ) as prompt_tokens,
        coalesce(
            attributes_int['ai.usage.outputTokens'], attributes_int['ai.usage.completionTokens'], attributes_int['gen_ai.usage.completion_tokens'],
            output_tokens
        ) as completion_tokens
    from spans_unique
    where attributes_str['ai.operationId'] is not null
),

documents as (
    select
        trace_id, span_id, attributes,
        case when json_valid(attributes['ai.prompt.messages'])
            then from_json(attributes['ai.prompt.messages'], '[{"role":"VARCHAR","content":"JSON"}]') end as input,
        case when json_valid(attributes['ai.response.toolCalls']) then from_json(
            attributes['ai.response.toolCalls'],
            '[{"toolCallId":"VARCHAR","toolName":"VARCHAR","input":"JSON","args":"JSON"}]'
        ) end as tool_calls,
        coalesce(attributes['ai.response.text'], attributes['ai.response.object']) as text
    from mine
    where span_kind = 'llm'
),

-- Content is text, or a list of parts.
asked as (
    select
        trace_id, span_id, attributes, tool_calls, text,
        list_transform(coalesce(input, []), lambda m: {
            role: m.role,
            text: case when json_type(m.content) = 'VARCHAR' then m.content ->> '$' end,
            parts: case when json_type(m.content) = 'ARRAY' then from_json(
                m.content,
                '[{"type":"VARCHAR","text":"VARCHAR","toolCallId":"VARCHAR","toolName":"VARCHAR","input":"JSON","args":"JSON","output":{"value":"JSON"},"result":"JSON"}]'
            ) end
        }) as input
    from documents
),

said as (
    select
        trace_id, span_id,
        flatten(list_transform(input, lambda m:
            case when m.role = 'tool' then list_transform(list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool-result'), lambda p: {
                choice: null::int, role: 'tool', text: coalesce(p.output.value, p.result) ->> '$',
                tool_calls: null::struct(id varchar, name varchar, arguments varchar)[], tool_call_id: p.toolCallId, finish_reason: null::varchar
            })
            else [{
                choice: null::int, role: m.role,
                text: coalesce(m.text, array_to_string(list_transform(
                    list_filter(coalesce(m.parts, []), lambda p: p.type = 'text'), lambda p: p.text
                ), '')),
                tool_calls: list_transform(list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool-call'), lambda p: {
                    id: p.toolCallId, name: p.toolName, arguments: coalesce(p.input, p.args) ->> '$'
                }),
                tool_call_id: null::varchar, finish_reason: null::varchar
            }] end
        ))
        || case when text is not null or len(tool_calls) > 0 then [{
            choice: 0, role: 'assistant', text: text,
            tool_calls: list_transform(coalesce(tool_calls, []), lambda c: {
                id: c.toolCallId, name: c.toolName, arguments: coalesce(c.input, c.args) ->> '$'
            }),
            tool_call_id: null::varchar, finish_reason: attributes['ai.response.finishReason']
        }] else [] end as messages
    from asked
)

select
    trace_id, span_id,
    'vercel' as convention,
    100 as precedence,
    span_kind,
    case when span_kind = 'agent' then function_id end as agent,
    null::varchar as for_agent,
    function_id as near_agent,
    coalesce(session_id, attributes['ai.telemetry.metadata.sessionId']) as session_id,
    coalesce(user_id, attributes['ai.telemetry.metadata.userId']) as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    case when span_kind = 'llm' then 'chat' end as operation,
    coalesce(attributes['ai.model.provider'], provider, attributes['gen_ai.system']) as provider,
    coalesce(attributes['ai.response.model'], response_model, attributes['ai.model.id'], request_model) as model,
    coalesce(attributes['ai.response.id'], response_id) as response_id,
    null::varchar as previous_response_id,
    case when attributes['ai.response.finishReason'] is not null then [attributes['ai.response.finishReason']] end as finish_reasons,
    prompt_tokens,
    completion_tokens,
    case when span_kind = 'llm' then json_object(
        'temperature', coalesce(attributes_dbl['gen_ai.request.temperature'], attributes_int['gen_ai.request.temperature']::double,
            attributes_dbl['ai.settings.temperature'], attributes_int['ai.settings.temperature']::double),
        'top_p', coalesce(attributes_dbl['gen_ai.request.top_p'], attributes_int['gen_ai.request.top_p']::double,
            attributes_dbl['ai.settings.topP'], attributes_int['ai.settings.topP']::double),
        'top_k', coalesce(attributes_dbl['gen_ai.request.top_k'], attributes_int['gen_ai.request.top_k']::double,
            attributes_dbl['ai.settings.topK'], attributes_int['ai.settings.topK']::double),
        'max_tokens', coalesce(attributes_int['gen_ai.request.max_tokens'], attributes_int['ai.settings.maxOutputTokens'], attributes_int['ai.settings.maxTokens']),
        'seed', attributes_int['ai.settings.seed'],
        'stop', coalesce(attributes_json['gen_ai.request.stop_sequences'], attributes_json['ai.settings.stopSequences'])::json
    ) end::varchar as sampling,
    case when span_kind = 'llm' and json_valid(attributes_json['ai.prompt.tools'])
        then from_json(attributes_json['ai.prompt.tools'], '["VARCHAR"]') end as tools,
    case when span_kind = 'llm' and attributes['ai.prompt.messages'] is null then 'off' end as content,
    coalesce(attributes['ai.response.finishReason'] = 'error', false) as failed,
    case when span_kind = 'tool' then attributes['ai.toolCall.name'] end as tool_name,
    case when span_kind = 'tool' then attributes['ai.toolCall.id'] end as tool_call_id,
    case when span_kind = 'tool' then attributes['ai.toolCall.args'] end as tool_arguments,
    case when span_kind = 'tool' then coalesce(try_cast(attributes['ai.toolCall.result'] as json) ->> '$', attributes['ai.toolCall.result']) end as tool_result,
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
