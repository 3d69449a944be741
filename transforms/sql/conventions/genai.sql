-- OpenTelemetry GenAI: gen_ai.operation.name; from 1.37 on messages are JSON (gen_ai.input.messages, …), on the span or in
-- the event record `gen_ai.client.inference.operation.details` of the span. Our own token records speak it too.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- One message may hold several tool results: each becomes a message of its own. The Responses API answers in several
-- messages (reasoning, text) of one choice; it names no finish reason, and some instrumentations then write `error`.
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

mine as (
    select
        spans.*,
        attributes_str as attributes,
        case
            when capture is not null or (operation in ('chat', 'text_completion', 'generate_content') and coalesce(oi_kind, 'LLM') = 'LLM') then 'llm'
            when operation = 'invoke_agent' then 'agent'
            when operation = 'execute_tool' then 'tool'
            when operation in ('invoke_workflow', 'chain') then 'chain'
            else 'other'
        end as span_kind,
        coalesce(attributes_str['gen_ai.system_instructions'], attributes_json['gen_ai.system_instructions'], details.system) as system,
        coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages'], details.input) as input,
        coalesce(attributes_str['gen_ai.output.messages'], attributes_json['gen_ai.output.messages'], details.output) as output,
        coalesce(attributes_str['openai.api.type'] = 'responses', false) as responses_api
    from spans_unique as spans
    left join details using (trace_id, span_id)
    where operation is not null or capture is not null
),

documents as (
    select
        trace_id, span_id, responses_api,
        case
            when system is null then []
            when json_valid(system) and json_type(system) = 'ARRAY' then from_json(system, '[{"type":"VARCHAR","content":"VARCHAR"}]')
            else [{type: 'text', content: system}]
        end as system,
        case when json_valid(input) then from_json(input, '[{"role":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]}]') end as input,
        case when json_valid(output) then from_json(output, '[{"role":"VARCHAR","finish_reason":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON"}]}]') end as output
    from mine
    where span_kind = 'llm'
),

said as (
    select
        trace_id, span_id,
        case when len(system) > 0 then [{
            choice: null::int, role: 'system',
            text: array_to_string(list_transform(list_filter(system, lambda p: coalesce(p.type, 'text') = 'text'), lambda p: p.content), ''),
            tool_calls: null::struct(id varchar, name varchar, arguments varchar)[], tool_call_id: null::varchar, finish_reason: null::varchar
        }] else [] end
        || flatten(list_transform(coalesce(input, []), lambda m:
            list_transform(list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool_call_response'), lambda p: {
                choice: null::int, role: 'tool', text: coalesce(p.response, p.result) ->> '$',
                tool_calls: null::struct(id varchar, name varchar, arguments varchar)[], tool_call_id: coalesce(p.id, p.tool_call_id), finish_reason: null::varchar
            })
            -- What stands beside tool results in one message is said after them.
            || list_transform(
                case when len(list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool_call_response')) = 0
                    or len(list_filter(m.parts, lambda p: p.type in ('text', 'tool_call'))) > 0 then [m] else [] end,
                lambda one: {
                    choice: null::int, role: one.role,
                    text: array_to_string(list_transform(list_filter(coalesce(one.parts, []), lambda p: p.type = 'text'), lambda p: p.content), ''),
                    tool_calls: list_transform(list_filter(coalesce(one.parts, []), lambda p: p.type = 'tool_call'), lambda p: {
                        id: coalesce(p.id, p.tool_call_id), name: p.name, arguments: coalesce(p.arguments ->> '$', '{}')
                    }),
                    tool_call_id: null::varchar, finish_reason: null::varchar
                }
            )
        ))
        || list_transform(coalesce(output, []), lambda m, i: {
            choice: case when responses_api then 0 else i - 1 end::int, role: m.role,
            text: array_to_string(list_transform(list_filter(coalesce(m.parts, []), lambda p: p.type = 'text'), lambda p: p.content), ''),
            tool_calls: list_transform(list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool_call'), lambda p: {
                id: coalesce(p.id, p.tool_call_id), name: p.name, arguments: coalesce(p.arguments ->> '$', '{}')
            }),
            tool_call_id: null::varchar, finish_reason: m.finish_reason
        }) as messages
    from documents
)

select
    trace_id, span_id,
    'genai' as convention,
    case when input is not null then 80 else 20 end as precedence,
    span_kind,
    case when span_kind = 'agent' then coalesce(agent_name, name) end as agent,
    null::varchar as for_agent,
    agent_name as near_agent,
    session_id,
    user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    operation,
    coalesce(provider, attributes['gen_ai.system']) as provider,
    coalesce(response_model, request_model) as model,
    response_id,
    null::varchar as previous_response_id,
    list_transform(
        coalesce(
            from_json(attributes_json['gen_ai.response.finish_reasons'], '["VARCHAR"]'),
            case when json_valid(attributes['gen_ai.response.finish_reasons']) then from_json(attributes['gen_ai.response.finish_reasons'], '["VARCHAR"]') end
        ),
        lambda f: case when f = 'error' and responses_api and status_code <> 2 and attributes['error.type'] is null then null else f end
    ) as finish_reasons,
    input_tokens as prompt_tokens,
    output_tokens as completion_tokens,
    case when span_kind = 'llm' then json_object(
        'temperature', coalesce(attributes_dbl['gen_ai.request.temperature'], attributes_int['gen_ai.request.temperature']::double),
        'top_p', coalesce(attributes_dbl['gen_ai.request.top_p'], attributes_int['gen_ai.request.top_p']::double),
        'top_k', coalesce(attributes_dbl['gen_ai.request.top_k'], attributes_int['gen_ai.request.top_k']::double),
        'min_p', coalesce(attributes_dbl['gen_ai.request.min_p'], attributes_int['gen_ai.request.min_p']::double),
        'max_tokens', attributes_int['gen_ai.request.max_tokens'],
        'seed', attributes_int['gen_ai.request.seed'],
        'stop', attributes_json['gen_ai.request.stop_sequences']::json,
        'n', attributes_int['gen_ai.request.choice.count']
    ) end::varchar as sampling,
    case when span_kind = 'llm' then from_json(
        case when json_valid(coalesce(attributes['gen_ai.tool.definitions'], attributes_json['gen_ai.tool.definitions']))
            then coalesce(attributes['gen_ai.tool.definitions'], attributes_json['gen_ai.tool.definitions']) end, '["VARCHAR"]'
    ) end as tools,
    null::varchar as content,
    false as failed,
    case when span_kind = 'tool' then tool_name end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.arguments'], attributes_json['gen_ai.tool.call.arguments']) end as tool_arguments,
    case when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.result'], attributes_json['gen_ai.tool.call.result']) end as tool_result,
    said.messages
from mine
left join said using (trace_id, span_id)
