-- Which spans that carry a reward lie around each call: the nearest one, and whether the call is the last below a span.
-- grain: one row per (trace_id, span_id, rewarded_span_id): a call, a rewarded span around it, nearest or ended by the call
-- kind: bucket
-- Only traces in which a span carries a reward are walked, downwards, one row a span; what is nested in one another is
-- then taken together level by level, so that no call is listed with every span around it.
with recursive

rewarded as (
    select target_trace_id as trace_id, target_span_id as span_id from scores where target_kind = 'span'
),

spans as (
    select kinds.trace_id, kinds.span_id, kinds.parent_span_id, rewarded.span_id is not null as is_rewarded
    from span_kinds as kinds
    semi join (select distinct trace_id from rewarded) as traces using (trace_id)
    left join rewarded using (trace_id, span_id)
),

walk as (
    select
        spans.trace_id, spans.span_id,
        case when spans.is_rewarded then spans.span_id end as nearest,
        null::varchar as above,
        case when spans.is_rewarded then 1 else 0 end as depth
    from spans
    anti join spans as parents on parents.trace_id = spans.trace_id and parents.span_id = spans.parent_span_id

    union all

    select
        child.trace_id, child.span_id,
        case when child.is_rewarded then child.span_id else walk.nearest end,
        case when child.is_rewarded then walk.nearest else walk.above end,
        walk.depth + child.is_rewarded::integer
    from walk
    join spans as child on child.trace_id = walk.trace_id and child.parent_span_id = walk.span_id
),

around as (
    select calls.trace_id, calls.span_id, calls.step, walk.nearest
    from calls
    join walk using (trace_id, span_id)
    where not calls.judge and calls.rollout_id is not null and walk.nearest is not null
),

-- A rewarded span, its own last call, and how deep it lies among rewarded spans.
own_lasts as (
    select
        walk.trace_id, walk.span_id, walk.above, walk.depth,
        max(around.step) as step
    from walk
    left join around on around.trace_id = walk.trace_id and around.nearest = walk.span_id
    where walk.nearest = walk.span_id
    group by all
),

lasts as (
    select trace_id, span_id, above, depth, step
    from own_lasts
    where depth = (select max(depth) from own_lasts)

    union all

    select
        own_lasts.trace_id, own_lasts.span_id, own_lasts.above, own_lasts.depth,
        greatest(own_lasts.step, inner_lasts.step)
    from (select distinct depth - 1 as depth from lasts) as level
    join own_lasts using (depth)
    left join (
        select trace_id, above, max(step) as step from lasts group by trace_id, above
    ) as inner_lasts on inner_lasts.trace_id = own_lasts.trace_id and inner_lasts.above = own_lasts.span_id
),

ends as (
    select around.trace_id, around.span_id, lasts.span_id as rewarded_span_id
    from lasts
    join around on around.trace_id = lasts.trace_id and around.step = lasts.step
)

select
    coalesce(around.trace_id, ends.trace_id) as trace_id,
    coalesce(around.span_id, ends.span_id) as span_id,
    coalesce(around.nearest, ends.rewarded_span_id) as rewarded_span_id,
    around.nearest is not null as nearest,
    ends.rewarded_span_id is not null as last
from around
full join ends
    on ends.trace_id = around.trace_id and ends.span_id = around.span_id and ends.rewarded_span_id = around.nearest
