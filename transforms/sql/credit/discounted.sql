-- A call is credited with what came after it, discounted by the steps between.
--   c(t) = Σ_{s ≥ t} γ^(step(s) − step(t)) x(s),  x = own + tool, plus the episode's reward at its last call
-- The return G_t of Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 3.8. Computed by a doubling scan: after
-- pass k each call holds the sum over the 2^k calls from it on, so log2(n) passes do, and no power of γ overflows.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
with recursive

lasts as (
    select rollout_id, max(step) as last_step from choices group by rollout_id
),

x as (
    select
        rollout_id, step, trace_id, span_id, last_step,
        sum(case when is_main then own_score end) as main_own,
        sum(tool_score) as tool,
        any_value(rollout_score order by choice) as episode
    from choices
    join lasts using (rollout_id)
    group by all
),

rewarded as (
    select
        rollout_id, step, trace_id, span_id,
        case
            when main_own is null and tool is null and (step <> last_step or episode is null) then 0
            else coalesce(main_own, 0) + coalesce(tool, 0) + case when step = last_step then coalesce(episode, 0) else 0 end
        end::double as reward,
        main_own is not null or tool is not null or (step = last_step and episode is not null) as any_reward
    from x
),

placed as (
    select
        *,
        row_number() over (partition by rollout_id order by step) - 1 as place,
        count(*) over (partition by rollout_id) as n,
        bool_or(any_reward) over (partition by rollout_id) as any_in_rollout
    from rewarded
),

scan as (
    select rollout_id, place, step, n, reward as total, 1::bigint as width from placed
    union all
    select
        rollout_id, place, step, n,
        total + case when following is null then 0 else pow($gamma::double, following_step - step) * following end,
        width * 2
    from (
        select
            *,
            lead(total, width) over (partition by rollout_id order by place) as following,
            lead(step, width) over (partition by rollout_id order by place) as following_step
        from scan
        where width < n
    )
),

totals as (
    select rollout_id, step, total
    from scan
    where width >= n
)

select
    choices.trace_id, choices.span_id, choices.choice,
    case
        when not placed.any_in_rollout then null
        when choices.is_main then totals.total
        else choices.own_score::double
    end::decimal(38, 12) as credit,
    list_concat(coalesce(choices.own_reward_ids, []), coalesce(choices.tool_reward_ids, []), coalesce(choices.rollout_reward_ids, [])) as reward_ids
from choices
join placed using (trace_id, span_id)
join totals on totals.rollout_id = choices.rollout_id and totals.step = choices.step
