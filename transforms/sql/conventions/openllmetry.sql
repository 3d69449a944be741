-- OpenLLMetry. Legacy (before 0.53): messages are flat, indexed attributes (gen_ai.prompt.N.…, gen_ai.completion.N.…). Its
-- later spans speak GenAI, its event mode log records: those are read there; what it adds of its own (traceloop.*: the
-- kind of a workflow's span, session, user, agent, what a tool was given and gave) is read here.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Its legacy spans of the Responses API leave out tool calls and their results among the input without a trace, so with
-- tools on offer the prompt is taken as partial; the id of a tool call there is the output item's (fc_…), not the one that
-- the answer will name. A prompt of token ids is no conversation.
with

mine as (
    select
        *,
        attributes_str as attributes,
        attributes_str['traceloop.span.kind'] as level,
        attributes_str['llm.request.type'] as request_type,
        level is null and operation is null and oi_kind is null and coalesce(request_type, 'chat') in ('chat', 'completion') as legacy,
        case when level = 'tool' then coalesce(attributes_str['traceloop.entity.input'], attributes_str['gen_ai.tool.call.arguments']) end as input,
        case when level = 'tool' then coalesce(attributes_str['traceloop.entity.output'], attributes_str['gen_ai.tool.call.result']) end as output
    from spans_unique
    where attributes_str['traceloop.span.kind'] is not null
        or attributes_str['llm.request.type'] is not null
        or attributes_str['gen_ai.completion.0.role'] is not null
        or attributes_str['gen_ai.prompt.0.role'] is not null
        or attributes_str['traceloop.association.properties.session_id'] is not null
        or attributes_str['traceloop.association.properties.thread_id'] is not null
        or attributes_str['traceloop.association.properties.user_id'] is not null
),

entries as (
    select trace_id, span_id, split_part(entry.key, '.', 2) as side, try_cast(split_part(entry.key, '.', 3) as int) as n,
        regexp_extract(entry.key, '^gen_ai\.(?:prompt|completion)\.\d+\.(.+)$', 1) as field, entry.value as value
    from (select trace_id, span_id, unnest(map_entries(attributes)) as entry from mine where legacy)
    where starts_with(entry.key, 'gen_ai.prompt.') or starts_with(entry.key, 'gen_ai.completion.')
),

calls as (
    select trace_id, span_id, side, n,
        list({
            id: case when not starts_with(id, 'fc_') then id end, name: name, arguments: coalesce(arguments, '{}')
        } order by m) as tool_calls
    from (
        select
            trace_id, span_id, side, n, try_cast(split_part(field, '.', 2) as int) as m,
            max(value) filter (where field like '%.id') as id,
            max(value) filter (where field like '%.name') as name,
            max(value) filter (where field like '%.arguments') as arguments
        from entries
        where starts_with(field, 'tool_calls.')
        group by all
    )
    where name is not null
    group by all
),

messages as (
    select
        trace_id, span_id, side, n,
        max(value) filter (where field = 'role') as role,
        max(value) filter (where field = 'content') as content,
        max(case when json_valid(value) then value end) filter (where field = 'content' and side = 'prompt' and starts_with(value, '[{')) as parts,
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
            role: role,
            text: case
                -- A content of several parts is their JSON.
                when parts ->> '$[0].type' is not null
                    then array_to_string(list_transform(from_json(parts, '[{"text":"VARCHAR"}]'), lambda p: p.text), '')
                else content
            end,
            tool_calls: tool_calls, tool_call_id: tool_call_id, finish_reason: finish_reason
        } order by side desc, n) as messages
    from messages
    left join calls using (trace_id, span_id, side, n)
    group by trace_id, span_id
)

select
    trace_id, span_id,
    'openllmetry' as convention,
    case when legacy then 70 when level is not null then 85 else 10 end as precedence,
    case
        when legacy then 'llm'
        when level in ('workflow', 'agent') then 'agent'
        when level = 'tool' then 'tool'
        when level = 'task' then 'chain'
        else 'other'
    end as span_kind,
    case when level in ('workflow', 'agent') then coalesce(
        attributes['traceloop.association.properties.lc_agent_name'], agent_name, attributes['traceloop.entity.name'],
        attributes['traceloop.workflow.name'], name
    ) end as agent,
    attributes['traceloop.association.properties.lc_agent_name'] as for_agent,
    attributes['traceloop.workflow.name'] as near_agent,
    coalesce(attributes['traceloop.association.properties.session_id'], attributes['traceloop.association.properties.thread_id']) as session_id,
    attributes['traceloop.association.properties.user_id'] as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    null::varchar as operation,
    attributes['gen_ai.system'] as provider,
    coalesce(response_model, request_model) as model,
    response_id,
    null::varchar as previous_response_id,
    null::varchar[] as finish_reasons,
    coalesce(input_tokens, attributes_int['gen_ai.usage.prompt_tokens']) as prompt_tokens,
    coalesce(output_tokens, attributes_int['gen_ai.usage.completion_tokens']) as completion_tokens,
    case when legacy then json_object(
        'temperature', coalesce(attributes_dbl['gen_ai.request.temperature'], attributes_int['gen_ai.request.temperature']::double),
        'top_p', coalesce(attributes_dbl['gen_ai.request.top_p'], attributes_int['gen_ai.request.top_p']::double),
        'max_tokens', attributes_int['gen_ai.request.max_tokens']
    ) end::varchar as sampling,
    case when legacy then list_transform(
        list_sort(list_transform(
            list_filter(map_keys(attributes), lambda k: regexp_matches(k, '^llm\.request\.functions\.\d{1,9}\.name$')),
            lambda k: split_part(k, '.', 4)::int
        )),
        lambda i: json_object(
            'name', attributes['llm.request.functions.' || i || '.name'],
            'description', attributes['llm.request.functions.' || i || '.description'],
            'parameters', case when json_valid(attributes['llm.request.functions.' || i || '.parameters'])
                then attributes['llm.request.functions.' || i || '.parameters']::json end
        )::varchar
    ) end as tools,
    case when legacy and request_type is null and attributes['llm.request.functions.0.name'] is not null then 'partial' end as content,
    false as failed,
    case when level = 'tool' then attributes['traceloop.entity.name'] end as tool_name,
    coalesce(
        case when json_valid(output) then output ->> '$.output.kwargs.tool_call_id' end,
        case when json_valid(input) then input ->> '$.kwargs.tool_call_id' end
    ) as tool_call_id,
    coalesce(case when json_valid(input) then coalesce(input ->> '$.inputs', input ->> '$.input_str') end, input) as tool_arguments,
    coalesce(case when json_valid(output) then coalesce(output ->> '$.output.kwargs.content', output ->> '$.output') end, output) as tool_result,
    said.messages,
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from mine
left join said using (trace_id, span_id)
where legacy or level is not null or attributes['traceloop.association.properties.session_id'] is not null
    or attributes['traceloop.association.properties.thread_id'] is not null or attributes['traceloop.association.properties.user_id'] is not null
