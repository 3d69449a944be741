-- The table `scopes`: spans that are no calls themselves but have calls below.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
with recursive

above as (
    select distinct trace_id, scope_span_id as span_id
    from calls
    where scope_span_id is not null
    union
    select kinds.trace_id, kinds.parent_span_id
    from above
    join span_kinds as kinds using (trace_id, span_id)
    where kinds.parent_span_id is not null
),

rollouts_of as (
    select trace_id, min(rollout_id) as rollout_id
    from calls
    where rollout_id is not null
    group by trace_id
)

select
    kinds.trace_id, kinds.span_id, kinds.parent_span_id as parent_scope_span_id, rollouts_of.rollout_id,
    kinds.span_kind as kind, coalesce(kinds.agent, kinds.name) as name
from above
join span_kinds as kinds using (trace_id, span_id)
left join rollouts_of using (trace_id)
where kinds.span_kind <> 'llm'
