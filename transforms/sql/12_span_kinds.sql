-- What each span is and says of itself, whatever its convention; judged by attributes, never by its name or its library.
-- grain: one row per (trace_id, span_id); narrow: no content
-- kind: bucket
-- span_kind: capture (token record of a model server), llm, agent, tool, judge (evaluator, guardrail), chain, other
-- Several conventions may claim one span: the one of highest precedence says what it is and what was said in it, the others
-- add what it leaves out.
with

claimed_twice as (
    select trace_id, span_id from recognised group by all having count(*) > 1
),

-- One number that says who goes before whom: precedence, then name.
ranks as (
    select convention, row_number() over (order by convention) as rank from (select distinct convention from recognised)
),

claims as (
    select recognised.* exclude (precedence, messages)
    from recognised
    anti join claimed_twice using (trace_id, span_id)

    union all by name

    select
        trace_id, span_id,
        arg_max(convention, precedence * 1000 + rank) as convention,
        arg_max(span_kind, precedence * 1000 + rank) as span_kind,
        arg_max(agent, precedence * 1000 + rank) as agent,
        arg_max(for_agent, precedence * 1000 + rank) as for_agent,
        arg_max(near_agent, precedence * 1000 + rank) as near_agent,
        arg_max(session_id, precedence * 1000 + rank) as session_id,
        arg_max(user_id, precedence * 1000 + rank) as user_id,
        arg_max(rollout_id, precedence * 1000 + rank) as rollout_id,
        arg_max(attempt, precedence * 1000 + rank) as attempt,
        arg_max(operation, precedence * 1000 + rank) as operation,
        arg_max(provider, precedence * 1000 + rank) as provider,
        arg_max(model, precedence * 1000 + rank) as model,
        arg_max(response_id, precedence * 1000 + rank) as response_id,
        arg_max(previous_response_id, precedence * 1000 + rank) as previous_response_id,
        arg_max(finish_reasons, precedence * 1000 + rank) as finish_reasons,
        arg_max(prompt_tokens, precedence * 1000 + rank) as prompt_tokens,
        arg_max(completion_tokens, precedence * 1000 + rank) as completion_tokens,
        arg_max(sampling, precedence * 1000 + rank) as sampling,
        arg_max(tools, precedence * 1000 + rank) as tools,
        arg_max(content, precedence * 1000 + rank) as content,
        bool_or(failed) as failed,
        arg_max(tool_name, precedence * 1000 + rank) as tool_name,
        arg_max(tool_call_id, precedence * 1000 + rank) as tool_call_id,
        arg_max(tool_arguments, precedence * 1000 + rank) as tool_arguments,
        arg_max(tool_result, precedence * 1000 + rank) as tool_result,
        arg_max(prompt_token_ids, precedence * 1000 + rank) as prompt_token_ids,
        arg_max(token_choices, precedence * 1000 + rank) as token_choices
    from recognised
    semi join claimed_twice using (trace_id, span_id)
    join ranks using (convention)
    group by trace_id, span_id
)

select
    spans.trace_id, spans.span_id, spans.parent_span_id, spans.collector_id, spans.seq,
    spans.start_unix_nano, spans.end_unix_nano, spans.status_code,
    spans.name, spans.scope_name, spans.service_name, spans.service_instance_id,
    coalesce(claims.session_id, spans.session_id) as session_id,
    spans.conversation_id,
    coalesce(claims.user_id, spans.user_id) as user_id,
    coalesce(spans.rollout_id, claims.rollout_id) as rollout_id,
    coalesce(spans.attempt, claims.attempt) as attempt,
    spans.task_id, spans.group_id, spans.split, spans.policy_version, spans.capture, spans.span_seq, spans.span_count,
    case when spans.resource_attributes like '%lightning%rollout%' then coalesce(
        spans.resource_attributes ->> '$."lightning.rollout.id"', nullif(spans.resource_attributes ->> '$."agentlightning.rollout_id"', '')
    ) end as resource_rollout_id,
    len(spans.links) as link_count,
    len(list_filter(map_keys(spans.attributes_str), lambda k: k in ('evaluation.name', 'annotation.name', 'agentlightning.reward.0.name')
            or starts_with(k, 'evaluations.') or starts_with(k, 'trace.evaluations.') or starts_with(k, 'session.evaluations.')
            or starts_with(k, 'annotations.') or starts_with(k, 'trace.annotations.') or starts_with(k, 'session.annotations.'))) > 0
        or coalesce(spans.attributes_str['agentops.task.output'], spans.attributes_str['agentops.entity.output'], '')
            like '%"type"%"reward"%'
        as carries_evaluation,
    case when spans.capture is not null then 'capture' else coalesce(claims.span_kind, 'other') end as span_kind,
    claims.convention,
    claims.agent,
    claims.for_agent,
    coalesce(claims.near_agent, spans.agent_name) as near_agent,
    claims.operation, claims.provider, claims.model, claims.response_id, claims.previous_response_id, claims.finish_reasons,
    claims.prompt_tokens, claims.completion_tokens, claims.sampling, claims.tools,
    coalesce(spans.content, claims.content) as content,
    spans.status_code = 2 or spans.attributes_str['error.type'] is not null or coalesce(claims.failed, false) as error,
    claims.tool_name, claims.tool_call_id, claims.tool_arguments, claims.tool_result,
    claims.prompt_token_ids, claims.token_choices
from spans_unique as spans
left join claims using (trace_id, span_id)
