-- What a span stands for when a reward names it: the call it is or was merged into; the tool; the trace, if it is a
-- root; itself, if it has calls below and is no judge; else its parent, by this list.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
with recursive

call_spans as (
    select trace_id, span_id, trace_id as call_trace_id, span_id as call_span_id from calls
    union all
    select split_part(member, ':', 1), split_part(member, ':', 2), trace_id, span_id
    from (select trace_id, span_id, unnest(merged_span_ids) as member from calls)
),

own as (
    select
        kinds.trace_id, kinds.span_id, kinds.parent_span_id,
        case
            when call_spans.span_id is not null then 'call'
            when tools.span_id is not null then 'tool'
            when kinds.parent_span_id is null then 'trace'
            when scopes.kind <> 'judge' then 'span'
        end as kind,
        coalesce(call_spans.call_trace_id, kinds.trace_id) as target_trace_id,
        coalesce(call_spans.call_span_id, kinds.span_id) as target_span_id
    from span_kinds as kinds
    left join call_spans using (trace_id, span_id)
    left join tools using (trace_id, span_id)
    left join scopes using (trace_id, span_id)
),

resolved as (
    select own.trace_id, own.span_id, own.kind, own.target_trace_id, own.target_span_id
    from own
    where kind is not null
    union all
    select child.trace_id, child.span_id, resolved.kind, resolved.target_trace_id, resolved.target_span_id
    from resolved
    join own as child on child.trace_id = resolved.trace_id and child.parent_span_id = resolved.span_id
    where child.kind is null
)

select distinct on (trace_id, span_id) * from resolved order by trace_id, span_id, target_trace_id, target_span_id
