-- Every LLM span and every token record (plane B), with the scalars of all conventions under one name.
-- grain: one row per (trace_id, span_id) with span_kind llm or capture
-- kind: bucket
with

scalars as (
    select
        spans.trace_id, spans.span_id, spans.parent_span_id,
        kinds.span_kind, kinds.convention, kinds.scope_name,
        spans.operation, coalesce(spans.provider, spans.attributes_str['gen_ai.system'], spans.attributes_str['llm.system']) as provider,
        coalesce(spans.request_model, spans.attributes_str['llm.invocation_parameters'] ->> '$.model') as request_model,
        coalesce(spans.response_model, spans.llm_model_name, spans.request_model) as model,
        spans.service_name, spans.service_instance_id,
        coalesce(
            spans.response_id,
            case when spans.oi_kind is not null and json_valid(spans.attributes_str['output.value']) then coalesce(
                spans.attributes_str['output.value'] ->> '$.id',
                spans.attributes_str['output.value'] ->> '$.llm_output.id',
                spans.attributes_str['output.value'] ->> '$.generations[0][0].message.kwargs.response_metadata.id',
                spans.attributes_str['output.value'] ->> '$[0].output[0].provider_data.response_id'
            ) end
        ) as response_id,
        case when json_valid(spans.attributes_str['llm.invocation_parameters'])
            then spans.attributes_str['llm.invocation_parameters'] end as invocation,
        coalesce(spans.input_tokens, spans.attributes_int['llm.token_count.prompt'], spans.attributes_int['gen_ai.usage.prompt_tokens']) as prompt_tokens,
        coalesce(spans.output_tokens, spans.attributes_int['llm.token_count.completion'], spans.attributes_int['gen_ai.usage.completion_tokens']) as completion_tokens,
        coalesce(
            from_json(spans.attributes_json['gen_ai.response.finish_reasons'], '["VARCHAR"]'),
            from_json(spans.attributes_str['gen_ai.response.finish_reasons'], '["VARCHAR"]'),
            case when spans.attributes_str['llm.finish_reason'] is not null then [spans.attributes_str['llm.finish_reason']] end,
            case when json_valid(spans.attributes_str['output.value']) and spans.attributes_str['output.value'] ->> '$.finish_reason' is not null
                then [spans.attributes_str['output.value'] ->> '$.finish_reason'] end
        ) as finish_reasons,
        {
            temperature: coalesce(spans.attributes_dbl['gen_ai.request.temperature'], spans.attributes_int['gen_ai.request.temperature']::double),
            top_p: coalesce(spans.attributes_dbl['gen_ai.request.top_p'], spans.attributes_int['gen_ai.request.top_p']::double),
            top_k: coalesce(spans.attributes_dbl['gen_ai.request.top_k'], spans.attributes_int['gen_ai.request.top_k']::double),
            min_p: coalesce(spans.attributes_dbl['gen_ai.request.min_p'], spans.attributes_int['gen_ai.request.min_p']::double),
            max_tokens: spans.attributes_int['gen_ai.request.max_tokens'],
            seed: spans.attributes_int['gen_ai.request.seed']
        } as request,
        coalesce(spans.attributes_str['gen_ai.tool.definitions'], spans.attributes_json['gen_ai.tool.definitions']) as tool_definitions,
        list_transform(
            list_sort(list_filter(map_keys(spans.attributes_str), lambda k: k ~ '^llm\.tools\.\d+\.tool\.json_schema$')),
            lambda k: spans.attributes_str[k]
        ) as tool_schemas,
        spans.policy_version, spans.tokenizer, spans.logprobs_mode, spans.content,
        case when spans.capture = 'client' then client_prompts.prompt_ids else spans.prompt_token_ids end as prompt_token_ids,
        spans.choices as token_choices,
        spans.span_seq, spans.start_unix_nano, spans.end_unix_nano, spans.seq, spans.collector_id, spans.received_unix_nano,
        spans.status_code = 2 or spans.attributes_str['error.type'] is not null as error,
        coalesce(spans.attributes_str['openai.api.type'] = 'responses', false) as responses_api,
        spans.dropped_attributes_count > 0 as dropped_attributes,
        spans.conflicting_copies,
        spans.capture,
        coalesce(spans.attributes_bool['lightning.retokenized_history'], false) as retokenized_history
    from spans_unique as spans
    join span_kinds as kinds using (trace_id, span_id)
    left join client_prompts using (trace_id, span_id)
    where kinds.span_kind in ('llm', 'capture')
)

select
    scalars.* exclude (request, invocation, tool_definitions, tool_schemas, finish_reasons, responses_api),
    list_transform(
        coalesce(scalars.finish_reasons, spoken.finish_reasons),
        lambda f: case
            when f in ('tool_call', 'tool_calls', 'tool-calls', 'function_calls', 'function_call') then 'tool_calls'
            when lower(f) in ('length', 'max_tokens', 'max_output_tokens') then 'length'
            when f in ('', 'unknown') then null
            -- The Responses API names no reason; LangChain's instrumentation then writes one on calls that went well.
            when f = 'error' and responses_api and not scalars.error then null
            else lower(f)
        end
    ) as finish_reasons,
    coalesce(request.temperature, (invocation ->> '$.temperature')::double) as temperature,
    json_merge_patch(
        coalesce(json_object(
            'top_p', invocation -> '$.top_p', 'max_tokens', coalesce(invocation -> '$.max_tokens', invocation -> '$.max_completion_tokens'),
            'seed', invocation -> '$.seed', 'stop', invocation -> '$.stop', 'n', invocation -> '$.n',
            'temperature', invocation -> '$.temperature'
        ), '{}'::json),
        to_json(request)
    )::varchar as sampling,
    invocation ->> '$.previous_response_id' as previous_response_id,
    coalesce(tool_definitions, case when len(tool_schemas) > 0 then '[' || array_to_string(tool_schemas, ',') || ']' end) as tools,
    walk.judge, walk.agent, walk.agent_span_id, walk.scope_span_id, walk.llm_ancestor_span_id, walk.root_span_id, walk.orphan,
    walk.cycle, walk.depth,
    walk.session_id, walk.conversation_id, walk.user_id, walk.rollout_id as explicit_rollout_id, walk.attempt,
    walk.task_id, walk.group_id, walk.split,
    coalesce(scalars.policy_version, walk.policy_version) as version_hint,
    coalesce(spoken.prompt_messages, '[]') as prompt_messages,
    coalesce(spoken.prompt_length, 0) as prompt_length,
    coalesce(spoken.response_messages, '[]') as response_messages,
    coalesce(spoken.prompt_hashes, []) as prompt_hashes,
    coalesce(spoken.talk_hashes, []) as talk_hashes,
    coalesce(spoken.response_hashes, []) as response_hashes,
    coalesce(spoken.choices, []) as choices,
    coalesce(spoken.has_user, false) as has_user,
    spoken.first_user,
    coalesce(spoken.empty_input, false) as empty_input,
    coalesce(spoken.empty_response, true) as empty_response,
    coalesce(spoken.asked, []) as asked,
    spoken.answers_tool_call_id,
    spoken.talk_hash,
    spoken.answer_hash
from scalars
join walk using (trace_id, span_id)
left join spoken using (trace_id, span_id)
