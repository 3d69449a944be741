-- Standing rewards as the configuration weighs them: one number a target and name, then one a target.
-- grain: one row per (rollout_id, target_kind, target_trace_id, target_span_id, target_choice)
-- kind: bucket
-- Numbers are exact: values are cast to decimal(18,9), weighted and summed on decimal(38,9). `outcome` is the truth
-- that signals and the gate watch; it need not be trained on.
with

counted as (
    select
        rewards.*,
        coalesce(rewards.value, reward_labels.value)::decimal(18, 9) as score,
        coalesce(reward_names.combine, 'last') as combine,
        reward_names.weight,
        reward_names.is_outcome
    from rewards
    join reward_names using (name)
    left join reward_labels on reward_labels.name = rewards.name and reward_labels.label = rewards.label
    where rewards.unresolved_reason is null and rewards.rollout_id is not null
),

-- The records of one name on the rollout and on its traces are combined together.
targets as (
    select
        *,
        case when target_kind in ('rollout', 'trace', 'session') then 'rollout' else target_kind end as level,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_trace_id end as level_trace_id,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_span_id end as level_span_id,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_choice end as level_choice
    from counted
    where score is not null and (combine <> 'last' or superseded_by is null)
),

named as (
    select
        rollout_id, level, level_trace_id, level_span_id, level_choice, name,
        any_value(weight order by reward_id) as weight,
        bool_or(is_outcome) as is_outcome,
        case any_value(combine order by reward_id)
            when 'sum' then sum(score)::decimal(38, 9)
            when 'mean' then (sum(score) / count(*))::decimal(38, 9)
            else arg_max(score, (emitted_unix_nano, reward_id))::decimal(38, 9)
        end as score,
        list(reward_id order by reward_id) as reward_ids
    from targets
    group by all
)

select
    rollout_id, level as target_kind, level_trace_id as target_trace_id, level_span_id as target_span_id, level_choice as target_choice,
    sum((score * weight::decimal(18, 9))::decimal(38, 9)) filter (where weight is not null) as score,
    sum(score) filter (where is_outcome) as outcome,
    list_sort(flatten(list(reward_ids) filter (where weight is not null))) as reward_ids
from named
group by all
