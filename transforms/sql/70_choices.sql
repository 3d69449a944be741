-- Every answer of every call that can be credited, with the rewards that stand on it or on tools it asked for.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
-- The choice that a later prompt or a tool continues carries the rewards of tools and of the rollout; without one it
-- is choice 0 of a call with a single answer.
with

kept as (
    select
        calls.trace_id, calls.span_id, calls.rollout_id, calls.step, calls.trainable, calls.truncated, calls.policy_version,
        case when len(calls.choices) > 0 then calls.choices else [0] end as choices
    from calls
    join members using (rollout_id)
    where not calls.judge and members.dropped is null
),

continued as (
    select lineage_trace_id as trace_id, lineage_span_id as span_id, min(lineage_choice) as choice
    from calls
    where lineage_span_id is not null
    group by all
),

tool_choice as (
    select call_trace_id as trace_id, call_span_id as span_id, min(call_choice) as choice
    from tools
    where call_span_id is not null
    group by all
),

tool_scores as (
    select
        tools.call_trace_id as trace_id, tools.call_span_id as span_id, tools.call_choice as choice,
        sum(scores.score) as score, flatten(list(scores.reward_ids order by tools.span_id)) as reward_ids
    from scores
    join tools on tools.trace_id = scores.target_trace_id and tools.span_id = scores.target_span_id
    where scores.target_kind = 'tool'
    group by all
),

unfolded as (
    select
        kept.* exclude (choices),
        len(kept.choices) as n,
        unnest(kept.choices) as choice,
        coalesce(continued.choice, tool_choice.choice, case when len(kept.choices) = 1 then kept.choices[1] end) as main_choice
    from kept
    left join continued using (trace_id, span_id)
    left join tool_choice using (trace_id, span_id)
)

select
    unfolded.*,
    unfolded.choice is not distinct from unfolded.main_choice as is_main,
    own.score as own_score,
    own.reward_ids as own_reward_ids,
    tool_scores.score as tool_score,
    tool_scores.reward_ids as tool_reward_ids,
    of_rollout.score as rollout_score,
    of_rollout.outcome as rollout_outcome,
    of_rollout.reward_ids as rollout_reward_ids
from unfolded
left join scores as own
    on own.target_kind = 'call' and own.target_trace_id = unfolded.trace_id and own.target_span_id = unfolded.span_id
    and own.target_choice = unfolded.choice
left join tool_scores using (trace_id, span_id, choice)
left join scores as of_rollout on of_rollout.target_kind = 'rollout' and of_rollout.rollout_id = unfolded.rollout_id
