-- Only the last trainable call of an episode is credited with the episode's reward.
--   c(t) = R if t is the last trainable call, else nothing
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select
    trace_id, span_id, choice,
    case when step = max(step) filter (where trainable) over (partition by rollout_id) then rollout_score end::decimal(38, 12) as credit,
    case when step = max(step) filter (where trainable) over (partition by rollout_id) then rollout_reward_ids end as reward_ids
from choices
