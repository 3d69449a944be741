-- A call is credited with the rewards that name it and those of the tools that it asked for.
--   c(t) = own(t) + tool(t); a missing part is left out, both missing is missing
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select
    trace_id, span_id, choice,
    case when own_score is null and tool_score is null then null
        else coalesce(own_score, 0) + coalesce(tool_score, 0) end::decimal(38, 12) as credit,
    list_concat(coalesce(own_reward_ids, []), coalesce(tool_reward_ids, [])) as reward_ids
from choices
