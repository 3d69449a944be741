-- Agent Lightning 0.3: the rollout and the attempt that a span belongs to, agentlightning.rollout_id and .attempt_id on the
-- span or its resource. What the span is and what was said in it, others say.
-- grain: one row per (trace_id, span_id): the same columns in every file of this folder
-- kind: bucket
-- Attempts have names, no numbers: they are counted per rollout, by the start of their first span. Outside of a rollout
-- its tracer leaves the ids empty.
with

marked as (
    select
        trace_id, span_id,
        case when start_unix_nano > 0 then start_unix_nano else end_unix_nano end as started_unix_nano,
        nullif(coalesce(attributes_str['agentlightning.rollout_id'], resource_attributes ->> '$."agentlightning.rollout_id"'), '') as rollout_id,
        nullif(coalesce(attributes_str['agentlightning.attempt_id'], resource_attributes ->> '$."agentlightning.attempt_id"'), '') as attempt_id
    from spans_unique
    where resource_attributes like '%agentlightning.rollout_id%' or attributes_str['agentlightning.rollout_id'] is not null
),

attempts as (
    select
        rollout_id, attempt_id,
        row_number() over (partition by rollout_id order by min(started_unix_nano), attempt_id) as attempt
    from marked
    where rollout_id is not null and attempt_id is not null
    group by rollout_id, attempt_id
)

select
    marked.trace_id, marked.span_id,
    'agent_lightning' as convention,
    10 as precedence,
    'other' as span_kind,
    null::varchar as agent,
    null::varchar as for_agent,
    null::varchar as near_agent,
    null::varchar as session_id,
    null::varchar as user_id,
    marked.rollout_id,
    attempts.attempt,
    null::varchar as operation,
    null::varchar as provider,
    null::varchar as model,
    null::varchar as response_id,
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
    null::int[] as prompt_token_ids,
    null::struct(token_ids int[], logprobs double[])[] as token_choices
from marked
left join attempts using (rollout_id, attempt_id)
where marked.rollout_id is not null
