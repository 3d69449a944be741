-- Calls in their episode, in order: step counts all calls of a rollout but judges', from 0.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- order(t) = greatest(t0(t), order(lineage parent)); t0 is the start (else the end), made non-decreasing along
-- lightning.span.seq within a process of the rollout. Ties break by lineage depth, sequence, trace and span id.
with recursive

placed as (
    select
        facts.trace_id, facts.span_id,
        members.base_rollout_id || case when members.attempt > 1 then '#' || members.attempt else '' end as rollout_id,
        members.base_rollout_id, members.attempt, members.keyed_by,
        case when facts.start_unix_nano > 0 then facts.start_unix_nano else facts.end_unix_nano end as time0,
        facts.span_seq, facts.service_instance_id
    from call_facts as facts
    join call_members as members using (trace_id, span_id)
),

timed as (
    select
        *,
        case when span_seq is null or service_instance_id is null then time0 else max(time0) over (
            partition by rollout_id, service_instance_id, span_seq is null
            order by span_seq, time0, trace_id, span_id rows unbounded preceding
        ) end as t0
    from placed
),

edges as (
    select lineage.trace_id, lineage.span_id, lineage.parent_trace_id, lineage.parent_span_id
    from lineage
    join timed using (trace_id, span_id)
    join timed as parent on parent.trace_id = lineage.parent_trace_id and parent.span_id = lineage.parent_span_id
    where timed.rollout_id = parent.rollout_id
),

ordered as (
    select trace_id, span_id, t0 as place, 0 as depth
    from timed
    anti join edges using (trace_id, span_id)
    union all
    select timed.trace_id, timed.span_id, greatest(timed.t0, ordered.place), ordered.depth + 1
    from ordered
    join edges on edges.parent_trace_id = ordered.trace_id and edges.parent_span_id = ordered.span_id
    join timed on timed.trace_id = edges.trace_id and timed.span_id = edges.span_id
)

select
    timed.trace_id, timed.span_id, timed.rollout_id, timed.base_rollout_id, timed.attempt, timed.keyed_by,
    case when timed.rollout_id is not null then row_number() over (
        partition by timed.rollout_id
        order by ordered.place, ordered.depth, timed.span_seq, timed.trace_id, timed.span_id
    ) - 1 end::int as step,
    ordered.place <> timed.time0 as clock_suspect
from timed
join ordered using (trace_id, span_id)
