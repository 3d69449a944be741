-- A call is credited with the rewards that name it, and nothing else.
--   c(t) = own(t)
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select trace_id, span_id, choice, own_score::decimal(38, 12) as credit, own_reward_ids as reward_ids
from choices
