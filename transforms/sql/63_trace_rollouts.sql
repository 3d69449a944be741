-- The episode of a trace, where its calls are of one alone: what a reward on the trace stands on.
-- grain: one row per trace_id
-- kind: bucket
select trace_id, min(rollout_id) as rollout_id
from calls
where rollout_id is not null
group by trace_id
having count(distinct rollout_id) = 1
