-- The table `calls`: one LLM call with its place in its episode. What was said in it, and its token ids, join in whole_calls.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- `price` is in the currency of the configured prices, NULL where model or tokens are unknown: missing is not free.
with

-- The price of the model's own name, else of the longest beginning.
priced as (
    select models.model, max_by(prices.input, (not prices.starts, len(prices.model))) as input,
        max_by(prices.output, (not prices.starts, len(prices.model))) as output
    from (select distinct model from call_facts where model is not null) as models
    join prices
        on prices.model = models.model or (prices.starts and starts_with(models.model, prices.model))
    group by models.model
)

select
    facts.trace_id, facts.span_id, facts.parent_span_id, facts.scope_span_id, facts.agent_span_id,
    steps.rollout_id, steps.step,
    facts.convention, facts.operation, facts.provider, facts.model, facts.response_id,
    facts.service_name, facts.service_instance_id, facts.session_id, facts.conversation_id, facts.user_id,
    facts.agent, facts.judge,
    null::varchar as prompt_messages, null::varchar as response_messages,
    facts.choices, null::varchar as tools, facts.sampling, facts.temperature,
    facts.finish_reasons, facts.prompt_tokens, facts.completion_tokens,
    facts.policy_version, facts.tokenizer,
    null::integer[] as prompt_ids, null::integer[][] as response_ids, null::double[][] as response_logprobs,
    facts.logprobs_mode, facts.token_source, facts.prompt_hash,
    lineage.parent_trace_id as lineage_trace_id, lineage.parent_span_id as lineage_span_id, lineage.choice as lineage_choice,
    facts.content, facts.span_seq, facts.start_unix_nano, facts.end_unix_nano,
    case when facts.start_unix_nano > 0 and facts.end_unix_nano >= facts.start_unix_nano
        then (facts.end_unix_nano - facts.start_unix_nano)::double / 1e6 end as latency_ms,
    ((facts.prompt_tokens::decimal(18, 0) * priced.input + facts.completion_tokens::decimal(18, 0) * priced.output)
        * 0.000001::decimal(7, 6))::decimal(38, 12) as price,
    facts.error,
    facts.trainable and not facts.judge and steps.rollout_id is not null
        and not (coalesce(list_contains(facts.finish_reasons, 'length'), false) and $truncated = 'drop') as trainable,
    case
        when facts.untrainable_reason is not null then facts.untrainable_reason
        when facts.judge then 'judge'
        when steps.rollout_id is null then coalesce(steps.keyed_by, 'no_rollout')
    end as untrainable_reason,
    facts.merged_span_ids,
    facts.captured, facts.task_id, facts.group_id, facts.split,
    list_contains(facts.finish_reasons, 'length') as truncated,
    list_concat(facts.flags, case when steps.clock_suspect or impossible then ['clock_suspect'] else [] end) as flags
from (
    -- Backwards, or outside of 2000 to 2099.
    select
        *,
        end_unix_nano < start_unix_nano or (start_unix_nano > 0 and start_unix_nano < 946684800000000000)
            or greatest(start_unix_nano, end_unix_nano) >= 4102444800000000000 as impossible
    from call_facts
) as facts
left join call_steps as steps using (trace_id, span_id)
left join lineage using (trace_id, span_id)
left join priced on priced.model = facts.model
