-- What a call earned at its place: rewards lie where what they are on ended.
-- grain: one row per (trace_id, span_id) of a call that can be credited
-- kind: bucket
-- x(t) = own + tool + span + trace + rest: own and tool of the main answer; span the rewards of spans whose last call t is;
-- trace the share of the episode's reward R that lies on traces whose last call t is; rest what else R holds, at the
-- episode's last call. NULL is nothing earned.
with

calls_in as (
    select
        rollout_id, step, trace_id, span_id,
        sum(own_score) filter (where is_main) as own,
        flatten(coalesce(list(own_reward_ids) filter (where is_main and own_reward_ids is not null), [])) as own_ids,
        sum(tool_score) as tool,
        flatten(coalesce(list(tool_reward_ids order by choice) filter (where tool_reward_ids is not null), [])) as tool_ids,
        max(rollout_score) as rollout_score,
        step = max(step) over (partition by rollout_id) as ends_rollout,
        step = max(step) over (partition by rollout_id, trace_id) as ends_trace
    from choices
    group by rollout_id, step, trace_id, span_id
),

ended_spans as (
    select
        around.trace_id, around.span_id, sum(scores.score) as score,
        flatten(list(scores.reward_ids order by around.rewarded_span_id)) as reward_ids
    from rewarded_spans as around
    join scores
        on scores.target_kind = 'span' and scores.target_trace_id = around.trace_id
        and scores.target_span_id = around.rewarded_span_id
    where around.last and scores.score is not null
    group by around.trace_id, around.span_id
),

of_traces as (
    select rollout_id, target_trace_id as trace_id, score, reward_ids
    from scores
    where target_kind = 'trace'
),

-- What of R lies on traces that have a call here; a trace's share without one lies at the episode's end.
shares as (
    select calls_in.rollout_id, sum(of_traces.score) as score
    from calls_in
    join of_traces on of_traces.rollout_id = calls_in.rollout_id and of_traces.trace_id = calls_in.trace_id
    where calls_in.ends_trace
    group by calls_in.rollout_id
),

of_rollouts as (
    select rollout_id, reward_ids, score from scores where target_kind = 'rollout'
),

rests as (
    select
        of_rollouts.rollout_id,
        of_rollouts.score - coalesce(shares.score, 0) as rest,
        list_filter(of_rollouts.reward_ids, lambda id: not list_contains(coalesce(here.reward_ids, []), id)) as reward_ids
    from of_rollouts
    left join shares using (rollout_id)
    left join (
        select of_traces.rollout_id, flatten(list(of_traces.reward_ids)) as reward_ids
        from of_traces
        semi join calls_in on calls_in.rollout_id = of_traces.rollout_id and calls_in.trace_id = of_traces.trace_id
        group by of_traces.rollout_id
    ) as here on here.rollout_id = of_rollouts.rollout_id
)

select
    calls_in.rollout_id, calls_in.step, calls_in.trace_id, calls_in.span_id,
    calls_in.own, calls_in.tool, ended_spans.score as span, of_traces.score as trace,
    case when len(rests.reward_ids) > 0 then rests.rest end as rest,
    own_ids, tool_ids,
    coalesce(ended_spans.reward_ids, []) as span_ids,
    coalesce(of_traces.reward_ids, []) as trace_ids,
    coalesce(rests.reward_ids, []) as rest_ids
from calls_in
left join ended_spans using (trace_id, span_id)
left join of_traces
    on calls_in.ends_trace and of_traces.rollout_id = calls_in.rollout_id and of_traces.trace_id = calls_in.trace_id
left join rests on calls_in.ends_rollout and rests.rollout_id = calls_in.rollout_id
