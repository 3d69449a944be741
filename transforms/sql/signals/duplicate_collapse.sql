-- A policy version says the same thing again and again where the one before said several.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Share of answers beyond the first of each wording, among prompts that were answered at least twice (50 answers a version). At
-- least 0.9, and 0.3 more than before, is worth a word; high when the reward did not rise with it: who is right may repeat it.
with

wordings as (
    select policy_version, prompt_hash, response_hash, count(*) as n
    from answers
    where policy_version is not null
    group by all
),

prompts as (
    select policy_version, prompt_hash, sum(n)::bigint as n, count(*) as wordings
    from wordings
    group by all
    having sum(n) > 1
),

shares as (
    select policy_version, sum(n - wordings)::double / sum(n - 1) as share
    from prompts
    group by policy_version
    having sum(n) >= 50
),

rewards as (
    select policy_version, (sum(reward) / count(reward))::decimal(38, 12) as reward
    from (
        select rollout_id, policy_version, max(reward) as reward from returns where member group by rollout_id, policy_version
    )
    group by policy_version
),

steps as (
    select
        lag(policy_version) over (order by policy_version) as before, policy_version as after,
        lag(share) over (order by policy_version) as was, share,
        reward > lag(reward) over (order by policy_version) as better
    from shares
    left join rewards using (policy_version)
)

select
    'duplicate_collapse' as signal, case when coalesce(better, false) then 'low' else 'high' end as severity,
    before || ' → ' || after as subject,
    share as value, 0.9::double as threshold,
    printf('repeated answers to one prompt went from %.0f%% to %.0f%%', 100 * was, 100 * share) as detail
from steps
where share >= 0.9 and share - was >= 0.3
