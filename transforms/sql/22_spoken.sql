-- What was said in each call, as far as calls are compared by it: hashes, lengths, what was asked; and its answers.
-- grain: one row per (trace_id, span_id) of an LLM or capture span that has any message
-- kind: bucket
-- An answer that came in several output items (Responses API) is one message per choice.
with

parts as (
    select trace_id, span_id, unnest(answers) as answer, generate_subscripts(answers, 1) as n
    from messages
    where len(answers) > 1
),

merged as (
    select
        trace_id, span_id,
        list({choice: choice, text: text, tool_calls: tool_calls, finish_reason: finish_reason} order by choice) as answers
    from (
        select
            trace_id, span_id, answer.choice as choice,
            string_agg(answer.text, '' order by n) as text,
            flatten(list(answer.tool_calls order by n)) as tool_calls,
            max(answer.finish_reason) as finish_reason
        from parts
        group by all
    )
    group by all
),

said as (
    select
        messages.* exclude (answers, prompt_messages, first_user),
        case when len(messages.answers) > 1 then merged.answers else list_transform(messages.answers, lambda a: {
            choice: a.choice, text: a.text, tool_calls: a.tool_calls, finish_reason: a.finish_reason
        }) end as answers
    from messages
    left join merged using (trace_id, span_id)
),

written as (
    select
        *,
        list_transform(answers, lambda a: case
            when len(a.tool_calls) > 0 then to_json({
                role: 'assistant', content: a.text,
                tool_calls: list_transform(a.tool_calls, lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            else to_json({role: 'assistant', content: a.text})
        end::varchar) as texts,
        list_filter(list_transform(prompt, lambda m, i: case when m.role <> 'system' then prompt_hashes[i] end), lambda h: h is not null)
            as talk_hashes,
        list_transform(texts, lambda t: sha256(t)) as response_hashes,
        list_filter(prompt, lambda m: m.role <> 'system' and m.tool_call_id is not null)[1].tool_call_id as first_result
    from said
)

select
    trace_id, span_id,
    len(prompt) as prompt_length,
    case when $messages then '[' || coalesce(array_to_string(texts, ','), '') || ']' end as response_messages,
    list_transform(answers, lambda a: a.choice) as choices,
    prompt_hashes,
    talk_hashes,
    response_hashes,
    case when list_bool_or(list_transform(answers, lambda a: a.finish_reason is not null))
        then list_transform(answers, lambda a: a.finish_reason) end as finish_reasons,
    len(list_filter(prompt, lambda m: m.role = 'user')) > 0 as has_user,
    len(list_filter(prompt, lambda m: m.empty and m.role in ('user', 'system'))) > 0 as empty_input,
    coalesce(list_bool_and(list_transform(answers, lambda a: a.text = '' and len(a.tool_calls) = 0)), true) as empty_response,
    flatten(list_transform(answers, lambda a: list_transform(a.tool_calls, lambda c: {id: c.id, choice: a.choice}))) as asked,
    case when not list_contains(flatten(list_transform(prompt, lambda m: m.asked)), first_result) then first_result end
        as answers_tool_call_id,
    sha256(array_to_string(prompt_hashes, '')) as talk_hash,
    sha256(array_to_string(response_hashes, '')) as answer_hash
from written
where len(prompt) > 0 or len(answers) > 0
