-- Calls: the agent's side gives identity and place, plane B gives truth (messages as served, ids, logprobs, sampling).
-- grain: one row per (trace_id, span_id): every LLM call, and every server's token record that carries a rollout id of its own
-- kind: bucket
-- A record that kept only tokens leaves the messages to the agent's side; whose text and token ids they are is said here
-- (prompt_…, answer_…, user_…, prompt_ids_…, response_ids_…), they join in where they are read. Rollout and step are not
-- known yet; `explicit_rollout_id` is what the call itself or its token record says.
with

own as (
    select
        agent_calls.trace_id, agent_calls.span_id, agent_calls.content_trace_id, agent_calls.content_span_id,
        joins.capture_trace_id, joins.capture_span_id,
        merged_span_ids || case when joins.capture_span_id is null then [] else [joins.capture_trace_id || ':' || joins.capture_span_id] end
            as merged_span_ids,
        response_id_reused
    from agent_calls
    left join capture_joins as joins
        on agent_calls.trace_id = joins.trace_id and agent_calls.span_id = joins.span_id and joins.wins

    union all

    select
        llm_spans.trace_id, llm_spans.span_id, llm_spans.trace_id, llm_spans.span_id,
        llm_spans.trace_id, llm_spans.span_id, [], false
    from llm_spans
    left join capture_joins as joins
        on llm_spans.trace_id = joins.capture_trace_id and llm_spans.span_id = joins.capture_span_id
    where llm_spans.span_kind = 'capture' and llm_spans.capture <> 'client' and joins.capture_span_id is null
        and llm_spans.explicit_rollout_id is not null
),

id_counts as (
    select
        trace_id, span_id,
        prompt_ids is not null as has_prompt,
        list_transform(response_ids, lambda ids: len(ids)) as lengths
    from token_ids
),

merged as (
    select
        own.trace_id, own.span_id, own.merged_span_ids,
        own.capture_span_id is not null as captured,
        coalesce(b.capture = 'client', false) as by_client,
        place.parent_span_id, place.scope_span_id, place.agent_span_id,
        case when place.span_kind = 'capture' then 'serve' else content.convention end as convention,
        coalesce(content.operation, place.operation) as operation,
        coalesce(content.provider, place.provider) as provider,
        coalesce(b.model, content.model, place.model) as model,
        coalesce(content.response_id, place.response_id, b.response_id) as response_id,
        place.service_name, place.service_instance_id,
        coalesce(place.session_id, content.session_id) as session_id,
        coalesce(place.conversation_id, content.conversation_id) as conversation_id,
        coalesce(place.user_id, content.user_id) as user_id,
        coalesce(place.agent, content.agent) as agent,
        place.judge or content.judge as judge,
        case when b.prompt_length > 0 then b.trace_id else content.trace_id end as prompt_trace_id,
        case when b.prompt_length > 0 then b.span_id else content.span_id end as prompt_span_id,
        case when not b.empty_response then b.trace_id else content.trace_id end as answer_trace_id,
        case when not b.empty_response then b.span_id else content.span_id end as answer_span_id,
        coalesce(case when not b.empty_response then b.choices end, content.choices) as choices,
        coalesce(b.tools, content.tools, place.tools) as tools,
        coalesce(b.sampling, content.sampling) as sampling,
        coalesce(b.temperature, content.temperature, place.temperature) as temperature,
        coalesce(b.finish_reasons, content.finish_reasons, place.finish_reasons) as finish_reasons,
        coalesce(b.prompt_tokens, content.prompt_tokens, place.prompt_tokens) as prompt_tokens,
        coalesce(b.completion_tokens, content.completion_tokens, place.completion_tokens) as completion_tokens,
        coalesce(b.policy_version, content.version_hint, place.version_hint) as policy_version,
        coalesce(b.tokenizer, content.tokenizer) as tokenizer,
        case when b_ids.has_prompt then b.trace_id when content_ids.has_prompt then content.trace_id end as prompt_ids_trace_id,
        case when b_ids.has_prompt then b.span_id when content_ids.has_prompt then content.span_id end as prompt_ids_span_id,
        case when b_ids.lengths is not null then b.trace_id when content_ids.lengths is not null then content.trace_id end
            as response_ids_trace_id,
        case when b_ids.lengths is not null then b.span_id when content_ids.lengths is not null then content.span_id end
            as response_ids_span_id,
        coalesce(b_ids.lengths, content_ids.lengths) as response_lengths,
        coalesce(b.logprobs_mode, content.logprobs_mode) as logprobs_mode,
        coalesce(b.retokenized_history, false) as retokenized_history,
        coalesce(case when b.prompt_length > 0 then b.prompt_hashes end, content.prompt_hashes) as prompt_hashes,
        coalesce(case when b.prompt_length > 0 then b.talk_hashes end, content.talk_hashes) as talk_hashes,
        coalesce(case when not b.empty_response then b.response_hashes end, content.response_hashes) as response_hashes,
        coalesce(case when b.prompt_length > 0 then b.prompt_length end, content.prompt_length) as prompt_length,
        coalesce(case when b.prompt_length > 0 then b.has_user end, content.has_user) as has_user,
        case when content.has_user or b.trace_id is null then content.trace_id else b.trace_id end as user_trace_id,
        case when content.has_user or b.trace_id is null then content.span_id else b.span_id end as user_span_id,
        coalesce(content.has_user, false) or coalesce(b.has_user, false) as heard_user,
        coalesce(case when not b.empty_response then b.asked end, content.asked) as asked,
        content.asked as asked_by_agent,
        content.answers_tool_call_id,
        content.previous_response_id,
        place.content,
        coalesce(place.span_seq, content.span_seq) as span_seq,
        place.start_unix_nano, place.end_unix_nano, place.seq, place.collector_id,
        place.error or content.error as error,
        coalesce(place.explicit_rollout_id, content.explicit_rollout_id, b.explicit_rollout_id) as explicit_rollout_id,
        place.explicit_rollout_id <> b.explicit_rollout_id as rollout_conflict,
        coalesce(place.attempt, b.attempt) as attempt,
        coalesce(place.task_id, b.task_id) as task_id,
        coalesce(place.group_id, b.group_id) as group_id,
        coalesce(place.split, b.split) as split,
        coalesce(not b.empty_response and b.answer_hash <> content.answer_hash, false) as content_mismatch,
        coalesce(case when b.prompt_length > 0 then b.empty_input end, content.empty_input) as empty_input,
        coalesce(case when not b.empty_response then b.empty_response end, content.empty_response) as empty_response,
        coalesce(content.dropped_attributes and b.trace_id is null, false) as dropped_attributes,
        content.conflicting_copies or place.conflicting_copies as conflicting_copies,
        own.response_id_reused,
        place.orphan, place.cycle, place.start_unix_nano = 0 as no_start_time
    from own
    join llm_spans as place using (trace_id, span_id)
    join llm_spans as content on own.content_trace_id = content.trace_id and own.content_span_id = content.span_id
    left join llm_spans as b on own.capture_trace_id = b.trace_id and own.capture_span_id = b.span_id
    left join id_counts as content_ids on own.content_trace_id = content_ids.trace_id and own.content_span_id = content_ids.span_id
    left join id_counts as b_ids on own.capture_trace_id = b_ids.trace_id and own.capture_span_id = b_ids.span_id
),

judged as (
    select
        *,
        case
            when error then 'error'
            when rollout_conflict then 'rollout_conflict'
            when conflicting_copies then 'conflicting_copies'
            when response_id_reused then 'response_id_reused'
            when content is not null and not captured then 'content_' || content
            when dropped_attributes then 'dropped_attributes'
            when prompt_length = 0 then 'no_prompt'
            when empty_input then 'empty_parts'
            when empty_response and coalesce(response_lengths[1], 0) = 0 then 'no_response'
            when (previous_response_id is not null or answers_tool_call_id is not null) and not captured then 'partial_prompt'
            when list_has_any(coalesce(finish_reasons, []), ['error', 'content_filter', 'abort', 'cancelled']) then 'bad_finish'
            when list_sum(response_lengths) <> completion_tokens then 'token_count_mismatch'
        end as untrainable_reason
    from merged
)

select
    * exclude (rollout_conflict, content_mismatch, empty_input, empty_response, dropped_attributes, conflicting_copies,
        response_id_reused, orphan, cycle, no_start_time, retokenized_history, asked_by_agent, by_client, response_lengths),
    retokenized_history,
    untrainable_reason is null as trainable,
    case
        when prompt_ids_span_id is not null and len(response_lengths) > 0 then case when captured and not by_client then 'engine' else 'captured' end
        else 'none'
    end as token_source,
    sha256(array_to_string(prompt_hashes, '') || coalesce(tools, '')) as prompt_hash,
    list_filter([
        case when rollout_conflict then 'rollout_conflict' end,
        case when content_mismatch then 'content_mismatch' end,
        case when conflicting_copies then 'conflicting_copies' end,
        case when response_id_reused then 'response_id_reused' end,
        case when orphan then 'orphan' end,
        case when cycle then 'cycle' end,
        case when no_start_time then 'no_start_time' end,
        case when retokenized_history then 'retokenized_history' end,
        case when answers_tool_call_id is not null or previous_response_id is not null then 'partial_prompt' end
    ], lambda f: f is not null) as flags
from judged
