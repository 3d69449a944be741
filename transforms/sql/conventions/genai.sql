-- OpenTelemetry GenAI: gen_ai.operation.name; from 1.37 on messages are JSON (gen_ai.input.messages, …), on the span or in
-- the event record `gen_ai.client.inference.operation.details` of the span. Our own token records speak it too.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- One message may hold several tool results: each becomes a message of its own. The Responses API answers in several
-- messages (reasoning, text) of one choice; it names no finish reason, and some instrumentations then write `error`. Where
-- they write the output item's id (fc_…) for the id of a tool call, it is left out: answers will name another. A text part
-- that is a tool call beside it once more is left out too. Text that is no string (token ids) is no text.
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

mine as not materialized (
    select
        spans.*,
        attributes_str as attributes,
        case
            when capture is not null or (operation in ('chat', 'text_completion', 'generate_content') and coalesce(oi_kind, 'LLM') = 'LLM') then 'llm'
            when operation = 'invoke_agent' then 'agent'
            -- ADK sums parallel tools up in a span of its own, whose call id is its event's.
            when operation = 'execute_tool' and tool_call_id = attributes_str['gcp.vertex.agent.event_id'] then 'other'
            when operation = 'execute_tool' then 'tool'
            when operation in ('invoke_workflow', 'chain') then 'chain'
            else 'other'
        end as span_kind,
        coalesce(attributes_str['gen_ai.system_instructions'], attributes_json['gen_ai.system_instructions'], details.system) as system_said,
        coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages'], details.input) as input_said,
        coalesce(attributes_str['gen_ai.output.messages'], attributes_json['gen_ai.output.messages'], details.output) as output_said,
        case when json_valid(system_said) then system_said else to_json([{type: 'text', content: system_said}])::varchar end as system,
        -- What was cut by a length limit is no JSON; a prompt of which a part is lost is no prompt.
        case when json_valid(input_said) and (not starts_with(system_said, '[{') or json_valid(system_said) or system_said is null)
            then input_said end as input,
        case when json_valid(output_said) then output_said end as output,
        coalesce(attributes_str['openai.api.type'] = 'responses', false) as responses_api
    from spans_unique as spans
    left join details using (trace_id, span_id)
    where operation is not null or capture is not null
),

turns as (
    select
        trace_id, span_id,
        case when system_said is not null and input is not null then [{
            choice: null::int, role: 'system', finish_reason: null::varchar,
            parts: from_json(system, '[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]')
        }] else [] end
        || list_transform(
            coalesce(from_json(
                case when not (operation = 'text_completion' and regexp_matches(input, '"content": ?[0-9]')) then input end,
                '[{"role":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]}]'
            ), []),
            lambda m: {choice: null::int, role: m.role, finish_reason: null::varchar, parts: m.parts}
        )
        || list_transform(
            coalesce(from_json(
                output,
                '[{"role":"VARCHAR","finish_reason":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]}]'
            ), []),
            lambda m, i: {choice: case when responses_api then 0 else i - 1 end::int, role: m.role, finish_reason: m.finish_reason, parts: m.parts}
        ) as turns
    from mine
    where span_kind = 'llm'
),

sorted as (
    select
        trace_id, span_id,
        list_transform(turns, lambda m: {
            choice: m.choice, role: m.role, finish_reason: m.finish_reason,
            texts: list_filter(coalesce(m.parts, []), lambda p: coalesce(p.type, 'text') = 'text'),
            calls: list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool_call'),
            results: list_filter(coalesce(m.parts, []), lambda p: p.type = 'tool_call_response')
        }) as turns
    from turns
),

said as (
    select
        trace_id, span_id,
        flatten(list_transform(turns, lambda m:
            list_transform(m.results, lambda p: {
                choice: null::int, role: 'tool', text: coalesce(p.response, p.result) ->> '$',
                tool_calls: null::struct(id varchar, name varchar, arguments varchar)[],
                tool_call_id: coalesce(p.id, p.tool_call_id), finish_reason: null::varchar
            })
            -- What stands beside tool results in one message is said after them.
            || case when len(m.results) = 0 or len(m.texts) > 0 or len(m.calls) > 0 then [{
                choice: m.choice, role: m.role,
                text: array_to_string(list_transform(
                    list_filter(m.texts, lambda p: not (
                        contains(p.content, '"type": "function_call"')
                        and len(list_filter(m.calls, lambda c: contains(p.content, c.id))) > 0
                    )),
                    lambda p: p.content
                ), ''),
                tool_calls: list_transform(m.calls, lambda p: {
                    id: case when not starts_with(p.id, 'fc_') then p.id else p.tool_call_id end,
                    name: p.name, arguments: coalesce(p.arguments ->> '$', '{}')
                }),
                tool_call_id: null::varchar, finish_reason: m.finish_reason
            }] else [] end
        )) as messages
    from sorted
)

select
    trace_id, span_id,
    'genai' as convention,
    case when input_said is not null then 80 else 20 end as precedence,
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
    -- A stream that broke off ends well by its status, with an empty finish reason.
    span_kind = 'llm' and coalesce(attributes_bool['gen_ai.is_streaming'], false)
        and coalesce(regexp_matches(output, '"finish_reason": ?""'), false) as failed,
    case when span_kind = 'tool' then tool_name end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.arguments'], attributes_json['gen_ai.tool.call.arguments']) end as tool_arguments,
    case when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.result'], attributes_json['gen_ai.tool.call.result']) end as tool_result,
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
