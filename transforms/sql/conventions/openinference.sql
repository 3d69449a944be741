-- OpenInference: openinference.span.kind; messages are flat, indexed attributes (llm.input_messages.N.message.…), and the
-- exact payload may stand beside them in input.value and output.value.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Indexes may have gaps. Of Chat Completions N is the choice; the Responses API gives each output item a message of its
-- own: they are parts of one choice. The legacy completions API answers in llm.choices.N; its prompt is no conversation
-- and is not read as one. A chat that the Agents SDK streams leaves its answer in output.value alone.
-- The ids of the tokens are in that payload if the server was asked for them (vLLM's return_token_ids).
-- A span may speak GenAI as well, rewritten from these attributes: then GenAI is read, unless it has fewer messages.
with

mine as not materialized (
    select
        trace_id, span_id, name, oi_kind, agent_name, session_id, user_id, llm_model_name, tool_name, tool_call_id,
        attributes_str as attributes, attributes_int as numbers,
        case when json_valid(coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages']))
            then coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages']) end as genai_messages,
        case when oi_kind in ('LLM', 'TOOL') then attributes_str['output.value'] end as output,
        case when oi_kind = 'LLM' and json_valid(attributes_str['llm.invocation_parameters'])
            then attributes_str['llm.invocation_parameters'] end as invocation
    from spans_unique
    where oi_kind is not null
),

-- Everything but what was said, so that no text is carried about.
read as materialized (
    select
        trace_id, span_id, name, oi_kind, agent_name, session_id, user_id, llm_model_name, tool_name, tool_call_id, invocation,
        case when json_valid(output) then json_extract_string(output, [
            '$.id', '$.llm_output.id', '$.generations[0][0].message.kwargs.response_metadata.id', '$[0].output[0].provider_data.response_id',
            '$.finish_reason', '$.data.tool_call_id', '$.tool_call_id', '$.data.content', '$.object', '$[0].object'
        ]) end as value,
        case when json_valid(output) then case when json_extract_string(output, '$[0].object') = 'response' then json_extract(output, '$[0].output') end end as streamed_items,
        case when oi_kind = 'LLM' and contains(output, 'ChatCompletion(id=')
            then nullif(regexp_extract(output, 'ChatCompletion\(id=''([^'']+)''', 1), '') end as printed_id,
        case when oi_kind = 'LLM' and contains(output, '"token_ids"') then case when json_valid(output) then from_json(
            output,
            '{"prompt_token_ids":["INTEGER"],"choices":[{"index":"INTEGER","token_ids":["INTEGER"],"prompt_token_ids":["INTEGER"],'
            || '"logprobs":{"content":[{"logprob":"DOUBLE"}],"token_logprobs":["DOUBLE"]}}]}'
        ) end end as payload,
        -- Text that was hidden on purpose reads so.
        case when oi_kind = 'LLM' and list_contains(map_values(attributes), '__REDACTED__') then 'redacted' end as content,
        oi_kind = 'LLM' and genai_messages is not null as dual,
        dual and coalesce(json_array_length(genai_messages), 0) >= len(list_filter(
            map_keys(attributes), lambda k: k ~ '^llm\.input_messages\.\d+\.message\.role$'
        )) as left_to_genai,
        attributes['agent.name'] as agent_attribute,
        attributes['graph.node.id'] as graph_node,
        case when attributes['metadata'] like '%"lc_agent_name"%' then case
            when json_valid(attributes['metadata']) then attributes['metadata'] ->> '$.lc_agent_name' end end as said_agent,
        attributes['llm.system'] as provider,
        attributes['llm.finish_reason'] as finish_reason,
        attributes['tool.name'] as tool_attribute,
        numbers['llm.token_count.prompt'] as prompt_tokens,
        numbers['llm.token_count.completion'] as completion_tokens,
        case when oi_kind = 'TOOL' then attributes['input.value'] end as tool_arguments,
        case when oi_kind = 'TOOL' then coalesce(value[8], output) end as tool_result,
        -- A schema without a name is that of the parameters alone.
        case when oi_kind = 'LLM' then list_transform(
            list_sort(list_transform(
                list_filter(map_keys(attributes), lambda k: regexp_matches(k, '^llm\.tools\.\d{1,9}\.tool\.json_schema$')),
                lambda k: split_part(k, '.', 3)::int
            )),
            lambda i: case
                when attributes['llm.tools.' || i || '.tool.name'] is null then attributes['llm.tools.' || i || '.tool.json_schema']
                when json_valid(attributes['llm.tools.' || i || '.tool.json_schema']) then case
                    when json_extract_string(attributes['llm.tools.' || i || '.tool.json_schema'], ['$.function', '$.name']) = [null, null]
                        then json_object(
                            'name', attributes['llm.tools.' || i || '.tool.name'],
                            'description', attributes['llm.tools.' || i || '.tool.description'],
                            'parameters', attributes['llm.tools.' || i || '.tool.json_schema']::json
                        )::varchar
                    else attributes['llm.tools.' || i || '.tool.json_schema']
                end
            end
        ) end as tools
    from mine
),

-- What belongs to messages, of the spans whose messages are read here.
entries as (
    select trace_id, span_id, unnest(list_filter(map_entries(attributes_str), lambda e: starts_with(e.key, 'llm.input_messages.')
        or starts_with(e.key, 'llm.output_messages.') or starts_with(e.key, 'llm.choices.'))) as entry
    from spans_unique
    semi join (select trace_id, span_id from read where oi_kind = 'LLM' and not left_to_genai) as llm using (trace_id, span_id)
    where oi_kind = 'LLM'
),

fields as (
    select trace_id, span_id, side, n, entry.value as value,
        regexp_extract(entry.key, '^llm\.(?:in|out)put_messages\.\d+\.(?:message\.)?(.+)$', 1) as field
    from (
        select
            trace_id, span_id, entry,
            case when starts_with(entry.key, 'llm.input_messages.') then 'input' else 'output' end as side,
            try_cast(split_part(entry.key, '.', 3) as int) as n
        from entries
        where not starts_with(entry.key, 'llm.choices.')
    )
    where n is not null
),

contents as (
    select trace_id, span_id, side, n, string_agg(text, '' order by m) as text
    from (
        select
            trace_id, span_id, side, n, try_cast(split_part(field, '.', 2) as int) as m,
            max(value) filter (where field like '%.message_content.type') as type,
            max(value) filter (where field like '%.message_content.text') as text
        from fields
        where starts_with(field, 'contents.')
        group by all
    )
    where coalesce(type, 'text') in ('text', 'input_text', 'output_text')
    group by all
),

calls as (
    select trace_id, span_id, side, n, list({id: id, name: name, arguments: coalesce(arguments, '{}')} order by m) as tool_calls
    from (
        select
            trace_id, span_id, side, n, try_cast(split_part(field, '.', 2) as int) as m,
            max(value) filter (where field like '%.tool_call.id') as id,
            max(value) filter (where field like '%.tool_call.function.name') as name,
            max(value) filter (where field like '%.tool_call.function.arguments') as arguments
        from fields
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
        max(value) filter (where field = 'tool_call_id') as tool_call_id,
        max(case when json_valid(value) then json_extract_string(value, ['$.content', '$.call_id']) end)
            filter (where field = 'function.0') as function_result
    from fields
    group by all
),

completions as (
    select trace_id, span_id, 'output' as side, try_cast(split_part(entry.key, '.', 3) as int) as n,
        'assistant' as role, entry.value as text
    from entries
    where regexp_matches(entry.key, '^llm\.choices\.\d+\.completion\.text$')
),

streamed as (
    select trace_id, span_id, unnest(items) as item, generate_subscripts(items, 1) as i
    from (
        select trace_id, span_id, from_json(streamed_items,
            '[{"type":"VARCHAR","content":[{"text":"VARCHAR"}],"call_id":"VARCHAR","name":"VARCHAR","arguments":"VARCHAR"}]') as items
        from read
        anti join (select trace_id, span_id from messages where side = 'output') using (trace_id, span_id)
        where oi_kind = 'LLM' and streamed_items is not null
    )
),

together as (
    select
        messages.trace_id, messages.span_id, messages.side, messages.n, messages.n as place,
        messages.role,
        coalesce(messages.content, contents.text, function_result[1]) as text,
        calls.tool_calls,
        coalesce(messages.tool_call_id, function_result[2]) as tool_call_id
    from messages
    left join contents using (trace_id, span_id, side, n)
    left join calls using (trace_id, span_id, side, n)

    union all by name

    select *, n as place from completions

    union all by name

    select
        trace_id, span_id, 'output' as side, 0 as n, i as place, 'assistant' as role,
        array_to_string(list_transform(item.content, lambda c: c.text), '') as text,
        case when item.type = 'function_call'
            then [{id: item.call_id, name: item.name, arguments: coalesce(item.arguments, '{}')}] end as tool_calls,
        null::varchar as tool_call_id
    from streamed
    where item.type in ('message', 'function_call')
),

-- A list sorted by its places: to sort the messages themselves would move their text about.
listed as (
    select trace_id, span_id, list_select(messages, list_grade_up(places)) as messages
    from (
        select
            trace_id, span_id,
            list({
                choice: case when side = 'input' then null when read.answers_in_one then 0 else n end::int,
                role: role, text: text, tool_calls: tool_calls, tool_call_id: together.tool_call_id, finish_reason: null::varchar
            }) as messages,
            list(case when side = 'input' then place else 1_000_000_000 + place end) as places
        from together
        join (select trace_id, span_id, value[9] = 'response' as answers_in_one from read where oi_kind = 'LLM') as read
            using (trace_id, span_id)
        group by all
    )
),

-- smolagents keeps what tools were asked and gave under roles of its own, and sends them as the assistant's and the
-- user's, neighbours of one role as one message.
said as (
    select
        trace_id, span_id,
        case when list_has_any(roles, ['tool-call', 'tool-response']) then list_transform(heads, lambda h, k: {
            choice: messages[h].choice, role: sent_as[h],
            text: array_to_string(list_transform(messages[h:coalesce(heads[k + 1], len(messages) + 1) - 1], lambda m: m.text), chr(10)),
            tool_calls: messages[h].tool_calls, tool_call_id: messages[h].tool_call_id, finish_reason: messages[h].finish_reason
        }) else messages end as messages
    from (
        select
            *,
            list_filter(range(1, len(messages) + 1), lambda i: i = 1 or sent_as[i] is distinct from sent_as[i - 1]
                or messages[i].choice is not null or len(messages[i].tool_calls) > 0 or messages[i].tool_call_id is not null) as heads
        from (
            select
                *,
                list_transform(messages, lambda m: case when m.tool_call_id is null then m.role end) as roles,
                list_transform(messages, lambda m: case
                    when m.tool_call_id is null and m.role = 'tool-response' then 'user'
                    when m.role = 'tool-call' then 'assistant'
                    else m.role
                end) as sent_as
            from listed
        )
    )
)

select
    trace_id, span_id,
    'openinference' as convention,
    case when dual and left_to_genai then 60 else 90 end as precedence,
    case
        when oi_kind = 'LLM' then 'llm'
        when oi_kind in ('EVALUATOR', 'GUARDRAIL') then 'judge'
        when oi_kind in ('AGENT', 'TOOL', 'CHAIN') then lower(oi_kind)
        else 'other'
    end as span_kind,
    case when oi_kind = 'AGENT' then coalesce(agent_name, agent_attribute, graph_node, name) end as agent,
    -- LangChain says on every span which agent it is for; its own agents have no span of kind agent.
    said_agent as for_agent,
    coalesce(agent_name, agent_attribute) as near_agent,
    session_id,
    user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    null::varchar as operation,
    provider,
    coalesce(llm_model_name, invocation ->> '$.model') as model,
    case when oi_kind = 'LLM' then coalesce(
        value[1], value[2], value[3], value[4], printed_id
    ) end as response_id,
    invocation ->> '$.previous_response_id' as previous_response_id,
    case when oi_kind = 'LLM' and coalesce(finish_reason, value[5]) is not null
        then [coalesce(finish_reason, value[5])] end as finish_reasons,
    prompt_tokens,
    completion_tokens,
    case when invocation is not null then json_object(
        'temperature', invocation -> '$.temperature', 'top_p', invocation -> '$.top_p', 'top_k', invocation -> '$.top_k',
        'min_p', invocation -> '$.min_p',
        'max_tokens', coalesce(invocation -> '$.max_tokens', invocation -> '$.max_completion_tokens', invocation -> '$.max_output_tokens'),
        'seed', invocation -> '$.seed', 'stop', invocation -> '$.stop', 'n', invocation -> '$.n'
    ) end::varchar as sampling,
    tools,
    content,
    false as failed,
    case when oi_kind = 'TOOL' then coalesce(tool_name, tool_attribute) end as tool_name,
    case when oi_kind = 'TOOL' then coalesce(tool_call_id, value[6], value[7]) end as tool_call_id,
    tool_arguments,
    tool_result,
    said.messages,
    coalesce(payload.prompt_token_ids, payload.choices[1].prompt_token_ids) as prompt_token_ids,
    case when list_transform(payload.choices, lambda c: c.index) = list_transform(range(len(payload.choices)), lambda i: i::int)
        then list_transform(payload.choices, lambda c: {
            token_ids: case when len(c.token_ids) = list_count(c.token_ids) then c.token_ids end,
            logprobs: case when len(c.token_ids) = len(c.logprobs.content) then list_transform(c.logprobs.content, lambda t: t.logprob)
                when len(c.token_ids) = len(c.logprobs.token_logprobs) then c.logprobs.token_logprobs end
        }) end as token_choices
from read
left join said using (trace_id, span_id)
