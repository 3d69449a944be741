-- What was said in each call: prompt and answers as JSON, and their hashes.
-- grain: one row per (trace_id, span_id) of an LLM or capture span that has any message
-- kind: bucket
-- An answer that came in several output items (Responses API) is one message per choice.
with

answers as (
    select
        trace_id, span_id, choice,
        string_agg(text, '' order by n, part) as text,
        flatten(list(tool_calls order by n, part)) as tool_calls,
        max(finish_reason) as finish_reason
    from messages
    where side = 'output'
    group by all
),

outputs as (
    select
        trace_id, span_id,
        list(choice order by choice) as choices,
        list(
            case
                when len(tool_calls) > 0 then to_json({
                    role: 'assistant', content: text,
                    tool_calls: list_transform(tool_calls, lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
                })
                else to_json({role: 'assistant', content: text})
            end
            order by choice
        ) as response_messages,
        list(
            sha256(to_json(['assistant', text, null, to_json(list_transform(tool_calls, lambda c: [c.id, c.name, c.arguments]))::varchar]))
            order by choice
        ) as response_hashes,
        case when bool_or(finish_reason is not null) then list(finish_reason order by choice) end as finish_reasons,
        bool_and(text = '' and len(tool_calls) = 0) as empty_response,
        flatten(list(list_transform(tool_calls, lambda c: {id: c.id, choice: choice}) order by choice)) as asked
    from answers
    group by all
),

inputs as (
    select
        trace_id, span_id,
        list(message order by n, part) as prompt_messages,
        list(hash order by n, part) as prompt_hashes,
        coalesce(list(hash order by n, part) filter (where role <> 'system'), []) as talk_hashes,
        bool_or(role = 'user') as has_user,
        arg_min(text, n) filter (where role = 'user') as first_user,
        bool_or(text = '' and len(tool_calls) = 0 and role in ('user', 'system')) as empty_input,
        arg_min(tool_call_id, n * 1000 + part) filter (where role <> 'system') as answers_tool_call_id,
        coalesce(flatten(list(list_transform(tool_calls, lambda c: c.id))), []) as asked_before
    from messages
    where side = 'input'
    group by all
)

select
    coalesce(inputs.trace_id, outputs.trace_id) as trace_id,
    coalesce(inputs.span_id, outputs.span_id) as span_id,
    to_json(coalesce(prompt_messages, []))::varchar as prompt_messages,
    coalesce(len(prompt_messages), 0) as prompt_length,
    to_json(coalesce(response_messages, []))::varchar as response_messages,
    coalesce(choices, []) as choices,
    coalesce(prompt_hashes, []) as prompt_hashes,
    coalesce(talk_hashes, []) as talk_hashes,
    coalesce(response_hashes, []) as response_hashes,
    finish_reasons,
    coalesce(has_user, false) as has_user,
    first_user,
    coalesce(empty_input, false) as empty_input,
    coalesce(empty_response, true) as empty_response,
    coalesce(asked, []) as asked,
    case when not list_contains(coalesce(asked_before, []), answers_tool_call_id) then answers_tool_call_id end
        as answers_tool_call_id,
    sha256(to_json(coalesce(prompt_hashes, []))) as talk_hash,
    sha256(to_json(coalesce(response_hashes, []))) as answer_hash
from inputs
full join outputs using (trace_id, span_id)
