-- The online curve: what the rollouts of each training round earned, and under which policy they were sampled.
-- grain: one row per round
select
    split_part(rollout_id, '-', 3)::int as round,
    count(*) as rollouts,
    count(returns.reward) as rewarded,
    avg(returns.outcome::double order by rollout_id) as outcome,
    min(rollouts.policy_version) as policy_version
from rollouts
join returns using (rollout_id)
where rollouts.split = 'train' and rollout_id like 'on-%'
group by round
order by round
