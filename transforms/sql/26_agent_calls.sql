-- One row per call as the agent's side saw it: nested, repeated and side-by-side spans of one call are one.
-- grain: one row per (trace_id, span_id), the call's identity; (content_trace_id, content_span_id) is the span whose
--   content counts; merged_span_ids are the others
-- kind: bucket
-- 1. An LLM span with an LLM descendant and no agent or tool between is that call seen from further out: dropped.
-- 2. Spans with one response id and overlapping intervals are one call; the same id without overlap joins nothing.
-- 3. Spans of different scopes in one process, not both with an id, one interval inside the other, equal prompt and
--    answer (or both failed), each the other's only candidate, are one call.
with recursive

agent_side as (
    select
        trace_id, span_id, scope_name, service_instance_id, response_id, start_unix_nano, end_unix_nano, error,
        talk_hash, answer_hash, prompt_length, llm_ancestor_span_id, root_span_id, agent_span_id, scope_span_id
    from llm_spans
    where span_kind = 'llm'
),

outer_spans as (
    select distinct trace_id, llm_ancestor_span_id as span_id
    from agent_side
    where llm_ancestor_span_id is not null
),

innermost as (
    select * from agent_side anti join outer_spans using (trace_id, span_id)
),

-- The outer span's one inner call: the last of them when it retried.
inner_of as (
    select
        trace_id, llm_ancestor_span_id as outer_span_id,
        arg_max(span_id, (start_unix_nano, span_id)) as inner_span_id
    from agent_side
    where llm_ancestor_span_id is not null
    group by all
),

-- From the innermost outwards, one row for each outer span: the other way, a chain of outer spans would be walked from each of them.
dropped as (
    select inner_of.trace_id, inner_of.outer_span_id as member_span_id, inner_of.inner_span_id as span_id
    from inner_of
    semi join innermost on innermost.trace_id = inner_of.trace_id and innermost.span_id = inner_of.inner_span_id

    union all

    select dropped.trace_id, inner_of.outer_span_id, dropped.span_id
    from dropped
    join inner_of on inner_of.trace_id = dropped.trace_id and inner_of.inner_span_id = dropped.member_span_id
),

-- A response id that one span has joins nothing, and most are such.
shared_ids as (
    select response_id from innermost where response_id is not null group by response_id having count(*) > 1
),

by_id as (
    select
        *,
        max(end_unix_nano) over (
            partition by response_id order by start_unix_nano, trace_id, span_id
            rows between unbounded preceding and 1 preceding
        ) as ended_before
    from innermost
    semi join shared_ids using (response_id)
),

runs as (
    select
        *,
        sum((ended_before is null or start_unix_nano >= ended_before)::int) over (
            partition by response_id order by start_unix_nano, trace_id, span_id
        ) as run
    from by_id
),

run_counts as (
    select response_id, max(run) as runs from runs group by response_id
),

-- Who stands for the call: the span with an agent or chain around it, else the earliest.
placed as (
    select
        trace_id, span_id, run_counts.runs > 1 as response_id_reused,
        first_value(trace_id) over same_call as call_trace_id,
        first_value(span_id) over same_call as call_span_id,
        first_value(trace_id) over deepest as content_trace_id,
        first_value(span_id) over deepest as content_span_id
    from runs
    join run_counts using (response_id)
    window
        same_call as (
            partition by response_id, case when run_counts.runs > 1 then (trace_id, span_id) end, run
            order by agent_span_id is null, scope_span_id is null, start_unix_nano, trace_id, span_id
        ),
        deepest as (
            partition by response_id, case when run_counts.runs > 1 then (trace_id, span_id) end, run
            order by prompt_length desc, start_unix_nano desc, trace_id, span_id
        )
),

singles as (
    select innermost.* from innermost anti join placed using (trace_id, span_id)
    union all
    select innermost.* from innermost
    join placed on innermost.trace_id = placed.call_trace_id and innermost.span_id = placed.call_span_id
        and placed.trace_id = placed.call_trace_id and placed.span_id = placed.call_span_id
),

-- A prompt that one scope of a process saw has nothing beside it.
seen_twice as (
    select service_instance_id, talk_hash
    from singles
    where service_instance_id is not null and talk_hash is not null
    group by service_instance_id, talk_hash
    having min(scope_name) <> max(scope_name)
),

-- Who may be beside whom: spans of one prompt in one process that were at work in the same ten minutes, in one trace, or in
-- two if one of them is bare, its context lost. Where there are more than a hundred of them it is a loop, and all stay apart.
beside as (
    select
        *,
        scope_span_id is null as bare,
        unnest(range((start_unix_nano // 600_000_000_000)::bigint,
            least(end_unix_nano // 600_000_000_000, start_unix_nano // 600_000_000_000 + 143)::bigint + 1)) as part_of_day
    from singles
    semi join seen_twice using (service_instance_id, talk_hash)
),

crowds as (
    select
        *,
        count(*) over here <= 100 and min(scope_name) over here <> max(scope_name) over here as few_here,
        count(*) over anywhere <= 100 and min(scope_name) over anywhere <> max(scope_name) over anywhere and bool_or(bare) over anywhere
            and min(trace_id) over anywhere <> max(trace_id) over anywhere as few_anywhere
    from beside
    window
        here as (partition by service_instance_id, talk_hash, part_of_day, trace_id),
        anywhere as (partition by service_instance_id, talk_hash, part_of_day)
),

together as (
    select a, b
    from (select *, crowds as a from crowds where few_here)
    join (select *, crowds as b from crowds where few_here) as other using (service_instance_id, talk_hash, part_of_day, trace_id)
    union all
    select a, b
    from (select *, crowds as a from crowds where few_anywhere)
    join (select *, crowds as b from crowds where few_anywhere) as other using (service_instance_id, talk_hash, part_of_day)
    where a.trace_id <> b.trace_id and (a.bare or b.bare)
),

pairs as (
    select distinct
        a.trace_id as outer_trace_id, a.span_id as outer_span_id, b.trace_id as inner_trace_id, b.span_id as inner_span_id,
        a.agent_span_id is null and a.scope_span_id is null and (b.agent_span_id is not null or b.scope_span_id is not null)
            as inner_has_place
    from together
    where a.scope_name <> b.scope_name
        and (a.response_id is null or b.response_id is null)
        and a.start_unix_nano <= b.start_unix_nano and a.end_unix_nano >= b.end_unix_nano
        and (a.trace_id, a.span_id) <> (b.trace_id, b.span_id)
        and (a.answer_hash = b.answer_hash or (a.error and b.error))
),

sure_pairs as (
    select * exclude (inners, outers)
    from (
        select
            *,
            count(*) over (partition by outer_trace_id, outer_span_id) as inners,
            count(*) over (partition by inner_trace_id, inner_span_id) as outers
        from pairs
    )
    where inners = 1 and outers = 1
),

paired as (
    select
        case when inner_has_place then inner_trace_id else outer_trace_id end as call_trace_id,
        case when inner_has_place then inner_span_id else outer_span_id end as call_span_id,
        inner_trace_id as content_trace_id, inner_span_id as content_span_id,
        case when inner_has_place then outer_trace_id else inner_trace_id end as trace_id,
        case when inner_has_place then outer_span_id else inner_span_id end as span_id
    from sure_pairs
),

-- Every agent-side span and the call it is part of, in the order of the three steps.
second as (
    select
        innermost.trace_id, innermost.span_id,
        coalesce(placed.call_trace_id, innermost.trace_id) as call_trace_id,
        coalesce(placed.call_span_id, innermost.span_id) as call_span_id,
        coalesce(placed.content_trace_id, innermost.trace_id) as content_trace_id,
        coalesce(placed.content_span_id, innermost.span_id) as content_span_id,
        coalesce(placed.response_id_reused, false) as response_id_reused
    from innermost
    left join placed using (trace_id, span_id)
),

third as (
    select
        second.trace_id, second.span_id,
        coalesce(lost.call_trace_id, second.call_trace_id) as call_trace_id,
        coalesce(lost.call_span_id, second.call_span_id) as call_span_id,
        coalesce(lost.content_trace_id, kept.content_trace_id, second.content_trace_id) as content_trace_id,
        coalesce(lost.content_span_id, kept.content_span_id, second.content_span_id) as content_span_id,
        second.response_id_reused
    from second
    left join paired as lost
        on second.call_trace_id = lost.trace_id and second.call_span_id = lost.span_id
    left join paired as kept
        on second.call_trace_id = kept.call_trace_id and second.call_span_id = kept.call_span_id
),

members as (
    select * from third
    union all
    select
        dropped.trace_id, dropped.member_span_id, third.call_trace_id, third.call_span_id,
        third.content_trace_id, third.content_span_id, third.response_id_reused
    from dropped
    join third using (trace_id, span_id)
)

select
    call_trace_id as trace_id, call_span_id as span_id,
    min(content_trace_id) as content_trace_id, min(content_span_id) as content_span_id,
    coalesce(list(trace_id || ':' || span_id order by trace_id, span_id)
        filter (where (trace_id, span_id) <> (call_trace_id, call_span_id)), []) as merged_span_ids,
    bool_or(response_id_reused) as response_id_reused
from members
group by call_trace_id, call_span_id
