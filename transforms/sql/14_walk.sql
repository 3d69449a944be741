-- One downward walk that carries to every span what its ancestors know: no ancestor closure is ever built.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- Roots are spans without a parent, spans whose parent is not in the lake (orphan) and, so that nothing is lost,
-- every span of a cycle (cycle).
with recursive

starts as (
    select kinds.*, kinds.parent_span_id is not null as orphan
    from span_kinds as kinds
    left join span_kinds as parents
        on kinds.trace_id = parents.trace_id and kinds.parent_span_id = parents.span_id
    where parents.span_id is null
),

walk as (
    select
        trace_id, span_id, span_id as root_span_id, 0 as depth, orphan,
        span_kind,
        span_kind = 'judge' as judge,
        case when span_kind = 'agent' then span_id end as agent_span_id,
        coalesce(agent, for_agent) as agent,
        null::varchar as parent_agent_span_id,
        null::varchar as llm_ancestor_span_id,
        null::varchar as scope_span_id,
        null::varchar as grandparent_span_id,
        session_id, conversation_id, user_id, rollout_id, attempt, task_id, group_id, split, policy_version
    from starts

    union all

    select
        child.trace_id, child.span_id, walk.root_span_id, walk.depth + 1, walk.orphan,
        child.span_kind,
        walk.judge or child.span_kind = 'judge',
        case when child.span_kind = 'agent' then child.span_id else walk.agent_span_id end,
        case when child.span_kind = 'agent' then child.agent else coalesce(child.for_agent, walk.agent, child.near_agent) end,
        walk.agent_span_id,
        case
            when walk.span_kind = 'llm' then walk.span_id
            when walk.span_kind in ('agent', 'tool') then null
            else walk.llm_ancestor_span_id
        end,
        case when walk.span_kind = 'llm' then walk.scope_span_id else walk.span_id end,
        child.parent_span_id,
        coalesce(child.session_id, walk.session_id),
        coalesce(child.conversation_id, walk.conversation_id),
        coalesce(child.user_id, walk.user_id),
        coalesce(child.rollout_id, walk.rollout_id),
        coalesce(child.attempt, walk.attempt),
        coalesce(child.task_id, walk.task_id),
        coalesce(child.group_id, walk.group_id),
        coalesce(child.split, walk.split),
        coalesce(child.policy_version, walk.policy_version)
    from walk
    join span_kinds as child on child.trace_id = walk.trace_id and child.parent_span_id = walk.span_id
)

select * exclude (grandparent_span_id, span_kind), false as cycle
from walk

union all by name

select
    trace_id, span_id, span_id as root_span_id, 0 as depth, false as orphan,
    span_kind = 'judge' as judge,
    case when span_kind = 'agent' then span_id end as agent_span_id,
    agent,
    session_id, conversation_id, user_id, rollout_id, attempt, task_id, group_id, split, policy_version,
    true as cycle
from span_kinds
anti join walk using (trace_id, span_id)
