-- Messages of all conventions in one canonical form: mapped role, text, tool calls, tool_call_id, nothing else.
-- grain: one row per (trace_id, span_id, side, n, part)
-- kind: bucket
-- Every comparison of messages is over `hash`; `message` is the OpenAI chat form that people and trainers read.
-- Arguments are parsed JSON with the keys of the object sorted; text that is no JSON stays as it is.
with

said as (
    select * from openinference
    union all by name
    select * from genai
    union all by name
    select * from genai_events
),

mapped as (
    select
        trace_id, span_id, side, n, part, choice,
        case
            when role in ('developer', 'system') then 'system'
            when role in ('function', 'tool', 'tool-response') or tool_call_id is not null then 'tool'
            when role in ('model', 'assistant', 'ai', 'tool-call') or side = 'output' then 'assistant'
            when role in ('human', 'user') then 'user'
            else coalesce(role, 'user')
        end as role,
        coalesce(text, '') as text,
        tool_calls, tool_call_id, finish_reason
    from said
),

arguments as (
    select
        trace_id, span_id, side, n, part,
        list({
            id: call.id,
            name: call.name,
            arguments: case
                when json_valid(call.arguments) and json_type(call.arguments) = 'OBJECT' then
                    '{' || array_to_string(
                        list_transform(
                            list_sort(json_keys(call.arguments)),
                            lambda k: to_json(k)::varchar || ':'
                                || json_extract(call.arguments, '/' || replace(replace(k, '~', '~0'), '/', '~1'))::varchar
                        ), ','
                    ) || '}'
                else call.arguments
            end
        } order by m) as tool_calls
    from (
        select trace_id, span_id, side, n, part, unnest(tool_calls) as call, generate_subscripts(tool_calls, 1) as m
        from mapped
        where len(tool_calls) > 0
    )
    group by all
)

select
    mapped.* exclude (tool_calls),
    coalesce(arguments.tool_calls, []) as tool_calls,
    sha256(to_json([
        role, text, tool_call_id,
        to_json(list_transform(coalesce(arguments.tool_calls, []), lambda c: [c.id, c.name, c.arguments]))::varchar
    ])) as hash,
    case
        when len(arguments.tool_calls) > 0 then
            to_json({
                role: role, content: text,
                tool_calls: list_transform(
                    arguments.tool_calls,
                    lambda c: {id: c.id, type: 'function', function: {name: c.name, arguments: c.arguments}}
                )
            })
        when tool_call_id is not null then to_json({role: role, content: text, tool_call_id: tool_call_id})
        else to_json({role: role, content: text})
    end as message
from mapped
left join arguments using (trace_id, span_id, side, n, part)
