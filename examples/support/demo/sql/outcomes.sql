-- Every ticket that was played for a report: stage, policy, and whether the store held the right action at the end.
-- grain: one row per rollout of split test; rollout ids are report-<stage>-<decoding>-<ticket>
select
    split_part(rollout_id, '-', 2) as stage,
    split_part(rollout_id, '-', 3) as decoding,
    rollouts.task_id as ticket_id,
    rollouts.policy_version,
    returns.outcome::double as resolved
from rollouts
join returns using (rollout_id)
where rollouts.split = 'test' and rollout_id like 'report-%'
order by rollout_id
