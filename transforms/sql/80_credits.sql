-- The stored part of `credits`: c(t) of each answer under the configured recipe. The advantage is a view over this and
-- `baselines`, so that a changed baseline rewrites one row.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select
    choices.trace_id, choices.span_id, choices.choice,
    $recipe as recipe,
    choices.rollout_id, choices.step,
    $method as method, $baseline as baseline, $scale as scale,
    members.group_id, members.policy_version,
    choices.own_score as own_reward,
    case when choices.trainable then assigned.credit end as reward,
    case when members.masked or (choices.truncated and $truncated = 'mask') or not choices.trainable then 'mask' else 'train' end as "use",
    1.0::double as weight,
    list_sort(list_distinct(coalesce(assigned.reward_ids, []))) as reward_ids,
    choices.trainable
from choices
join assigned using (trace_id, span_id, choice)
join members using (rollout_id)
