-- What was said in each call, in one canonical form: mapped role, text, tool calls, tool_call_id, nothing else.
-- grain: one row per (trace_id, span_id) of an LLM or capture span
-- kind: bucket
-- Arguments are parsed JSON with the keys of the object sorted; text that is no JSON stays as it is. A message is written once,
-- in the OpenAI chat form that people and trainers read, and every comparison of messages is over the `hash` of that.
-- `prompt` and `answers` are narrow but for the answers' own text: a prompt's text is in `prompt_messages` alone.
with

-- Their text is named where it is, not copied: only what is asked of a message is made anew.
heard as (
    select
        trace_id, span_id, recognised.messages,
        list_transform(recognised.messages, lambda m: case
            when m.role in ('developer', 'system') then 'system'
            when m.role in ('function', 'tool', 'tool-response') or m.tool_call_id is not null then 'tool'
            when m.role in ('model', 'assistant', 'ai', 'tool-call') or m.choice is not null then 'assistant'
            when m.role in ('human', 'user') then 'user'
            else coalesce(m.role, 'user')
        end) as roles,
        list_transform(recognised.messages, lambda m: list_transform(coalesce(m.tool_calls, []), lambda c: {
            id: c.id,
            name: c.name,
            arguments: case when regexp_matches(c.arguments, '^\s*\{') then coalesce(
                try('{' || array_to_string(
                    list_transform(
                        list_sort(json_keys(c.arguments)),
                        lambda k: to_json(k)::varchar || ':'
                            || json_extract(c.arguments, '/' || replace(replace(k, '~', '~0'), '/', '~1'))::varchar
                    ), ','
                ) || '}'),
                c.arguments
            ) else c.arguments end
        })) as tool_calls
    from recognised
    join span_kinds using (trace_id, span_id, convention)
    where span_kinds.span_kind in ('llm', 'capture')
),

written as (
    select
        *,
        list_transform(messages, lambda m, i: case
            when m.choice is not null then null
            when len(tool_calls[i]) > 0 and m.tool_call_id is not null then to_json({
                role: roles[i], content: coalesce(m.text, ''), tool_call_id: m.tool_call_id,
                tool_calls: list_transform(tool_calls[i], lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            when len(tool_calls[i]) > 0 then to_json({
                role: roles[i], content: coalesce(m.text, ''),
                tool_calls: list_transform(tool_calls[i], lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            when m.tool_call_id is not null then to_json({role: roles[i], content: coalesce(m.text, ''), tool_call_id: m.tool_call_id})
            else to_json({role: roles[i], content: coalesce(m.text, '')})
        end::varchar) as texts,
        list_position(list_transform(messages, lambda m, i: m.choice is null and roles[i] = 'user'), true) as first_user
    from heard
)

select
    trace_id, span_id,
    case when $messages then '[' || coalesce(array_to_string(texts, ','), '') || ']' end as prompt_messages,
    coalesce(list_filter(list_transform(messages, lambda m, i: {
        role: case when m.choice is null then roles[i] end,
        empty: (m.text is null or m.text = '') and len(tool_calls[i]) = 0,
        asked: list_transform(tool_calls[i], lambda c: c.id),
        tool_call_id: m.tool_call_id
    }), lambda m: m.role is not null), []) as prompt,
    list_filter(list_transform(coalesce(texts, []), lambda t: sha256(t)), lambda h: h is not null) as prompt_hashes,
    case when first_user > 0 then coalesce(messages[first_user].text, '') end as first_user,
    coalesce(list_transform(list_filter(messages, lambda m: m.choice is not null), lambda m, k: {
        choice: m.choice, role: roles[places[k]], text: coalesce(m.text, ''), tool_calls: tool_calls[places[k]],
        tool_call_id: m.tool_call_id, finish_reason: m.finish_reason
    }), []) as answers
from (
    select *, list_filter(list_transform(messages, lambda m, i: case when m.choice is not null then i end), lambda i: i is not null) as places
    from written
)
