-- The stored part of `credits`: c(t) of each answer under the configured recipe. The advantage is a view over this and
-- `baselines`, so that a changed baseline rewrites one row.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
with

-- A method that compares branches says how many there are and their mean; the others say nothing of it.
assigned_credit as (
    select * from assigned
    union all by name
    select null::bigint as branches, null::decimal(38, 12) as branch_mean where false
)

select
    choices.trace_id, choices.span_id, choices.choice,
    $recipe as recipe,
    choices.rollout_id, choices.step,
    $method as method, $baseline as baseline, $scale as scale,
    members.group_id, members.policy_version,
    -- Whom the call is compared with: method agent compares each agent with itself.
    case when $method = 'agent' then choices.agent end as credited_agent,
    choices.own_score as own_reward,
    case when choices.trainable then assigned.credit end as reward,
    assigned.branches, assigned.branch_mean,
    case when choices.trainable and assigned.credit is not null
        then assigned.credit >= $kto_threshold::decimal(18, 9) end as desirable,
    case when members.masked or (choices.truncated and $truncated = 'mask') or not choices.trainable then 'mask' else 'train' end as "use",
    1.0::double as weight,
    list_sort(list_distinct(coalesce(assigned.reward_ids, []))) as reward_ids,
    choices.trainable
from choices
join assigned_credit as assigned using (trace_id, span_id, choice)
join members using (rollout_id)
