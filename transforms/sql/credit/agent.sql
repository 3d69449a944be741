-- A call is credited with what its own agent earned: the rewards on the nearest enclosing span that carries any, else the
-- episode's.
--   c(t) = span(t), else R
-- Compared within (group, agent), so that q(r, a) is the mean over the calls of agent a in rollout r. The agent-wise return and
-- baseline of independent learners: Tan, Multi-Agent Reinforcement Learning, 1993; baselines per agent: Foerster et al., COMA, 2018.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
select
    trace_id, span_id, choice,
    coalesce(span_score::decimal(38, 9), rollout_score::decimal(38, 9))::decimal(38, 12) as credit,
    case when span_score is not null then span_reward_ids else rollout_reward_ids end as reward_ids
from choices
