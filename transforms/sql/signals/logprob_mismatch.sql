-- Recorded log-probabilities that cannot be those of the policy that is said to have sampled.
-- grain: one row per (signal, subject)
-- kind: reduce
-- impossible: positive, not finite, missing, or not one a token. unequal: the same prompt, first token, policy version, tokenizer,
-- temperature and mode, yet first log-probabilities more than 0.2 apart: other weights, another template or another temperature.
-- Above one in a hundred high.
with

recorded as (
    select coalesce(policy_version, 'unknown version') as version, odd_logprobs
    from answers
    where odd_logprobs is not null
),

impossible as (
    select 'impossible in ' || version as subject, count(*) as n, (count(*) filter (where odd_logprobs))::double / count(*) as share
    from recorded
    group by version
),

same as (
    select
        policy_version, prompt_hash, first_token, tokenizer, temperature, logprobs_mode,
        max(first_logprob) - min(first_logprob) as apart
    from answers
    where first_logprob is not null and policy_version is not null and not odd_logprobs
    group by all
    having count(*) > 1
),

unequal as (
    select 'unequal in ' || policy_version as subject, count(*) as n, (count(*) filter (where apart > 0.2))::double / count(*) as share
    from same
    group by policy_version
    having count(*) >= 5
)

select
    'logprob_mismatch' as signal, case when share > 0.01 then 'high' else 'low' end as severity, subject,
    share as value, 0.01::double as threshold,
    printf('%d of %d', round(share * n)::bigint, n)
        || case when subject like 'impossible%' then ' answers have log-probabilities that cannot be'
            else ' repeated prompts have first log-probabilities that differ' end as detail
from (select * from impossible union all select * from unequal)
where share > 0
