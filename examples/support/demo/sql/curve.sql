-- The online curve: what the rollouts of each training round earned, and under which policy they were sampled. A round
-- comes back to tickets that were not solved before, so the share that tells how far the policy has come is that of `fresh`
-- tickets, which it meets for the first time.
-- grain: one row per round
with

played as (
    select
        split_part(rollout_id, '-', 3)::int as round,
        rollouts.task_id, rollout_id, rollouts.policy_version, returns.reward, returns.outcome::double as outcome,
        min(split_part(rollout_id, '-', 3)::int) over (partition by rollouts.task_id) as first_round
    from rollouts
    join returns using (rollout_id)
    where rollouts.split = 'train' and rollout_id like 'on-%'
)

select
    round,
    count(*) as rollouts,
    count(reward) as rewarded,
    avg(outcome order by rollout_id) as outcome,
    count(*) filter (where round = first_round) as fresh,
    avg(outcome order by rollout_id) filter (where round = first_round) as fresh_outcome,
    min(policy_version) as policy_version
from played
group by round
order by round
