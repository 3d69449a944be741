-- The table `rollouts`: one attempt at an episode, whether it is complete, what it was asked, what it may be used for.
-- grain: one row per rollout_id
-- kind: bucket
-- `now` is bound, so that the same spans and the same now give the same answer. `due_unix_nano` is when quiet alone will
-- complete an incomplete one; NULL where only more can.
with

of_calls as (
    select
        calls.rollout_id,
        any_value(steps.base_rollout_id order by calls.step) as base_rollout_id,
        any_value(steps.attempt order by calls.step) as attempt,
        any_value(steps.keyed_by order by calls.step) as keyed_by,
        list(distinct calls.trace_id order by calls.trace_id) as call_traces,
        any_value(coalesce(calls.session_id, calls.conversation_id) order by calls.step) as session_id,
        any_value(calls.service_name order by calls.step) as service_name,
        any_value(calls.task_id order by calls.step) as task_id,
        any_value(calls.group_id order by calls.step) as group_id,
        any_value(calls.split order by calls.step) as split,
        any_value(calls.policy_version order by calls.step) as policy_version,
        count(distinct calls.policy_version) > 1 as mixed_policy,
        count(*) as calls,
        count(*) filter (where calls.captured) as captured,
        bool_or(calls.error) as any_error,
        arg_max(calls.error, calls.step) as last_error,
        min(calls.start_unix_nano) as start_unix_nano,
        max(calls.end_unix_nano) as end_unix_nano
    from calls
    join call_steps as steps using (trace_id, span_id)
    where calls.rollout_id is not null
    group by calls.rollout_id
),

marks as (
    select
        rollout_id || case when attempt > 1 then '#' || attempt else '' end as rollout_id,
        rollout_id as base_rollout_id, attempt,
        max(task_id) filter (where mark = 'start') as task_id,
        max(group_id) filter (where mark = 'start') as group_id,
        max(split) filter (where mark = 'start') as split,
        max(coalesce(session_id, conversation_id)) filter (where mark = 'start') as session_id,
        min(time_unix_nano) as first_unix_nano,
        max(time_unix_nano) as last_unix_nano,
        bool_or(mark = 'end') as ended,
        arg_max(status, time_unix_nano) filter (where mark = 'end') as status,
        arg_max(reason, time_unix_nano) filter (where mark = 'end') as reason,
        max(calls) filter (where mark = 'end') as calls_declared,
        max(spans) filter (where mark = 'end') as spans_declared
    from rollout_marks
    group by rollout_id, attempt
),

-- Token records that say themselves which rollout they are of, claimed by an agent's span or not.
records as (
    select
        explicit_rollout_id as base_rollout_id,
        count(*) as records,
        count(*) filter (where joins.wins) as claimed
    from llm_spans
    left join capture_joins as joins
        on llm_spans.trace_id = joins.capture_trace_id and llm_spans.span_id = joins.capture_span_id
    where span_kind = 'capture' and llm_spans.capture <> 'client' and explicit_rollout_id is not null
    group by explicit_rollout_id
),

trace_spans as (
    select
        trace_id, sum(spans)::bigint as spans, max(end_unix_nano) as end_unix_nano, min(start_unix_nano) as start_unix_nano,
        bool_or(has_root) as has_root,
        sum(span_count)::bigint as span_count,
        bool_and(span_count is null or spans >= span_count) as counts_met,
        bool_or(bare) as bare
    from (
        -- What a process declares is held against its own spans: those of a model server in the same trace make up for none.
        select
            trace_id, service_instance_id, count(*) as spans, max(end_unix_nano) as end_unix_nano,
            min(start_unix_nano) as start_unix_nano,
            bool_or(parent_span_id is null) as has_root,
            max(span_count) as span_count,
            bool_or(span_kind = 'llm' and parent_span_id is null) as bare
        from span_kinds
        group by trace_id, service_instance_id
    )
    group by trace_id
),

of_traces as (
    select
        rollout_id,
        sum(trace_spans.spans)::bigint as spans,
        sum(trace_spans.span_count)::bigint as spans_counted,
        bool_and(trace_spans.has_root) as has_root,
        bool_and(trace_spans.counts_met) as counts_met,
        bool_or(trace_spans.span_count is not null) as counted,
        min(trace_spans.start_unix_nano) as start_unix_nano,
        max(trace_spans.end_unix_nano) as end_unix_nano
    from (select rollout_id, unnest(call_traces) as trace_id from of_calls)
    join trace_spans using (trace_id)
    group by rollout_id
),

joined as (
    select
        coalesce(of_calls.rollout_id, marks.rollout_id) as rollout_id,
        coalesce(of_calls.base_rollout_id, marks.base_rollout_id) as base_rollout_id,
        coalesce(of_calls.attempt, marks.attempt)::int as attempt,
        coalesce(of_calls.keyed_by, 'explicit') as keyed_by,
        coalesce(of_calls.call_traces, []) as trace_ids,
        coalesce(of_calls.session_id, marks.session_id) as session_id,
        of_calls.service_name,
        coalesce(marks.task_id, of_calls.task_id) as stated_task_id,
        coalesce(marks.group_id, of_calls.group_id) as stated_group_id,
        coalesce(marks.split, of_calls.split) as stated_split,
        of_calls.policy_version,
        coalesce(of_calls.mixed_policy, false) as mixed_policy,
        first_users.first_user,
        coalesce(of_traces.spans, 0) as spans,
        coalesce(marks.spans_declared, of_traces.spans_counted) as spans_declared,
        coalesce(of_calls.calls, 0) as calls,
        coalesce(of_traces.start_unix_nano, marks.first_unix_nano) as start_unix_nano,
        coalesce(of_traces.end_unix_nano, marks.last_unix_nano) as end_unix_nano,
        coalesce(marks.ended, false) as ended,
        marks.status, marks.reason,
        coalesce(of_calls.last_error, false) as last_error,
        greatest(coalesce(of_traces.end_unix_nano, 0), coalesce(marks.last_unix_nano, 0)) as quiet_since,
        coalesce(of_traces.has_root, true) as has_root,
        coalesce(of_traces.counts_met, true) and coalesce(of_traces.spans, 0) >= coalesce(marks.spans_declared, 0) as counts_met,
        coalesce(of_traces.counted, false) or marks.spans_declared is not null as counted,
        coalesce(records.records, 0) as records,
        coalesce(records.claimed, 0) as claimed,
        of_calls.captured,
        marks.calls_declared
    from of_calls
    full join marks using (rollout_id)
    left join of_traces on of_traces.rollout_id = of_calls.rollout_id
    left join first_users on first_users.rollout_id = of_calls.rollout_id
    left join records on records.base_rollout_id = coalesce(of_calls.base_rollout_id, marks.base_rollout_id)
),

-- How long it has to be quiet: 0 where it need not, NULL where no quiet will do.
waiting as (
    select
        *,
        case
            when not counts_met then null
            when ended and calls_declared is not null then case
                when greatest(records, coalesce(captured, 0)) < calls_declared then null
                when counted or coalesce(captured, 0) >= calls_declared then 0
                else $settle_s
            end
            when ended and counted then 0
            when ended or has_root then $settle_s
            else $session_idle_s
        end::double as wait_s,
        lower(trim(first_user)) as asked,
        ($now - least(quiet_since, $now))::double / 1e9 as quiet_s
    from joined
),

finished as (
    select
        *,
        coalesce(quiet_s >= wait_s, false) as complete,
        coalesce(
            stated_task_id,
            case
                when contains(asked, chr(1)) then sha256(regexp_replace(asked, '\s+', ' ', 'g'))
                -- The same, without the regular expression's price on long texts: every blank a space, then runs of them one.
                when asked is not null then sha256(replace(replace(replace(
                    replace(replace(replace(replace(asked, chr(9), ' '), chr(10), ' '), chr(12), ' '), chr(13), ' '),
                    '  ', ' ' || chr(1)), chr(1) || ' ', ''), chr(1), ''))
            end,
            rollout_id
        ) as task_id
    from waiting
)

select
    rollout_id, base_rollout_id, attempt, keyed_by, trace_ids, session_id, service_name,
    task_id,
    coalesce(stated_group_id, task_id || '@' || coalesce(policy_version, '')) as group_id,
    coalesce(
        stated_split,
        case when ('0x' || right(sha256($salt || task_id), 4))::int % 100 < $eval_percent then 'eval' else 'train' end
    ) as split,
    policy_version, mixed_policy, spans, spans_declared, calls, start_unix_nano, end_unix_nano,
    complete,
    case when not complete then try_cast(quiet_since::hugeint + floor(wait_s * 1e9)::hugeint as ubigint) end as due_unix_nano,
    case
        when ended then coalesce(status, 'finished')
        when last_error then 'error'
        when complete then 'finished'
        else 'running'
    end as status,
    coalesce(reason, case when not complete then 'incomplete' when last_error then 'the last call failed' end) as status_reason,
    list_filter([
        case when mixed_policy then 'mixed_policy' end,
        case when not has_root then 'no_root' end,
        case when stated_task_id is null and first_user is null then 'task_unknown' end
    ], lambda f: f is not null) as flags
from finished
