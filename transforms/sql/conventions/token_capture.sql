-- rl.*: token ids and log-probabilities that a wrapper around the model's client wrote, on the call's own span or on a span
-- of its own, which then is a token record of that call (joined by response id or as its child).
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
with

mine as (
    select trace_id, span_id, response_id, attributes_json as attributes
    from spans_unique
    where attributes_json['rl.choice.0.token_ids'] is not null
),

choices as (
    select
        trace_id, span_id,
        list({
            token_ids: from_json(attributes['rl.choice.' || n || '.token_ids'], '["INTEGER"]'),
            logprobs: from_json(attributes['rl.choice.' || n || '.logprobs'], '["DOUBLE"]')
        } order by n) as token_choices
    from (
        select trace_id, span_id, attributes, unnest(list_transform(
            list_filter(map_keys(attributes), lambda k: regexp_matches(k, '^rl\.choice\.\d{1,9}\.token_ids$')),
            lambda k: split_part(k, '.', 3)::int
        )) as n
        from mine
    )
    group by trace_id, span_id
)

select
    trace_id, span_id,
    'token_capture' as convention,
    10 as precedence,
    'capture' as span_kind,
    null::varchar as agent,
    null::varchar as for_agent,
    null::varchar as near_agent,
    null::varchar as session_id,
    null::varchar as user_id,
    null::varchar as rollout_id,
    null::bigint as attempt,
    null::varchar as operation,
    null::varchar as provider,
    null::varchar as model,
    response_id,
    null::varchar as previous_response_id,
    null::varchar[] as finish_reasons,
    null::bigint as prompt_tokens,
    null::bigint as completion_tokens,
    null::varchar as sampling,
    null::varchar[] as tools,
    null::varchar as content,
    false as failed,
    null::varchar as tool_name,
    null::varchar as tool_call_id,
    null::varchar as tool_arguments,
    null::varchar as tool_result,
    null::struct(choice int, role varchar, text varchar, tool_calls struct(id varchar, name varchar, arguments varchar)[], tool_call_id varchar, finish_reason varchar)[] as messages,
    from_json(attributes['rl.prompt_token_ids'], '["INTEGER"]') as prompt_token_ids,
    token_choices
from mine
join choices using (trace_id, span_id)
