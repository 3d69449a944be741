-- Which call continues which: t hangs on p when t's prompt, system messages aside, begins with p's prompt and one of
-- p's answers; or names p's response; or answers a tool call that p asked. It is a forest and needs no clocks.
-- grain: one row per (trace_id, span_id) that has a parent
-- kind: bucket
-- The parent is the candidate with the longest prompt, then the last to end before t starts, then by (trace_id, span_id).
-- Calls of different traces continue one another only within a session, conversation, rollout, along a span link, or, bare,
-- within a process. Linear in messages: a prefix is the sum of its places' hashes, and equal candidates are one group.
with

links as (
    select trace_id, min(target) as target
    from (select trace_id, unnest(links).trace_id as target from spans_unique where len(links) > 0)
    where target <> trace_id
    group by trace_id
    having count(distinct target) = 1
),

calls as (
    select
        rowid as call, trace_id, span_id, response_id, start_unix_nano, end_unix_nano, talk_hashes, len(talk_hashes) as length, has_user,
        previous_response_id, answers_tool_call_id, asked, choices, response_hashes,
        explicit_rollout_id, session_id, conversation_id,
        case when scope_span_id is null then service_instance_id end as bare_in
    from call_facts
    where not judge
),

prefixes as materialized (
    select
        call, i,
        sum((md5_number(hash || i)::uhugeint >> 32)::hugeint) over (partition by call order by i rows unbounded preceding) as prefix
    from (select call, unnest(talk_hashes) as hash, generate_subscripts(talk_hashes, 1) as i from calls)
),

-- Each prompt with each of its answers, and the prompts that begin so.
answered as materialized (
    select
        answers.call, choice,
        coalesce(prefix, 0) + (md5_number(response_hash || (length + 1))::uhugeint >> 32)::hugeint as prefix
    from (
        select call, length, unnest(choices) as choice, unnest(response_hashes) as response_hash
        from calls
        where has_user
    ) as answers
    left join prefixes on prefixes.call = answers.call and prefixes.i = answers.length
),

continued as materialized (
    select call, prefix
    from prefixes
    semi join answered using (prefix)
    where i > 1
),

heard as (
    select call, 'prompt' as found_by, prefix::varchar as said from continued
    union all
    select call, 'previous_response_id', previous_response_id from calls where previous_response_id is not null
    union all
    select call, 'tool_call_id', answers_tool_call_id from calls where answers_tool_call_id is not null
),

-- What nobody heard is left out before anything is made of it.
answers as (
    select call, choice, 'prompt' as found_by, prefix::varchar as said
    from answered
    semi join continued using (prefix)

    union all

    select call, coalesce(choices[1], 0), 'previous_response_id', response_id
    from calls
    where response_id in (select previous_response_id from calls)

    union all

    select call, asked.choice, 'tool_call_id', asked.id
    from (select call, unnest(asked) as asked from calls where len(asked) > 0)
    where asked.id in (select answers_tool_call_id from calls)
),

-- Where a prompt and what continues it must both be; never in two rollouts that are named.
scopes as (
    select
        call,
        list_transform(list_filter([
            't' || trace_id,
            'r' || explicit_rollout_id,
            's' || session_id,
            'c' || conversation_id,
            'l' || target,
            case when linked_to then 'l' || trace_id end,
            'i' || bare_in || ' ' || coalesce(session_id, '')
        ], lambda s: s is not null), lambda s: s || ' ' || coalesce(explicit_rollout_id, '')) as scopes
    from calls
    left join links using (trace_id)
    left join (select distinct target as trace_id, true as linked_to from links) as targets using (trace_id)
),

-- Candidates that say the same in one scope: how long, how many, and for each time of ending who is first by id.
spoken_in as (
    select
        trace_id, span_id, choice, length, end_unix_nano, found_by, said,
        unnest(case when found_by = 'prompt' then scopes else ['any'] end) as scope
    from answers
    join calls using (call)
    join scopes using (call)
),

groups as (
    select scope, found_by, said, max(length) as length from spoken_in group by all
),

ends as (
    select scope, found_by, said, length, end_unix_nano, min((trace_id, span_id, choice)) as first, count(*) as candidates
    from spoken_in
    join groups using (scope, found_by, said, length)
    group by all
),

counts as (
    select
        scope, found_by, said, length, sum(candidates) as candidates,
        max(end_unix_nano) as last_unix_nano, arg_max(first, end_unix_nano) as last
    from ends
    group by all
),

heard_in as (
    select
        call, trace_id, span_id, start_unix_nano, found_by, said,
        unnest(case when found_by = 'prompt' then scopes else ['any'] end) as scope
    from heard
    join calls using (call)
    join scopes using (call)
),

matched as (
    select heard_in.*, counts.length, counts.candidates, counts.last_unix_nano, counts.last
    from heard_in
    join counts using (scope, found_by, said)
),

longest as (
    select call, max(length) as length from matched group by call
),

candidates as (
    select
        matched.call, matched.trace_id, matched.span_id, matched.start_unix_nano, matched.found_by, matched.candidates,
        coalesce(ends.first, matched.last) as parent,
        coalesce(ends.end_unix_nano, matched.last_unix_nano) as end_unix_nano
    from matched
    semi join longest using (call, length)
    asof left join ends
        on ends.scope = matched.scope and ends.found_by = matched.found_by and ends.said = matched.said
        and ends.end_unix_nano <= matched.start_unix_nano
),

ranked as (
    select
        *,
        row_number() over (
            partition by call order by end_unix_nano <= start_unix_nano desc, end_unix_nano desc, parent, found_by
        ) as place,
        max(candidates) over (partition by call) as most,
        min(parent) over (partition by call) <> max(parent) over (partition by call) as differ
    from candidates
    where (trace_id, span_id) <> (parent[1], parent[2])
)

select
    trace_id, span_id, parent[1] as parent_trace_id, parent[2] as parent_span_id, parent[3] as choice, found_by,
    most > 1 or differ as ambiguous,
    case when start_unix_nano >= end_unix_nano then start_unix_nano - end_unix_nano else 0 end as gap_nano,
    start_unix_nano < end_unix_nano as clock_suspect
from ranked
where place = 1
