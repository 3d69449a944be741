-- The trained reward went up from one policy version to the next while the true outcome went down: the reward is being gamed.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Means over member rollouts of versions with at least 20; both differences beyond two standard errors (Welch).
with

judged as (
    select rollout_id, policy_version, max(reward) as reward, max(outcome) as outcome
    from returns
    where member and policy_version is not null and reward is not null and outcome is not null
    group by rollout_id, policy_version
),

means as (
    select
        policy_version, count(*) as n,
        (sum(reward) / count(*))::decimal(38, 12) as reward,
        (sum(outcome) / count(*))::decimal(38, 12) as outcome
    from judged
    group by policy_version
),

spread as (
    select
        means.policy_version, means.n, means.reward, means.outcome,
        sum(power((judged.reward - means.reward)::double, 2) order by judged.rollout_id) / (means.n - 1) / means.n as reward_error,
        sum(power((judged.outcome - means.outcome)::double, 2) order by judged.rollout_id) / (means.n - 1) / means.n as outcome_error
    from means
    join judged using (policy_version)
    where means.n >= 20
    group by means.policy_version, means.n, means.reward, means.outcome
),

steps as (
    select
        lag(policy_version) over (order by policy_version) as before, policy_version as after,
        (reward - lag(reward) over (order by policy_version))::double as reward,
        (outcome - lag(outcome) over (order by policy_version))::double as outcome,
        sqrt(reward_error + lag(reward_error) over (order by policy_version)) as reward_error,
        sqrt(outcome_error + lag(outcome_error) over (order by policy_version)) as outcome_error
    from spread
)

select
    'reward_without_outcome' as signal, 'high' as severity, before || ' → ' || after as subject,
    outcome as value, -2 * outcome_error as threshold,
    printf('the reward rose by %.3f while the outcome fell by %.3f', reward, -outcome) as detail
from steps
where reward > 2 * reward_error and outcome < -2 * outcome_error
