-- `samples`: the (prompt, response, reward) tuple: narrow credits joined to wide calls.
-- grain: one row per (trace_id, span_id, choice)
-- kind: reduce
with

lengths as (
    select rollout_id, count(*) as n_steps from calls where not judge group by rollout_id
)

select
    credits.* exclude (revision),
    sha256(to_json([credits.trace_id, credits.span_id, credits.choice::varchar])) as sample_id,
    calls.revision,
    calls.prompt_messages,
    calls.response_messages::json ->> credits.choice as response_message,
    calls.tools,
    calls.prompt_ids,
    calls.response_ids[credits.choice + 1] as response_ids,
    calls.response_logprobs[credits.choice + 1] as response_logprobs,
    calls.logprobs_mode, calls.temperature, calls.sampling, calls.tokenizer, calls.token_source,
    coalesce(calls.finish_reasons[credits.choice + 1], calls.finish_reasons[1]) as finish_reason,
    coalesce(calls.truncated, false) as truncated,
    rollouts.task_id, rollouts.split, calls.agent, calls.service_name, calls.convention, calls.model,
    lengths.n_steps
from credits
join calls using (trace_id, span_id)
join rollouts on rollouts.rollout_id = credits.rollout_id
join lengths on lengths.rollout_id = credits.rollout_id
