-- What was said in each call, as far as calls are compared by it: hashes, lengths, what was asked; and its answers.
-- grain: one row per (trace_id, span_id) of an LLM or capture span that has any message
-- kind: bucket
-- An answer that came in several output items (Responses API) is one message per choice.
with

parts as (
    select trace_id, span_id, unnest(answers) as answer, generate_subscripts(answers, 1) as n
    from messages
    where len(answers) > 0
),

answers as (
    select
        trace_id, span_id, answer.choice as choice,
        string_agg(answer.text, '' order by n) as text,
        flatten(list(answer.tool_calls order by n)) as tool_calls,
        max(answer.finish_reason) as finish_reason
    from parts
    anti join (select trace_id, span_id from parts group by all having count(*) = 1) as single using (trace_id, span_id)
    group by all
    union all
    select trace_id, span_id, answer.choice, answer.text, answer.tool_calls, answer.finish_reason
    from parts
    semi join (select trace_id, span_id from parts group by all having count(*) = 1) as single using (trace_id, span_id)
),

written as (
    select
        *,
        case
            when len(tool_calls) > 0 then to_json({
                role: 'assistant', content: text,
                tool_calls: list_transform(tool_calls, lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            else to_json({role: 'assistant', content: text})
        end::varchar as message
    from answers
),

outputs as (
    select
        trace_id, span_id,
        list(choice order by choice) as choices,
        '[' || string_agg(message, ',' order by choice) || ']' as response_messages,
        list(sha256(message) order by choice) as response_hashes,
        case when bool_or(finish_reason is not null) then list(finish_reason order by choice) end as finish_reasons,
        bool_and(text = '' and len(tool_calls) = 0) as empty_response,
        flatten(list(list_transform(tool_calls, lambda c: {id: c.id, choice: choice}) order by choice)) as asked
    from written
    group by trace_id, span_id
),

inputs as (
    select
        trace_id, span_id, prompt, prompt_hashes,
        list_filter(list_transform(prompt, lambda m, i: case when m.role <> 'system' then prompt_hashes[i] end), lambda h: h is not null) as talk_hashes,
        list_filter(prompt, lambda m: m.role <> 'system' and m.tool_call_id is not null)[1].tool_call_id as first_result
    from messages
)

select
    trace_id, span_id,
    len(prompt) as prompt_length,
    coalesce(response_messages, '[]') as response_messages,
    coalesce(choices, []) as choices,
    prompt_hashes,
    talk_hashes,
    coalesce(response_hashes, []) as response_hashes,
    finish_reasons,
    len(list_filter(prompt, lambda m: m.role = 'user')) > 0 as has_user,
    len(list_filter(prompt, lambda m: m.empty and m.role in ('user', 'system'))) > 0 as empty_input,
    coalesce(empty_response, true) as empty_response,
    coalesce(asked, []) as asked,
    case when not list_contains(flatten(list_transform(prompt, lambda m: m.asked)), first_result) then first_result end
        as answers_tool_call_id,
    sha256(array_to_string(prompt_hashes, '')) as talk_hash,
    sha256(array_to_string(coalesce(response_hashes, []), '')) as answer_hash
from inputs
left join outputs using (trace_id, span_id)
where len(prompt) > 0 or outputs.span_id is not null
