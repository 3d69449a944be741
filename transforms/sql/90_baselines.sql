-- The table `baselines`: what a credit is compared with. A narrow reduce over the returns of every rollout.
-- grain: one row per (recipe, kind, key, agent)
-- kind: reduce
-- n, sum and deviation are over q of the members: rollouts with q, not dropped, of one group (kind group) or of one
-- population (kind population: one policy version, or one value of credit.within).
with

q as (
    select recipe, agent, group_id, population, rollout_id, credit_mean
    from returns
    where member and credit_mean is not null
),

keyed as (
    select recipe, 'group' as kind, group_id as key, agent, rollout_id, credit_mean from q
    union all
    select recipe, 'population', population, agent, rollout_id, credit_mean from q
),

means as (
    select recipe, kind, key, agent, count(*) as n, sum(credit_mean) as total
    from keyed
    group by all
)

select
    keyed.recipe, keyed.kind, keyed.key, keyed.agent, means.n, means.total as sum,
    sqrt(sum(
        power((credit_mean - (means.total / means.n)::decimal(38, 12))::double, 2) order by keyed.rollout_id
    ) / means.n) as deviation
from keyed
join means
    on means.recipe = keyed.recipe and means.kind = keyed.kind and means.key = keyed.key
    and means.agent is not distinct from keyed.agent
group by keyed.recipe, keyed.kind, keyed.key, keyed.agent, means.n, means.total
