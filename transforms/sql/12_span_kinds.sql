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

claims as (
    select recognised.* exclude (precedence, messages)
    from recognised
    anti join claimed_twice using (trace_id, span_id)

    union all by name

    select
        trace_id, span_id,
        arg_max(convention, (precedence, convention)) as convention,
        arg_max(span_kind, (precedence, convention)) as span_kind,
        arg_max(agent, (precedence, convention)) as agent,
        arg_max(for_agent, (precedence, convention)) as for_agent,
        arg_max(near_agent, (precedence, convention)) as near_agent,
        arg_max(session_id, (precedence, convention)) as session_id,
        arg_max(user_id, (precedence, convention)) as user_id,
        arg_max(rollout_id, (precedence, convention)) as rollout_id,
        arg_max(attempt, (precedence, convention)) as attempt,
        arg_max(operation, (precedence, convention)) as operation,
        arg_max(provider, (precedence, convention)) as provider,
        arg_max(model, (precedence, convention)) as model,
        arg_max(response_id, (precedence, convention)) as response_id,
        arg_max(previous_response_id, (precedence, convention)) as previous_response_id,
        arg_max(finish_reasons, (precedence, convention)) as finish_reasons,
        arg_max(prompt_tokens, (precedence, convention)) as prompt_tokens,
        arg_max(completion_tokens, (precedence, convention)) as completion_tokens,
        arg_max(sampling, (precedence, convention)) as sampling,
        arg_max(tools, (precedence, convention)) as tools,
        arg_max(content, (precedence, convention)) as content,
        bool_or(failed) as failed,
        arg_max(tool_name, (precedence, convention)) as tool_name,
        arg_max(tool_call_id, (precedence, convention)) as tool_call_id,
        arg_max(tool_arguments, (precedence, convention)) as tool_arguments,
        arg_max(tool_result, (precedence, convention)) as tool_result,
        arg_max(prompt_token_ids, (precedence, convention)) as prompt_token_ids,
        arg_max(token_choices, (precedence, convention)) as token_choices
    from recognised
    semi join claimed_twice using (trace_id, span_id)
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
    list_has_any(map_keys(spans.attributes_str), ['evaluation.name', 'annotation.name', 'agentlightning.reward.0.name'])
        or coalesce(spans.attributes_str['agentops.task.output'], spans.attributes_str['agentops.entity.output'], '')
            like '%"type"%"reward"%'
        -- `~` means the whole text in DuckDB 1.5 and a part of it in 2.0.
        or len(list_filter(map_keys(spans.attributes_str), lambda k: regexp_matches(k, '^((trace|session)\.)?(evaluations|annotations)\.'))) > 0
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
