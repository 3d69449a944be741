-- How many tool executions of an episode failed, and of how many: costs, so weigh them negatively.
-- grain: one row per (rollout_id)
-- kind: bucket
-- An episode that used no tool has none: nothing was measured.
-- name: tool_errors
select rollout_id, (count(*) filter (where error))::double as value, count(*) || ' tool executions' as explanation
from tools
group by rollout_id
