-- Which call continues which: t hangs on p when t's prompt, system messages aside, begins with p's prompt and one of
-- p's answers. It is a forest and needs no clocks.
-- grain: one row per (trace_id, span_id) that has a parent
-- kind: bucket
-- The parent is the candidate with the longest prompt, then the last to end before t starts, then by (trace_id, span_id).
with

keyed as (
    select
        trace_id, span_id, response_id, start_unix_nano, end_unix_nano, talk_hashes, has_user, previous_response_id,
        answers_tool_call_id, asked, choices, response_hashes, span_seq, service_instance_id, session_id, conversation_id,
        explicit_rollout_id, scope_span_id is null as bare
    from call_facts
    where not judge
),

answers as (
    select
        trace_id, span_id, end_unix_nano, len(talk_hashes) as length, choice,
        service_instance_id, session_id, conversation_id, explicit_rollout_id, bare,
        sha256(to_json(list_append(talk_hashes, response_hash))) as continuation
    from (
        select *, unnest(choices) as choice, unnest(response_hashes) as response_hash
        from keyed
        where has_user
    )
),

prefixes as (
    select
        trace_id, span_id, start_unix_nano, service_instance_id, session_id, conversation_id, explicit_rollout_id, bare,
        sha256(to_json(list_slice(talk_hashes, 1, unnest(range(2, len(talk_hashes) + 1)))))  as continuation
    from keyed
),

candidates as (
    select
        t.trace_id, t.span_id, p.trace_id as parent_trace_id, p.span_id as parent_span_id, p.choice, p.length,
        p.end_unix_nano, t.start_unix_nano, 'prompt' as found_by
    from prefixes as t
    join answers as p using (continuation)
    where (t.trace_id, t.span_id) <> (p.trace_id, p.span_id)
        and t.explicit_rollout_id is not distinct from p.explicit_rollout_id
        and (
            t.trace_id = p.trace_id
            or t.explicit_rollout_id is not null
            or t.session_id = p.session_id
            or t.conversation_id = p.conversation_id
            or (
                t.bare and p.bare and t.service_instance_id = p.service_instance_id
                and t.session_id is not distinct from p.session_id
            )
            or (t.session_id is null and p.session_id is null and t.service_instance_id = p.service_instance_id)
        )

    union all

    select
        t.trace_id, t.span_id, p.trace_id, p.span_id, coalesce(p.choices[1], 0), len(p.talk_hashes),
        p.end_unix_nano, t.start_unix_nano, 'previous_response_id'
    from keyed as t
    join keyed as p on t.previous_response_id = p.response_id

    union all

    select
        t.trace_id, t.span_id, p.trace_id, p.span_id, p.asked_choice, len(p.talk_hashes),
        p.end_unix_nano, t.start_unix_nano, 'tool_call_id'
    from keyed as t
    join (select *, unnest(asked).id as asked_id, unnest(asked).choice as asked_choice from keyed) as p
        on t.answers_tool_call_id = p.asked_id
    where (t.trace_id, t.span_id) <> (p.trace_id, p.span_id)
),

ranked as (
    select
        *,
        row_number() over (
            partition by trace_id, span_id
            order by length desc, end_unix_nano <= start_unix_nano desc, end_unix_nano desc, parent_trace_id, parent_span_id, choice
        ) as place,
        count(*) over (partition by trace_id, span_id, length) as equals
    from candidates
)

select
    trace_id, span_id, parent_trace_id, parent_span_id, choice, found_by,
    equals > 1 as ambiguous,
    case when start_unix_nano >= end_unix_nano then start_unix_nano - end_unix_nano else 0 end as gap_nano,
    start_unix_nano < end_unix_nano as clock_suspect
from ranked
where place = 1
