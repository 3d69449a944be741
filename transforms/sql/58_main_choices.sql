-- The answer of a call that carries what names no answer: the one that a later prompt or a tool continues, else its only one.
-- grain: one row per (trace_id, span_id) of a call where such an answer is known
-- kind: bucket
-- When several answers were continued, the first of them.
with

continued as (
    select lineage_trace_id as trace_id, lineage_span_id as span_id, lineage_choice as choice
    from calls
    where lineage_span_id is not null
),

used as (
    select call_trace_id as trace_id, call_span_id as span_id, call_choice as choice
    from tools
    where call_span_id is not null
),

single as (
    select trace_id, span_id, coalesce(choices[1], 0) as choice
    from calls
    where coalesce(len(choices), 0) <= 1
),

together as (
    select *, 1 as rank from continued
    union all
    select *, 2 from used
    union all
    select *, 3 from single
)

select trace_id, span_id, min_by(choice, (rank, choice))::integer as choice
from together
where choice is not null
group by trace_id, span_id
