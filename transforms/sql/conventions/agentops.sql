-- AgentOps, with which Agent Lightning 0.3 traces calls: agentops.span.kind on its own spans; calls of the model as flat,
-- indexed attributes (gen_ai.prompt.N.…, gen_ai.completion.N.…) under gen_ai.request.type.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Unless streamed, the tool calls of an answer are spans below the call (tool.call.id): what the model asked for, no
-- execution of a tool. Agent Lightning adds the exact ids of the first choice where the server gave them.
with

mine as (
    select
        *,
        attributes_str as attributes,
        attributes_str['agentops.span.kind'] as level,
        case
            when attributes_str['gen_ai.request.type'] in ('chat', 'completion') then 'llm'
            when attributes_str['tool.call.id'] is not null then 'asked'
            when level in ('agent', 'tool') then level
            when level in ('chain', 'task', 'operation', 'workflow') then 'chain'
            when level in ('evaluator', 'guardrail') then 'judge'
            else 'other'
        end as part
    from spans_unique
    where attributes_str['agentops.span.kind'] is not null
        or (attributes_str['gen_ai.request.type'] is not null and attributes_str['gen_ai.prompt.0.role'] is not null)
        or (attributes_str['tool.call.id'] is not null and oi_kind is null and operation is null)
),

entries as (
    select
        trace_id, span_id, split_part(entry.key, '.', 2) as side, try_cast(split_part(entry.key, '.', 3) as int) as n,
        regexp_extract(entry.key, '^gen_ai\.(?:prompt|completion)\.\d+\.(.+)$', 1) as field, entry.value as value
    from (select trace_id, span_id, unnest(map_entries(attributes)) as entry from mine where part = 'llm')
    where starts_with(entry.key, 'gen_ai.prompt.') or starts_with(entry.key, 'gen_ai.completion.')
),

tool_calls as (
    select
        trace_id, span_id, side, n, try_cast(split_part(field, '.', 2) as bigint) as place, '' as tie,
        max(value) filter (where field like '%.id') as id,
        max(value) filter (where field like '%.name') as name,
        max(value) filter (where field like '%.arguments') as arguments
    from entries
    where starts_with(field, 'tool_calls.')
    group by all
    union all
    select
        trace_id, parent_span_id, 'completion', 0, start_unix_nano::bigint, span_id,
        attributes['tool.call.id'], coalesce(tool_name, attributes['tool.name']), attributes['tool.parameters']
    from mine
    where part = 'asked'
),

calls as (
    select trace_id, span_id, side, n, list({id: id, name: name, arguments: coalesce(arguments, '{}')} order by place, tie) as tool_calls
    from tool_calls
    where name is not null
    group by all
),

messages as (
    select
        trace_id, span_id, side, n,
        max(value) filter (where field = 'role') as role,
        max(value) filter (where field = 'content') as content,
        max(value) filter (where field = 'tool_call_id') as tool_call_id,
        max(value) filter (where field = 'finish_reason') as finish_reason
    from entries
    where n is not null
    group by all
),

said as (
    select
        trace_id, span_id,
        list({
            choice: case when side = 'completion' then n end,
            role: role, text: content, tool_calls: tool_calls, tool_call_id: tool_call_id, finish_reason: finish_reason
        } order by side desc, n) as messages
    from messages
    left join calls using (trace_id, span_id, side, n)
    group by trace_id, span_id
)

select
    trace_id, span_id,
    'agentops' as convention,
    case when part = 'llm' then 75 else 85 end as precedence,
    case when part = 'asked' then 'other' else part end as span_kind,
    case when part = 'agent' then coalesce(agent_name, attributes['operation.name'], name) end as agent,
    null::varchar as for_agent,
    null::varchar as near_agent,
    null::varchar as session_id,
    null::varchar as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    case when part = 'llm' then 'chat' end as operation,
    case when part = 'llm' then attributes['gen_ai.system'] end as provider,
    coalesce(response_model, request_model) as model,
    response_id,
    null::varchar as previous_response_id,
    null::varchar[] as finish_reasons,
    case when part = 'llm' then coalesce(input_tokens, attributes_int['gen_ai.usage.prompt_tokens']) end as prompt_tokens,
    case when part = 'llm' then coalesce(output_tokens, attributes_int['gen_ai.usage.completion_tokens']) end as completion_tokens,
    case when part = 'llm' then json_object(
        'temperature', coalesce(attributes_dbl['gen_ai.request.temperature'], attributes_int['gen_ai.request.temperature']::double),
        'top_p', coalesce(attributes_dbl['gen_ai.request.top_p'], attributes_int['gen_ai.request.top_p']::double),
        'max_tokens', attributes_int['gen_ai.request.max_tokens'],
        'seed', attributes_int['gen_ai.request.seed']
    ) end::varchar as sampling,
    case when part = 'llm' then list_transform(
        list_sort(list_transform(
            list_filter(map_keys(attributes), lambda k: regexp_matches(k, '^gen_ai\.request\.functions\.\d{1,9}\.name$')),
            lambda k: split_part(k, '.', 4)::int
        )),
        lambda i: json_object(
            'name', attributes['gen_ai.request.functions.' || i || '.name'],
            'description', attributes['gen_ai.request.functions.' || i || '.description'],
            'parameters', try_cast(attributes['gen_ai.request.functions.' || i || '.parameters'] as json)
        )::varchar
    ) end as tools,
    null::varchar as content,
    false as failed,
    case when part = 'tool' then coalesce(tool_name, attributes['operation.name'], name) end as tool_name,
    null::varchar as tool_call_id,
    case
        when part <> 'tool' then null
        when json_array_length(try_cast(attributes['agentops.tool.input'] as json), '$.args') = 0
            then try_cast(attributes['agentops.tool.input'] as json) ->> '$.kwargs'
        else attributes['agentops.tool.input']
    end as tool_arguments,
    case when part = 'tool' then attributes['agentops.tool.output'] end as tool_result,
    said.messages,
    case when part = 'llm' then from_json(attributes_json['prompt_token_ids'], '["INTEGER"]') end as prompt_token_ids,
    case when part = 'llm' and attributes_json['response_token_ids'] is not null and attributes['gen_ai.completion.1.role'] is null then [{
        token_ids: from_json(attributes_json['response_token_ids'], '["INTEGER"]'),
        logprobs: list_transform(from_json(try_cast(attributes['logprobs.content'] as json), '[{"logprob":"DOUBLE"}]'), lambda l: l.logprob)
    }] end as token_choices
from mine
left join said using (trace_id, span_id)
