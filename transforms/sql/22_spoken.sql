-- What was said in each call: prompt and answers as JSON, and their hashes.
-- grain: one row per (trace_id, span_id) of an LLM or capture span that has any message
-- kind: bucket
-- An answer that came in several output items (Responses API) is one message per choice.
with

answers as (
    select
        trace_id, span_id, answer.choice as choice,
        string_agg(answer.text, '' order by n) as text,
        flatten(list(answer.tool_calls order by n)) as tool_calls,
        max(answer.finish_reason) as finish_reason
    from (
        select trace_id, span_id, unnest(answers) as answer, generate_subscripts(answers, 1) as n
        from messages
    )
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
    group by trace_id, span_id
),

inputs as (
    select
        trace_id, span_id, prompt,
        list_filter(prompt, lambda m: m.role <> 'system') as talk,
        list_filter(prompt, lambda m: m.role = 'user') as said_by_user,
        list_filter(talk, lambda m: m.tool_call_id is not null) as results
    from messages
)

select
    trace_id, span_id,
    to_json(list_transform(prompt, lambda m: m.message))::varchar as prompt_messages,
    len(prompt) as prompt_length,
    to_json(coalesce(response_messages, []))::varchar as response_messages,
    coalesce(choices, []) as choices,
    list_transform(prompt, lambda m: m.hash) as prompt_hashes,
    list_transform(talk, lambda m: m.hash) as talk_hashes,
    coalesce(response_hashes, []) as response_hashes,
    finish_reasons,
    len(said_by_user) > 0 as has_user,
    said_by_user[1].text as first_user,
    len(list_filter(prompt, lambda m: m.text = '' and len(m.asked) = 0 and m.role in ('user', 'system'))) > 0 as empty_input,
    coalesce(empty_response, true) as empty_response,
    coalesce(asked, []) as asked,
    case when not list_contains(flatten(list_transform(prompt, lambda m: m.asked)), results[1].tool_call_id)
        then results[1].tool_call_id end as answers_tool_call_id,
    sha256(to_json(list_transform(prompt, lambda m: m.hash))) as talk_hash,
    sha256(to_json(coalesce(response_hashes, []))) as answer_hash
from inputs
left join outputs using (trace_id, span_id)
where len(prompt) > 0 or outputs.span_id is not null
