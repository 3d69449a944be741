-- Every answer of every call that can be credited, with the rewards that stand on it, on tools it asked for, on the nearest
-- span around it and on its episode. What credit is assigned over, ours and the user's own.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
-- `is_main` is the answer that a later prompt or a tool continues (else the only one): rewards of tools, spans, traces and
-- the rollout fall on it where they name no answer. step counts calls of the rollout, judges' left out.
with

kept as (
    select
        calls.trace_id, calls.span_id, calls.rollout_id, calls.step, calls.trainable, calls.truncated, calls.policy_version,
        calls.agent,
        case when len(calls.choices) > 0 then calls.choices else [0] end as choices
    from calls
    join members using (rollout_id)
    where not calls.judge and members.dropped is null
),

tool_scores as (
    select
        tools.call_trace_id as trace_id, tools.call_span_id as span_id, tools.call_choice as choice,
        sum(scores.score) as score, flatten(list(scores.reward_ids order by tools.trace_id, tools.span_id)) as reward_ids
    from scores
    join tools on tools.trace_id = scores.target_trace_id and tools.span_id = scores.target_span_id
    where scores.target_kind = 'tool'
    group by all
),

nearest as (
    select around.trace_id, around.span_id, around.rewarded_span_id, scores.score, scores.reward_ids
    from rewarded_spans as around
    join scores
        on scores.target_kind = 'span' and scores.target_trace_id = around.trace_id
        and scores.target_span_id = around.rewarded_span_id
    where around.nearest
),

unfolded as (
    select
        kept.* exclude (choices),
        len(kept.choices) as n,
        unnest(kept.choices) as choice,
        main_choices.choice as main_choice
    from kept
    left join main_choices using (trace_id, span_id)
)

select
    unfolded.*,
    unfolded.choice is not distinct from unfolded.main_choice as is_main,
    own.score as own_score,
    own.reward_ids as own_reward_ids,
    tool_scores.score as tool_score,
    tool_scores.reward_ids as tool_reward_ids,
    nearest.rewarded_span_id,
    nearest.score as span_score,
    nearest.reward_ids as span_reward_ids,
    of_rollout.score as rollout_score,
    of_rollout.outcome as rollout_outcome,
    of_rollout.reward_ids as rollout_reward_ids
from unfolded
left join scores as own
    on own.target_kind = 'call' and own.target_trace_id = unfolded.trace_id and own.target_span_id = unfolded.span_id
    and own.target_choice = unfolded.choice
left join tool_scores using (trace_id, span_id, choice)
left join nearest using (trace_id, span_id)
left join scores as of_rollout on of_rollout.target_kind = 'rollout' and of_rollout.rollout_id = unfolded.rollout_id
