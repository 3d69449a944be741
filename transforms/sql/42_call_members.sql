-- Which episode each call belongs to, and by which rule (`keyed_by`).
-- grain: one row per (trace_id, span_id) of call_facts, judges' calls left out
-- kind: map
-- explicit: the call, an ancestor, its token record, its resource or a start event names the rollout.
-- trace: a call without a name of its own takes the trace's, if that has exactly one.
-- session, continuation: traces whose calls continue one another within $session_idle_s; link: a trace whose span
-- links leave to exactly one other trace. single: the trace by itself.
with recursive

starts as (
    select * from rollout_marks where mark = 'start'
),

resources as (
    select trace_id, min(resource_rollout_id) as rollout_id
    from span_kinds
    where resource_rollout_id is not null
    group by trace_id
    having count(distinct resource_rollout_id) = 1
),

by_trace as (
    select trace_id, min(rollout_id) as rollout_id, max(attempt) as attempt
    from starts where trace_id is not null group by trace_id having count(distinct rollout_id) = 1
),

by_session as (
    select session_id, min(rollout_id) as rollout_id, max(attempt) as attempt
    from starts where session_id is not null group by session_id having count(distinct rollout_id) = 1
),

by_conversation as (
    select conversation_id, min(rollout_id) as rollout_id, max(attempt) as attempt
    from starts where conversation_id is not null group by conversation_id having count(distinct rollout_id) = 1
),

calls as (
    select
        facts.trace_id, facts.span_id, facts.session_id, facts.conversation_id, facts.service_instance_id,
        facts.scope_span_id is null as bare, facts.start_unix_nano,
        case when facts.explicit_rollout_id is not null then facts.explicit_rollout_id
            else coalesce(by_trace.rollout_id, by_session.rollout_id, by_conversation.rollout_id, resources.rollout_id) end as named,
        case when facts.explicit_rollout_id is not null then facts.attempt
            else coalesce(by_trace.attempt, by_session.attempt, by_conversation.attempt, facts.attempt) end as attempt
    from call_facts as facts
    left join by_trace using (trace_id)
    left join by_session using (session_id)
    left join by_conversation using (conversation_id)
    left join resources using (trace_id)
    where not facts.judge
),

traces as (
    select
        trace_id,
        count(distinct named) as names,
        min(named) as named,
        max(attempt) filter (where named is not null) as attempt,
        min(start_unix_nano) as start_unix_nano
    from calls
    group by trace_id
),

-- A trace hangs on the trace that its earliest continuing call continues, or on the one trace that it links to.
continued as (
    select
        lineage.trace_id,
        arg_min(lineage.parent_trace_id, (calls.start_unix_nano, lineage.span_id)) as parent_trace_id,
        arg_min(
            case when calls.session_id is not null or calls.conversation_id is not null then 'session' else 'continuation' end,
            (calls.start_unix_nano, lineage.span_id)
        ) as keyed_by
    from lineage
    join calls using (trace_id, span_id)
    join calls as parent on parent.trace_id = lineage.parent_trace_id and parent.span_id = lineage.parent_span_id
    where lineage.trace_id <> lineage.parent_trace_id
        and lineage.gap_nano <= $session_idle_s::double * 1e9
        and (
            calls.session_id = parent.session_id
            or calls.conversation_id = parent.conversation_id
            or (calls.bare and parent.bare and not lineage.ambiguous
                and calls.service_instance_id = parent.service_instance_id)
        )
    group by lineage.trace_id
),

linked as (
    select trace_id, min(target) as parent_trace_id
    from (
        select spans.trace_id, unnest(spans.links).trace_id as target
        from spans_unique as spans
        join span_kinds as kinds using (trace_id, span_id)
        where len(spans.links) > 0 and kinds.span_kind <> 'judge' and not kinds.carries_evaluation
    )
    where target <> trace_id
    group by trace_id
    having count(distinct target) = 1
),

-- Links lead through traces that hold no call (messages between agents), so those are on the way too.
parents as (
    select
        trace_id,
        coalesce(continued.parent_trace_id, linked.parent_trace_id) as parent_trace_id,
        coalesce(continued.keyed_by, 'link') as keyed_by
    from continued
    full join linked using (trace_id)
),

roots as (
    select trace_id from traces
    union
    select parent_trace_id from parents
),

walk as (
    select trace_id, trace_id as root_trace_id
    from roots
    anti join parents using (trace_id)
    union all
    select parents.trace_id, walk.root_trace_id
    from walk
    join parents on parents.parent_trace_id = walk.trace_id
),

families as (
    select
        trace_id, keyed_by,
        first_value(trace_id) over (partition by root_trace_id order by start_unix_nano, trace_id) as first_trace_id
    from (
        select trace_id, root_trace_id from walk
        union all
        -- A circle has no root.
        select trace_id, trace_id from traces anti join walk using (trace_id)
    )
    join traces using (trace_id)
    left join parents using (trace_id)
),

family_names as (
    select first_trace_id, count(distinct named) as names, min(named) as named, max(attempt) as attempt,
        -- The first rule, in the order in which they apply, that holds two of its traces together.
        case
            when count(*) = 1 then 'single'
            when count(*) filter (where keyed_by = 'session') > 0 then 'session'
            when count(*) filter (where keyed_by = 'link') > 0 then 'link'
            else 'continuation'
        end as keyed_by
    from families
    join traces using (trace_id)
    group by first_trace_id
)

select
    calls.trace_id, calls.span_id,
    case
        when calls.named is not null then calls.named
        when traces.names = 1 then traces.named
        when traces.names > 1 then null
        when $by <> 'lineage' then coalesce(case when $by = 'session' then coalesce(calls.session_id, calls.conversation_id) end, calls.trace_id)
        when family_names.names = 1 then family_names.named
        when family_names.names > 1 then null
        else families.first_trace_id
    end as base_rollout_id,
    case
        when calls.named is not null then 'explicit'
        when traces.names = 1 then 'trace'
        when traces.names > 1 then 'ambiguous_rollout'
        when $by <> 'lineage' then $by
        when family_names.names = 1 then 'explicit'
        when family_names.names > 1 then 'ambiguous_rollout'
        else family_names.keyed_by
    end as keyed_by,
    case
        when calls.named is not null then coalesce(calls.attempt, 1)
        when traces.names = 1 then coalesce(traces.attempt, 1)
        when family_names.names = 1 then coalesce(family_names.attempt, 1)
        else 1
    end as attempt
from calls
join traces using (trace_id)
join families using (trace_id)
join family_names using (first_trace_id)
