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
        coalesce(attributes_str['openai.api.type'] = 'responses', false) as responses_api
    from spans_unique as spans
    left join details using (trace_id, span_id)
    where operation is not null or capture is not null
),

-- Each document is read once; what was cut by a length limit is no JSON.
documents as (
    select
        *,
        case when span_kind = 'llm' then try(from_json(
            system_said,
            '[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]'
        )) end as system_parts,
        case when span_kind = 'llm' and not (operation = 'text_completion' and regexp_matches(input_said, '"content": ?[0-9]')) then try(from_json(
            input_said,
            '[{"role":"VARCHAR","finish_reason":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]}]'
        )) end as input_turns,
        case when span_kind = 'llm' then try(from_json(
            output_said,
            '[{"role":"VARCHAR","finish_reason":"VARCHAR","parts":[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]}]'
        )) end as output_turns
    from mine
),

-- A prompt of which a part is lost is no prompt; instructions that are no JSON are plain text.
turns as (
    select
        *,
        case
            when starts_with(system_said, '[{') and system_parts is null then []
            else case when system_said is not null and (input_turns is not null or json_valid(input_said)) then [{
                role: 'system', finish_reason: null::varchar,
                parts: coalesce(system_parts, case when not json_valid(system_said) then from_json(
                    json_array(json_object('type', 'text', 'content', system_said)),
                    '[{"type":"VARCHAR","content":"VARCHAR","id":"VARCHAR","tool_call_id":"VARCHAR","name":"VARCHAR","arguments":"JSON","response":"JSON","result":"JSON"}]'
                ) end)
            }] else [] end || coalesce(input_turns, [])
        end as asked,
        asked || coalesce(output_turns, []) as turns
    from documents
),

spoken as (
    select
        *,
        list_transform(turns, lambda m: list_filter(m.parts, lambda p: p.type = 'tool_call')) as calls,
        list_transform(turns, lambda m: list_filter(m.parts, lambda p: p.type = 'tool_call_response')) as results
    from turns
),

said as (
    select
        *,
        list_transform(turns, lambda m, i: {
            choice: case when i > len(asked) then case when responses_api then 0 else i - len(asked) - 1 end end::int,
            role: m.role,
            text: coalesce(array_to_string(list_transform(m.parts, lambda p: case
                when coalesce(p.type, 'text') <> 'text' then null
                when len(calls[i]) > 0 and contains(p.content, '"type": "function_call"')
                    and len(list_filter(calls[i], lambda c: contains(p.content, c.id))) > 0 then null
                else p.content
            end), ''), ''),
            tool_calls: list_transform(calls[i], lambda p: {
                id: case when not starts_with(p.id, 'fc_') then p.id else p.tool_call_id end,
                name: p.name, arguments: coalesce(p.arguments ->> '$', '{}')
            }),
            tool_call_id: null::varchar, finish_reason: m.finish_reason
        }) as messages
    from spoken
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
    case when span_kind = 'llm' then try(from_json(
        coalesce(attributes['gen_ai.tool.definitions'], attributes_json['gen_ai.tool.definitions']), '["VARCHAR"]'
    )) end as tools,
    null::varchar as content,
    -- A stream that broke off ends well by its status, with an empty finish reason.
    span_kind = 'llm' and coalesce(attributes_bool['gen_ai.is_streaming'], false)
        and coalesce(output_turns is not null and regexp_matches(output_said, '"finish_reason": ?""'), false) as failed,
    case when span_kind = 'tool' then tool_name end as tool_name,
    case when span_kind = 'tool' then tool_call_id end as tool_call_id,
    case when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.arguments'], attributes_json['gen_ai.tool.call.arguments']) end as tool_arguments,
    -- Vercel's SDK 7 writes text as a JSON string.
    case
        when span_kind = 'tool' and attributes['gen_ai.tool.call.result'] like '"%"'
            then coalesce(try_cast(attributes['gen_ai.tool.call.result'] as json) ->> '$', attributes['gen_ai.tool.call.result'])
        when span_kind = 'tool' then coalesce(attributes['gen_ai.tool.call.result'], attributes_json['gen_ai.tool.call.result'])
    end as tool_result,
    -- What stands beside tool results in one message is said after them.
    case
        when span_kind <> 'llm' then null
        when not list_bool_or(list_transform(results, lambda r: len(r) > 0)) then messages
        else flatten(list_transform(messages, lambda m, i:
            list_transform(results[i], lambda p: {
                choice: null::int, role: 'tool', text: coalesce(p.response, p.result) ->> '$',
                tool_calls: null::struct(id varchar, name varchar, arguments varchar)[],
                tool_call_id: coalesce(p.id, p.tool_call_id), finish_reason: null::varchar
            })
            || case when coalesce(len(results[i]), 0) = 0 or len(m.tool_calls) > 0
                or len(list_filter(turns[i].parts, lambda p: coalesce(p.type, 'text') = 'text')) > 0 then [m] else [] end
        ))
    end as messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from said
