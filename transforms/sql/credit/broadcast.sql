-- Every call of an episode is credited with the episode's reward.
--   c(t) = R
-- The episode-level return of REINFORCE (Williams, 1992) with one reward at the end and no discount.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select
    trace_id, span_id, choice,
    rollout_score::decimal(38, 12) as credit,
    rollout_reward_ids as reward_ids
from choices
