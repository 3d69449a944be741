-- Plane B onto the calls: which token record of a model server belongs to which call of an agent.
-- grain: one row per token record (capture_trace_id, capture_span_id) that a call claims; the last success wins a call
-- kind: bucket
-- By response id; else by traceparent (the record's parent or grandparent is the call's span); else by equal prompt and
-- answer with the record's interval inside the call's, when each is the other's only candidate. Of a server's record and the
-- agent's own of one call the server's wins: it holds the messages as served as well.
with

captures as (
    select
        llm_spans.trace_id as capture_trace_id, llm_spans.span_id as capture_span_id, llm_spans.parent_span_id,
        response_id, talk_hash, answer_hash, start_unix_nano, end_unix_nano, error, capture
    from llm_spans
    where span_kind = 'capture'
),

agent_side as (
    select
        agent_calls.trace_id, agent_calls.span_id, agent_calls.response_id_reused,
        coalesce(content.response_id, place.response_id) as response_id,
        content.talk_hash, content.answer_hash,
        least(content.start_unix_nano, place.start_unix_nano) as start_unix_nano,
        greatest(content.end_unix_nano, place.end_unix_nano) as end_unix_nano,
        [place.trace_id || ':' || place.span_id] || merged_span_ids as spans
    from agent_calls
    join llm_spans as place using (trace_id, span_id)
    join llm_spans as content
        on agent_calls.content_trace_id = content.trace_id and agent_calls.content_span_id = content.span_id
),

by_id as (
    select capture_trace_id, capture_span_id, trace_id, span_id
    from captures
    join agent_side using (response_id)
    where not response_id_reused
),

unclaimed_after_id as (
    select * from captures anti join by_id using (capture_trace_id, capture_span_id)
),

call_spans as (
    select trace_id, span_id, unnest(spans) as member from agent_side
),

by_parent as (
    select distinct capture_trace_id, capture_span_id, call_spans.trace_id, call_spans.span_id
    from (
        select capture_trace_id, capture_span_id, capture_trace_id || ':' || parent_span_id as member from unclaimed_after_id
        union all
        select capture_trace_id, capture_span_id, capture_trace_id || ':' || parent.parent_span_id
        from unclaimed_after_id
        join span_kinds as parent
            on parent.trace_id = unclaimed_after_id.capture_trace_id and parent.span_id = unclaimed_after_id.parent_span_id
    )
    join call_spans using (member)
),

unclaimed_after_parent as (
    select * from unclaimed_after_id anti join by_parent using (capture_trace_id, capture_span_id)
),

-- By content: of one prompt and answer, at work in the same ten minutes; more than a hundred of a kind are ambiguous anyway.
records as (
    select
        *,
        (start_unix_nano // 600_000_000_000)::bigint as part_of_day
    from unclaimed_after_parent
    where talk_hash is not null
    qualify count(*) over (partition by talk_hash, answer_hash, part_of_day) <= 100
),

unclaimed_calls as (
    select
        *,
        unnest(range((start_unix_nano // 600_000_000_000)::bigint,
            least(end_unix_nano // 600_000_000_000, start_unix_nano // 600_000_000_000 + 143)::bigint + 1)) as part_of_day
    from agent_side
    anti join by_id using (trace_id, span_id)
),

few_calls as (
    select * from unclaimed_calls qualify count(*) over (partition by talk_hash, answer_hash, part_of_day) <= 100
),

candidates as (
    select captures.capture_trace_id, captures.capture_span_id, agent_side.trace_id, agent_side.span_id
    from records as captures
    join few_calls as agent_side
        on captures.talk_hash = agent_side.talk_hash
        and captures.answer_hash = agent_side.answer_hash
        and captures.part_of_day = agent_side.part_of_day
        and agent_side.start_unix_nano <= captures.start_unix_nano
        and agent_side.end_unix_nano >= captures.end_unix_nano
),

counted as (
    select
        *,
        count(*) over (partition by capture_trace_id, capture_span_id) as calls,
        count(*) over (partition by trace_id, span_id) as records
    from candidates
),

claims as (
    select *, 'response_id' as joined_by from by_id
    union all
    select *, 'traceparent' from by_parent
    union all
    select capture_trace_id, capture_span_id, trace_id, span_id,
        case when calls = 1 and records = 1 then 'content' else 'ambiguous' end
    from counted
)

select
    claims.capture_trace_id, claims.capture_span_id, claims.joined_by,
    case when joined_by <> 'ambiguous' then claims.trace_id end as trace_id,
    case when joined_by <> 'ambiguous' then claims.span_id end as span_id,
    joined_by <> 'ambiguous' and row_number() over (
        partition by claims.trace_id, claims.span_id, joined_by = 'ambiguous'
        order by captures.error, captures.capture = 'client', captures.end_unix_nano desc, claims.capture_trace_id, claims.capture_span_id
    ) = 1 as wins
from claims
join captures using (capture_trace_id, capture_span_id)
