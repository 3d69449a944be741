-- What an episode that was resolved cost: its mean over episodes is the cost of a resolved ticket. Weigh it negatively.
-- grain: one row per (rollout_id)
-- kind: bucket
-- Resolved is a standing reward named `resolved`, above 0 or labelled yes, true or resolved, on the episode. Prices come from
-- `prices` in the configuration; an episode with a call of unknown price has none, and one that was not resolved has none.
-- name: cost_per_resolved
with

resolved as (
    select rollout_id
    from rewards
    where name = 'resolved' and target_kind in ('rollout', 'trace', 'session')
    group by rollout_id
    having bool_and(coalesce(value > 0, lower(label) in ('yes', 'true', 'resolved'), false))
),

spent as (
    select rollout_id, case when count(price) = count(*) then sum(price)::double end as value
    from calls
    group by rollout_id
)

select spent.rollout_id, spent.value
from spent
join resolved using (rollout_id)
