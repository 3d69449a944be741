-- The table `answers`: what preference pairs and signals need to know of each answer, without a message or a token list.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
-- Hashes are of canonical messages: opening of the first message and the first that is not the system's, conversation of the
-- prompt with the answer. length is in tokens. odd_logprobs: recorded log-probabilities that cannot be those of the ids.
with

unfolded as (
    select
        calls.trace_id, calls.span_id, calls.rollout_id, calls.step, calls.prompt_hash, calls.policy_version,
        calls.tokenizer, calls.temperature, calls.logprobs_mode, calls.agent, calls.model, calls.service_name, calls.user_id,
        facts.prompt_hashes, facts.talk_hashes, facts.completion_tokens,
        len(facts.choices) as n,
        unnest(facts.choices) as choice,
        unnest(facts.response_hashes) as response_hash,
        ids.response_ids, ids.response_logprobs
    from calls
    join call_facts as facts using (trace_id, span_id)
    join call_token_ids as ids using (trace_id, span_id)
    where calls.rollout_id is not null and not calls.judge and calls.trainable
)

select
    trace_id, span_id, choice::integer as choice, rollout_id, step, agent, model, service_name, user_id, policy_version,
    tokenizer, temperature, logprobs_mode,
    prompt_hash,
    sha256(to_json([prompt_hashes[1], talk_hashes[1]])) as opening_hash,
    response_hash,
    sha256(to_json(list_append(prompt_hashes, response_hash))) as conversation_hash,
    coalesce(len(response_ids[choice + 1]), case when n = 1 then completion_tokens end)::bigint as length,
    response_ids[choice + 1][1] as first_token,
    response_logprobs[choice + 1][1] as first_logprob,
    len(response_logprobs[choice + 1]) > 0 and (
        len(response_logprobs[choice + 1]) <> len(response_ids[choice + 1])
        or len(list_filter(response_logprobs[choice + 1], lambda p: p is null or not isfinite(p) or p > 0.000001)) > 0
    ) as odd_logprobs
from unfolded
