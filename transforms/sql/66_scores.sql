-- Standing rewards as the configuration weighs them: one number a target and name, then one a target.
-- grain: one row per (rollout_id, target_kind, target_trace_id, target_span_id, target_choice)
-- kind: bucket
-- target_kind call, tool and span are on that one; rollout is R, of the rollout and of all its traces; trace is the share
-- of R that a trace's own rewards make, so that it can lie at that trace's last call. Numbers are exact: values are cast to
-- decimal(18,9), weighted and summed on decimal(38,9). `outcome` is the truth that signals and the gate watch; it need
-- not be trained on.
with

counted as (
    select
        rewards.*,
        coalesce(rewards.value, reward_labels.value)::decimal(18, 9) as score,
        coalesce(reward_names.combine, 'last') as combine,
        reward_names.weight,
        reward_names.is_outcome
    from resolved_rewards as rewards
    join reward_names using (name)
    left join reward_labels on reward_labels.name = rewards.name and reward_labels.label = rewards.label
    where rewards.unresolved_reason is null and rewards.rollout_id is not null
),

-- The records of one name on the rollout and on its traces are combined together.
targets as (
    select
        * exclude (target_trace_id, target_span_id, target_choice),
        case when target_kind in ('rollout', 'trace', 'session') then 'rollout' else target_kind end as level,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_trace_id end as level_trace_id,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_span_id end as level_span_id,
        case when target_kind in ('rollout', 'trace', 'session') then null else target_choice end as level_choice,
        case when target_kind = 'trace' then target_trace_id end as place_trace_id
    from counted
    where score is not null and (combine <> 'last' or superseded_by is null)
),

placed as (
    select
        *,
        count(*) over same_name as n,
        row_number() over (same_name order by emitted_unix_nano desc, reward_id desc) = 1 as latest
    from targets
    window same_name as (partition by rollout_id, level, level_trace_id, level_span_id, level_choice, name)
),

shares as (
    select
        rollout_id, level, level_trace_id, level_span_id, level_choice, place_trace_id, name,
        max(weight) as weight,
        bool_or(is_outcome) as is_outcome,
        case max(combine)
            when 'sum' then sum(score)::decimal(38, 9)
            when 'mean' then (sum(score) / max(n))::decimal(38, 9)
            else (sum(score) filter (where latest))::decimal(38, 9)
        end as share,
        list(reward_id order by reward_id) filter (where combine <> 'last' or latest) as reward_ids
    from placed
    group by all
),

named as (
    select
        rollout_id, level, level_trace_id, level_span_id, level_choice, name,
        max(weight) as weight,
        bool_or(is_outcome) as is_outcome,
        case max(combine)
            when 'sum' then sum(score)::decimal(38, 9)
            when 'mean' then (sum(score) / count(*))::decimal(38, 9)
            else (sum(score) filter (where latest))::decimal(38, 9)
        end as score,
        list(reward_id order by reward_id) filter (where combine <> 'last' or latest) as reward_ids
    from placed
    group by all
)

select
    rollout_id, level as target_kind, level_trace_id as target_trace_id, level_span_id as target_span_id, level_choice as target_choice,
    sum((score * weight::decimal(18, 9))::decimal(38, 9)) filter (where weight is not null) as score,
    sum(score) filter (where is_outcome) as outcome,
    list_sort(coalesce(flatten(list(reward_ids) filter (where weight is not null)), [])) as reward_ids
from named
group by all

union all

select
    rollout_id, 'trace', place_trace_id, null, null,
    sum((share * weight::decimal(18, 9))::decimal(38, 9)),
    null,
    list_sort(flatten(list(reward_ids)))
from shares
where place_trace_id is not null and weight is not null and share is not null
group by rollout_id, place_trace_id
