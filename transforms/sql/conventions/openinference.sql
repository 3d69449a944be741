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
        llm, output,
        -- Text that is no document is not even tried as one.
        case when regexp_matches(output, '^\s*[\[{]') then try(json_extract_string(output, [
            '$.id', '$.llm_output.id', '$.generations[0][0].message.kwargs.response_metadata.id', '$[0].output[0].provider_data.response_id',
            '$.finish_reason', '$.data.tool_call_id', '$.tool_call_id', '$.data.content', '$.object'
        ])) end as value,
        -- What the call was given, each read once: model, previous_response_id, then what is sampled by.
        case when llm then try(json_extract(attributes_str['llm.invocation_parameters'], [
            '$.model', '$.previous_response_id', '$.temperature', '$.top_p', '$.top_k', '$.min_p', '$.max_tokens',
            '$.max_completion_tokens', '$.max_output_tokens', '$.seed', '$.stop', '$.n'
        ])) end as invocation
    from (
        select *, oi_kind = 'LLM' as llm, case when oi_kind in ('LLM', 'TOOL') then attributes_str['output.value'] end as output
        from spans_unique
        where oi_kind is not null
    )
),

-- Spans that speak GenAI as well, and whether they say as much there.
duals as materialized (
    select
        trace_id, span_id,
        said >= len(list_filter(keys, lambda k: case when starts_with(k, 'llm.input_messages.')
            then regexp_matches(k, '^llm\.input_messages\.\d+\.message\.role$') else false end)) as left_to_genai
    from (
        select trace_id, span_id, map_keys(attributes_str) as keys, try(json_array_length(
            coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages'])
        )) as said
        from spans_unique
        where oi_kind = 'LLM'
    )
    where said is not null
),

-- Which attribute holds what, by its place in the map: texts are fetched by place in the end, nothing carries them about.
keys as materialized (
    select trace_id, span_id, unnest(keys) as key, generate_subscripts(keys, 1) as place
    from (
        select trace_id, span_id, map_keys(attributes_str) as keys
        from spans_unique
        anti join (select trace_id, span_id from duals where left_to_genai) as elsewhere using (trace_id, span_id)
        where oi_kind = 'LLM'
    )
),

-- Senders use the same keys again and again: each is read once.
known as (
    select
        key, side, n, try_cast(split_part(field, '.', 2) as int) as m,
        case
            when side = 'completion' then 'content'
            when field in ('role', 'content', 'tool_call_id') then field
            when field = 'function.0' then 'function'
            when field like 'contents.%.message\_content.type' escape '\' then 'part_type'
            when field like 'contents.%.message\_content.text' escape '\' then 'part_text'
            when field like 'tool\_calls.%.tool\_call.id' escape '\' then 'call_id'
            when field like 'tool\_calls.%.tool\_call.function.name' escape '\' then 'call_name'
            when field like 'tool\_calls.%.tool\_call.function.arguments' escape '\' then 'call_arguments'
        end as field
    from (
        select
            key,
            case when starts_with(key, 'llm.input_messages.') then 'input' when starts_with(key, 'llm.output_messages.') then 'output' else 'completion' end as side,
            try_cast(split_part(key, '.', 3) as int) as n,
            regexp_extract(key, '^llm\.(?:in|out)put_messages\.\d+\.(?:message\.)?(.+)$', 1) as field
        from (select distinct key from keys)
        where starts_with(key, 'llm.input_messages.') or starts_with(key, 'llm.output_messages.')
            or regexp_matches(key, '^llm\.choices\.\d+\.completion\.text$')
    )
    where n is not null
),

fields as materialized (
    select trace_id, span_id, side, n, m, field, place from keys join known using (key)
),

parts as (
    select
        trace_id, span_id, side, n,
        list({m: m, type: type, text: text}) filter (where text is not null) as contents,
        list({m: m, id: id, name: name, arguments: arguments}) filter (where name is not null) as tool_calls
    from (
        select
            trace_id, span_id, side, n, m,
            max(place) filter (where field = 'part_type') as type,
            max(place) filter (where field = 'part_text') as text,
            max(place) filter (where field = 'call_id') as id,
            max(place) filter (where field = 'call_name') as name,
            max(place) filter (where field = 'call_arguments') as arguments
        from fields
        where starts_with(field, 'part_') or starts_with(field, 'call_')
        group by all
    )
    group by all
),

messages as (
    select
        trace_id, span_id, side, n,
        max(place) filter (where field = 'role') as role,
        max(place) filter (where field = 'content') as content,
        max(place) filter (where field = 'tool_call_id') as tool_call_id,
        max(place) filter (where field = 'function') as function_result
    from fields
    group by all
),

listed as (
    select
        trace_id, span_id,
        bool_or(side = 'output') as answered,
        list_sort(list({
            part: case side when 'input' then 0 when 'output' then 1 else 2 end, n: n, role: role, content: content,
            tool_call_id: tool_call_id, function_result: function_result,
            contents: list_sort(contents), tool_calls: list_sort(tool_calls)
        })) as messages
    from messages
    left join parts using (trace_id, span_id, side, n)
    group by all
),

streamed as (
    select
        trace_id, span_id,
        list_transform(list_filter(items, lambda i: i.type in ('message', 'function_call')), lambda i: {
            choice: 0, role: 'assistant', text: array_to_string(list_transform(i.content, lambda c: c.text), ''),
            tool_calls: case when i.type = 'function_call'
                then [{id: i.call_id, name: i.name, arguments: coalesce(i.arguments, '{}')}] end,
            tool_call_id: null::varchar, finish_reason: null::varchar
        }) as messages
    from (
        select trace_id, span_id, try(from_json(output,
            '[{"object":"VARCHAR","output":[{"type":"VARCHAR","content":[{"text":"VARCHAR"}],"call_id":"VARCHAR","name":"VARCHAR","arguments":"VARCHAR"}]}]'
        )) as responses, responses[1].output as items
        from (select trace_id, span_id, attributes_str['output.value'] as output from spans_unique where oi_kind = 'LLM')
        where starts_with(output, '[') and contains(output, '"response"')
    )
    anti join (select trace_id, span_id from duals where left_to_genai union all select trace_id, span_id from listed where answered) as elsewhere
        using (trace_id, span_id)
    where responses[1].object = 'response'
),

read as (
    select
        mine.*, map_values(attributes) as texts,
        list_contains(texts, 'tool-call') or list_contains(texts, 'tool-response') as own_roles,
        listed.messages as places, streamed.messages as streamed,
        duals.left_to_genai is not null as dual, coalesce(duals.left_to_genai, false) as left_to_genai
    from mine
    left join duals using (trace_id, span_id)
    left join listed using (trace_id, span_id)
    left join streamed using (trace_id, span_id)
),

said as (
    select
        *,
        list_transform(places, lambda m: {
            choice: case when m.part = 0 then null when m.part = 1 and value[9] = 'response' then 0 else m.n end::int,
            role: case when m.part = 2 then 'assistant' else texts[m.role] end,
            text: coalesce(
                texts[m.content],
                case when len(m.contents) > 0 then array_to_string(list_transform(m.contents, lambda c: case
                    when coalesce(texts[c.type], 'text') in ('text', 'input_text', 'output_text') then texts[c.text]
                end), '') end,
                case when m.function_result is not null then try(json_extract_string(texts[m.function_result], '$.content')) end
            ),
            tool_calls: list_transform(m.tool_calls, lambda c: {
                id: texts[c.id], name: texts[c.name], arguments: coalesce(texts[c.arguments], '{}')
            }),
            tool_call_id: coalesce(
                texts[m.tool_call_id],
                case when m.function_result is not null then try(json_extract_string(texts[m.function_result], '$.call_id')) end
            ),
            finish_reason: null::varchar
        }) as messages
    from read
),

-- smolagents keeps what tools were asked and gave under roles of its own, and sends them as the assistant's and the user's,
-- neighbours of one role as one message.
turns as (
    select
        * exclude (messages),
        case when streamed is null then messages else coalesce(messages, []) || streamed end as messages,
        case when own_roles then list_transform(messages, lambda m: case
            when m.tool_call_id is null and m.role = 'tool-response' then 'user'
            when m.role = 'tool-call' then 'assistant'
            else m.role
        end) end as sent_as,
        case when own_roles then list_transform(messages, lambda m:
            m.choice is not null or len(m.tool_calls) > 0 or m.tool_call_id is not null) end as apart
    from said
),

told as (
    select
        * exclude (messages),
        case when sent_as is null then messages else list_transform(heads, lambda h, k: {
            choice: messages[h].choice, role: sent_as[h],
            text: array_to_string(list_transform(messages[h:coalesce(heads[k + 1], len(messages) + 1) - 1], lambda m: m.text), chr(10)),
            tool_calls: messages[h].tool_calls, tool_call_id: messages[h].tool_call_id, finish_reason: messages[h].finish_reason
        }) end as messages,
        case when llm and contains(output, '"token_ids"') then try(from_json(
            output,
            '{"prompt_token_ids":["INTEGER"],"choices":[{"index":"INTEGER","token_ids":["INTEGER"],"prompt_token_ids":["INTEGER"],'
            || '"logprobs":{"content":[{"logprob":"DOUBLE"}],"token_logprobs":["DOUBLE"]}}]}'
        )) end as payload
    from (
        select *, list_filter(range(1, len(sent_as) + 1), lambda i: i = 1 or sent_as[i] is distinct from sent_as[i - 1] or apart[i]) as heads
        from turns
    )
)

select
    trace_id, span_id,
    'openinference' as convention,
    case when left_to_genai then 60 else 90 end as precedence,
    case
        when llm then 'llm'
        when oi_kind in ('EVALUATOR', 'GUARDRAIL') then 'judge'
        when oi_kind in ('AGENT', 'TOOL', 'CHAIN') then lower(oi_kind)
        else 'other'
    end as span_kind,
    case when oi_kind = 'AGENT' then coalesce(agent_name, attributes['agent.name'], attributes['graph.node.id'], name) end as agent,
    -- LangChain says on every span which agent it is for; its own agents have no span of kind agent.
    case when attributes['metadata'] like '%"lc_agent_name"%' then try(attributes['metadata'] ->> '$.lc_agent_name') end as for_agent,
    coalesce(agent_name, attributes['agent.name']) as near_agent,
    session_id,
    user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    null::varchar as operation,
    attributes['llm.system'] as provider,
    coalesce(llm_model_name, invocation[1] ->> '$') as model,
    case when llm then coalesce(
        value[1], value[2], value[3], value[4],
        case when contains(output, 'ChatCompletion(id=') then nullif(regexp_extract(output, 'ChatCompletion\(id=''([^'']+)''', 1), '') end
    ) end as response_id,
    invocation[2] ->> '$' as previous_response_id,
    case when llm and coalesce(attributes['llm.finish_reason'], value[5]) is not null
        then [coalesce(attributes['llm.finish_reason'], value[5])] end as finish_reasons,
    numbers['llm.token_count.prompt'] as prompt_tokens,
    numbers['llm.token_count.completion'] as completion_tokens,
    case when invocation is not null then json_object(
        'temperature', invocation[3], 'top_p', invocation[4], 'top_k', invocation[5], 'min_p', invocation[6],
        'max_tokens', coalesce(invocation[7], invocation[8], invocation[9]),
        'seed', invocation[10], 'stop', invocation[11], 'n', invocation[12]
    ) end::varchar as sampling,
    -- A schema without a name is that of the parameters alone.
    case when llm then list_transform(
        list_sort(list_transform(
            list_filter(map_keys(attributes), lambda k: case when starts_with(k, 'llm.tools.')
                then regexp_matches(k, '^llm\.tools\.\d{1,9}\.tool\.json_schema$') else false end),
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
    ) end as tools,
    -- Text that was hidden on purpose reads so.
    case when llm and list_contains(texts, '__REDACTED__') then 'redacted' end as content,
    false as failed,
    case when oi_kind = 'TOOL' then coalesce(tool_name, attributes['tool.name']) end as tool_name,
    case when oi_kind = 'TOOL' then coalesce(tool_call_id, value[6], value[7]) end as tool_call_id,
    case when oi_kind = 'TOOL' then attributes['input.value'] end as tool_arguments,
    case when oi_kind = 'TOOL' then coalesce(value[8], output) end as tool_result,
    messages,
    coalesce(payload.prompt_token_ids, payload.choices[1].prompt_token_ids) as prompt_token_ids,
    case when list_transform(payload.choices, lambda c: c.index) = list_transform(range(len(payload.choices)), lambda i: i::int)
        then list_transform(payload.choices, lambda c: {
            token_ids: case when len(c.token_ids) = list_count(c.token_ids) then c.token_ids end,
            logprobs: case when len(c.token_ids) = len(c.logprobs.content) then list_transform(c.logprobs.content, lambda t: t.logprob)
                when len(c.token_ids) = len(c.logprobs.token_logprobs) then c.logprobs.token_logprobs end
        }) end as token_choices
from told
