-- What was said in each call, in one canonical form: mapped role, text, tool calls, tool_call_id, nothing else.
-- grain: one row per (trace_id, span_id) of an LLM or capture span
-- kind: bucket
-- Arguments are parsed JSON with the keys of the object sorted; text that is no JSON stays as it is. A message is written once,
-- in the OpenAI chat form that people and trainers read, and every comparison of messages is over the `hash` of that.
-- `prompt` and `answers` are narrow but for the answers' own text: a prompt's text is in `prompt_messages` alone.
with

mapped as (
    select
        trace_id, span_id,
        list_transform(coalesce(recognised.messages, []), lambda m: {
            choice: m.choice,
            role: case
                when m.role in ('developer', 'system') then 'system'
                when m.role in ('function', 'tool', 'tool-response') or m.tool_call_id is not null then 'tool'
                when m.role in ('model', 'assistant', 'ai', 'tool-call') or m.choice is not null then 'assistant'
                when m.role in ('human', 'user') then 'user'
                else coalesce(m.role, 'user')
            end,
            text: coalesce(m.text, ''),
            tool_calls: list_transform(coalesce(m.tool_calls, []), lambda c: {
                id: c.id,
                name: c.name,
                arguments: case
                    when json_valid(c.arguments) then case
                        when json_type(c.arguments) = 'OBJECT' then
                            '{' || array_to_string(
                                list_transform(
                                    list_sort(json_keys(c.arguments)),
                                    lambda k: to_json(k)::varchar || ':'
                                        || json_extract(c.arguments, '/' || replace(replace(k, '~', '~0'), '/', '~1'))::varchar
                                ), ','
                            ) || '}'
                        else c.arguments
                    end
                    else c.arguments
                end
            }),
            tool_call_id: m.tool_call_id,
            finish_reason: m.finish_reason
        }) as messages
    from recognised
    join span_kinds using (trace_id, span_id, convention)
    where span_kinds.span_kind in ('llm', 'capture')
),

written as (
    select
        trace_id, span_id,
        list_filter(messages, lambda m: m.choice is not null) as answers,
        list_position(list_transform(messages, lambda m: m.choice is null and m.role = 'user'), true) as first_user,
        list_transform(messages, lambda m: {
            role: case when m.choice is null then m.role end,
            empty: m.text = '' and len(m.tool_calls) = 0,
            asked: list_transform(m.tool_calls, lambda c: c.id),
            tool_call_id: m.tool_call_id
        }) as turns,
        list_transform(messages, lambda m: case
            when m.choice is not null then null
            when len(m.tool_calls) > 0 and m.tool_call_id is not null then to_json({
                role: m.role, content: m.text, tool_call_id: m.tool_call_id,
                tool_calls: list_transform(m.tool_calls, lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            when len(m.tool_calls) > 0 then to_json({
                role: m.role, content: m.text,
                tool_calls: list_transform(m.tool_calls, lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}})
            })
            when m.tool_call_id is not null then to_json({role: m.role, content: m.text, tool_call_id: m.tool_call_id})
            else to_json({role: m.role, content: m.text})
        end::varchar) as texts,
        messages
    from mapped
)

select
    trace_id, span_id,
    '[' || array_to_string(texts, ',') || ']' as prompt_messages,
    list_filter(turns, lambda m: m.role is not null) as prompt,
    list_filter(list_transform(texts, lambda t: sha256(t)), lambda h: h is not null) as prompt_hashes,
    case when first_user > 0 then messages[first_user].text end as first_user,
    answers
from written
