-- The table `returns`: each rollout's reward, true outcome and mean credit q, so that every rollout counts once
-- whatever its length. Under method agent each agent of the rollout counts for itself.
-- grain: one row per (rollout_id, agent, recipe)
-- kind: bucket
-- q is the mean of the credits of the rollout (of the agent in it); a rollout without a trainable call has q = R under
-- broadcast, last and discounted. `population` is whom baseline population compares it with.
with

means as (
    select
        rollout_id, credited_agent as agent,
        (sum(reward) / count(reward))::decimal(38, 12) as credit_mean,
        count(*) filter (where trainable) as trainable_calls
    from credits
    group by rollout_id, credited_agent
),

of_rollout as (
    select rollout_id, score, outcome from scores where target_kind = 'rollout'
)

select
    members.rollout_id, means.agent, $recipe as recipe,
    members.task_id, members.group_id, members.policy_version, members.split,
    case when populations.rollout_id is not null then coalesce(populations.population, '')
        else coalesce(members.policy_version, '') end as population,
    of_rollout.score as reward,
    of_rollout.outcome as outcome,
    case
        when members.dropped is not null then null
        when coalesce(means.trainable_calls, 0) > 0 then means.credit_mean
        when $method in ('broadcast', 'last', 'discounted') then of_rollout.score::decimal(38, 12)
    end as credit_mean,
    coalesce(means.trainable_calls, 0) as trainable_calls,
    members.complete,
    members.dropped is null as member,
    members.dropped as dropped
from members
left join means using (rollout_id)
left join of_rollout using (rollout_id)
left join populations using (rollout_id)
