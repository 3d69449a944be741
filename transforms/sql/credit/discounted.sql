-- A call is credited with what came after it, discounted by the steps between.
--   c(t) = Σ_{s ≥ t} γ^(step(s) − step(t)) x(s),  x = own + tool, plus what is on a span at that span's last call, on a
--   trace at that trace's and on the episode at the episode's; nothing only where the episode earned nothing at all
-- The return G_t of Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 3.8. Computed by a doubling scan: after
-- pass k each call holds the sum over the 2^k calls from it on, so log2(n) passes do, and no power of γ overflows.
-- reward_ids are those at the call itself and those of the episode.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
with recursive

rewarded as (
    select
        rollout_id, step, trace_id, span_id,
        (coalesce(own, 0) + coalesce(tool, 0) + coalesce(span, 0) + coalesce(trace, 0) + coalesce(rest, 0))::double as reward,
        coalesce(own, tool, span, trace, rest) is not null as any_reward,
        list_concat(list_concat(own_ids, tool_ids), span_ids) as reward_ids
    from earned
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
    case when choices.is_main then list_concat(placed.reward_ids, coalesce(choices.rollout_reward_ids, []))
        else coalesce(choices.own_reward_ids, []) end as reward_ids
from choices
join placed using (trace_id, span_id)
join totals on totals.rollout_id = choices.rollout_id and totals.step = choices.step
