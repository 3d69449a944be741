-- Every LLM span and every token record (plane B): its scalars, hashes of what was said in it, and what its ancestors know.
-- grain: one row per (trace_id, span_id) with span_kind llm or capture
-- kind: bucket
-- Finish reasons have one spelling (stop, tool_calls, length, …); tools one form, OpenAI's for chat.
with

-- An application sends the same tools with every call: each list is read once.
tool_lists as (
    select tools as said, '[' || array_to_string(list_transform(tools, lambda t: case
                when not json_valid(t) then to_json(t)
                when json_type(t, '$.function') = 'OBJECT' then json_object('type', 'function', 'function', json_extract(t, '$.function'))
                when t ->> '$.name' is null or coalesce(t ->> '$.type', 'function') <> 'function' then t::json
                when t ->> '$.description' is null then json_object('type', 'function', 'function', json_object(
                    'name', t ->> '$.name',
                    'parameters', coalesce(t -> '$.parameters', t -> '$.inputSchema', t -> '$.input_schema', t -> '$.parameters_json_schema', t -> '$.parametersJsonSchema')
                ))
                else json_object('type', 'function', 'function', json_object(
                    'name', t ->> '$.name',
                    'description', t ->> '$.description',
                    'parameters', coalesce(t -> '$.parameters', t -> '$.inputSchema', t -> '$.input_schema', t -> '$.parameters_json_schema', t -> '$.parametersJsonSchema')
                ))
            end::varchar), ',') || ']' as tools
    from (select distinct tools from span_kinds where len(tools) > 0)
),

scalars as (
    select
        spans.trace_id, spans.span_id, spans.parent_span_id,
        kinds.span_kind, kinds.convention, kinds.scope_name,
        kinds.operation, kinds.provider, kinds.model,
        spans.service_name, spans.service_instance_id,
        coalesce(kinds.response_id, spans.response_id) as response_id,
        kinds.previous_response_id,
        kinds.prompt_tokens, kinds.completion_tokens,
        list_transform(
            coalesce(kinds.finish_reasons, spoken.finish_reasons),
            lambda f: case
                when f in ('tool_call', 'tool_calls', 'tool-calls', 'function_calls', 'function_call') then 'tool_calls'
                when lower(f) in ('length', 'max_tokens', 'max_output_tokens') then 'length'
                when f in ('', 'unknown') then null
                else lower(f)
            end
        ) as finish_reasons,
        json_merge_patch('{}'::json, coalesce(kinds.sampling, '{}')::json) as sampling,
        tool_lists.tools,
        spans.policy_version, spans.tokenizer, spans.logprobs_mode, kinds.content,
        spans.span_seq, spans.start_unix_nano, spans.end_unix_nano, spans.seq, spans.collector_id, spans.received_unix_nano,
        kinds.error,
        spans.dropped_attributes_count > 0 as dropped_attributes,
        spans.conflicting_copies,
        coalesce(spans.capture, case when kinds.span_kind = 'capture' then 'client' end) as capture,
        coalesce(spans.attributes_bool['lightning.retokenized_history'], false) as retokenized_history,
        coalesce(spoken.prompt_length, 0) as prompt_length,
        coalesce(spoken.prompt_hashes, []) as prompt_hashes,
        coalesce(spoken.talk_hashes, []) as talk_hashes,
        coalesce(spoken.response_hashes, []) as response_hashes,
        coalesce(spoken.choices, []) as choices,
        coalesce(spoken.has_user, false) as has_user,
        coalesce(spoken.empty_input, false) as empty_input,
        coalesce(spoken.empty_response, true) as empty_response,
        coalesce(spoken.asked, []) as asked,
        spoken.answers_tool_call_id,
        spoken.talk_hash,
        spoken.answer_hash
    from spans_unique as spans
    join span_kinds as kinds using (trace_id, span_id)
    left join spoken using (trace_id, span_id)
    left join tool_lists on tool_lists.said = kinds.tools
    where kinds.span_kind in ('llm', 'capture')
)

select
    scalars.* exclude (sampling),
    try_cast(sampling ->> '$.temperature' as double) as temperature,
    sampling::varchar as sampling,
    walk.judge, walk.agent, walk.agent_span_id, walk.scope_span_id, walk.llm_ancestor_span_id, walk.root_span_id, walk.orphan,
    walk.cycle, walk.depth,
    walk.session_id, walk.conversation_id, walk.user_id, walk.rollout_id as explicit_rollout_id, walk.attempt,
    walk.task_id, walk.group_id, walk.split,
    coalesce(scalars.policy_version, walk.policy_version) as version_hint
from scalars
join walk using (trace_id, span_id)
