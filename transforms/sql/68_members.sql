-- Which rollouts count: the chosen attempt, whole, not dropped; and what becomes of the others.
-- grain: one row per rollout_id
-- kind: bucket
-- `unwanted` are those for which the user's `where` is not true.
with

attempts as (
    select base_rollout_id, min(attempt) as first_attempt, max(attempt) as last_attempt
    from rollouts
    group by base_rollout_id
)

select
    rollouts.rollout_id, rollouts.task_id, rollouts.group_id, rollouts.policy_version, rollouts.complete, rollouts.split,
    case
        when $attempts = 'last' and rollouts.attempt <> last_attempt then 'other_attempt'
        when $attempts = 'first' and rollouts.attempt <> first_attempt then 'other_attempt'
        when unwanted.rollout_id is not null then 'where'
        when not rollouts.complete and $incomplete = 'drop' then 'incomplete'
        when rollouts.status = 'error' and $error = 'drop' then 'error'
        when rollouts.status = 'timeout' and $timeout = 'drop' then 'timeout'
    end as dropped,
    case
        when not rollouts.complete and $incomplete = 'mask' then true
        when rollouts.status = 'error' and $error = 'mask' then true
        when rollouts.status = 'timeout' and $timeout = 'mask' then true
        else false
    end as masked
from rollouts
join attempts using (base_rollout_id)
left join unwanted using (rollout_id)
