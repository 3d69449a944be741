-- The table `rewards`: every evaluation, resolved to what it stands on, with what replaced it or why it found nothing.
-- grain: one row per (reward_id, rollout_id)
-- kind: bucket
-- The first target that is stated counts, and nothing vaguer: only a context span that is missing falls to its trace.
with

stated as (
    select
        *,
        case
            when target_span_id is not null then 'span'
            when target_response_id is not null and target_rollout_id is null then 'response_id'
            when target_tool_call_id is not null and target_rollout_id is null then 'tool_call_id'
            when target_trace_id is not null then 'trace'
            when target_rollout_id is not null then 'rollout'
            when context_span_id is not null then 'context'
            when context_trace_id is not null then 'trace'
            when target_session_id is not null then 'session'
            when resource_rollout_id is not null then 'resource'
        end as stated,
        coalesce(target_trace_id, context_trace_id) as stated_trace_id
    from reward_records
    where refused is null
),

calls_by_response as (
    select response_id, min(trace_id) as trace_id, min_by(span_id, trace_id) as span_id
    from calls
    where response_id is not null and not list_contains(flags, 'response_id_reused')
    group by response_id
    having count(*) = 1
),

tools_by_id as (
    select tool_call_id, min(trace_id) as trace_id, min_by(span_id, trace_id) as span_id
    from tools
    where tool_call_id is not null
    group by tool_call_id
    having count(*) = 1
),

spans_of as (
    select reward_id, stated,
        case
            when stated = 'span' then target_trace_id
            when stated = 'context' then context_trace_id
            when stated = 'response_id' then calls_by_response.trace_id
            when stated = 'tool_call_id' then tools_by_id.trace_id
        end as trace_id,
        case
            when stated = 'span' then target_span_id
            when stated = 'context' then context_span_id
            when stated = 'response_id' then calls_by_response.span_id
            when stated = 'tool_call_id' then tools_by_id.span_id
        end as span_id
    from stated
    left join calls_by_response on stated.target_response_id = calls_by_response.response_id
    left join tools_by_id on stated.target_tool_call_id = tools_by_id.tool_call_id
),

trace_rollouts as (
    select trace_id, min(rollout_id) as rollout_id
    from calls
    where rollout_id is not null
    group by trace_id
    having count(distinct rollout_id) = 1
),

known_traces as (
    select distinct trace_id from span_kinds
),

chosen_attempts as (
    select base_rollout_id, max(attempt) as attempt from rollouts group by base_rollout_id
),

found as (
    select
        stated.*,
        case
            when stated.widen = 'session' then 'session'
            when stated.widen = 'trace' then 'trace'
            when stated.stated in ('rollout', 'resource') then 'rollout'
            when stated.stated in ('session', 'trace') then stated.stated
            when targets.kind is not null then targets.kind
            when stated.stated = 'context' and known_traces.trace_id is not null then 'trace'
        end as target_kind,
        coalesce(targets.target_trace_id, case when stated.stated in ('trace', 'context') then stated.stated_trace_id end) as found_trace_id,
        targets.target_span_id as found_span_id
    from stated
    left join spans_of using (reward_id)
    left join span_targets as targets
        on targets.trace_id = spans_of.trace_id and targets.span_id = spans_of.span_id
    left join known_traces on known_traces.trace_id = stated.stated_trace_id
),

-- A session's reward stands on the rollouts begun before it and after the previous one of its name, source and
-- identifier; with none begun in between, on the previous one's. So rewards with equally many rollouts before them share.
session_rewards as (
    select
        found.reward_id, found.target_session_id, found.name, found.source, found.identifier, found.emitted_unix_nano,
        count(rollouts.rollout_id) as rollouts_before
    from found
    left join rollouts on rollouts.session_id = found.target_session_id and rollouts.start_unix_nano <= found.emitted_unix_nano
    where found.target_kind = 'session'
    group by all
),

session_turns as (
    select
        target_session_id, name, source, identifier, rollouts_before,
        lag(max(emitted_unix_nano)) over (
            partition by target_session_id, name, source, identifier order by rollouts_before
        ) as after_unix_nano
    from session_rewards
    group by target_session_id, name, source, identifier, rollouts_before
),

of_session as (
    select session_rewards.reward_id, rollouts.rollout_id
    from session_rewards
    join session_turns as turns
        on turns.target_session_id = session_rewards.target_session_id and turns.name = session_rewards.name
        and turns.source is not distinct from session_rewards.source
        and turns.identifier is not distinct from session_rewards.identifier
        and turns.rollouts_before = session_rewards.rollouts_before
    join rollouts
        on rollouts.session_id = session_rewards.target_session_id
        and rollouts.start_unix_nano <= session_rewards.emitted_unix_nano
        and (turns.after_unix_nano is null or rollouts.start_unix_nano > turns.after_unix_nano)
),

placed as (
    select
        found.*,
        case target_kind
            when 'rollout' then coalesce(by_attempt.rollout_id, by_id.rollout_id)
            when 'session' then of_session.rollout_id
            when 'call' then of_call.rollout_id
            when 'tool' then of_tool.rollout_id
            else trace_rollouts.rollout_id
        end as rollout_id,
        coalesce(of_call.judge, false) as target_is_judge,
        coalesce(
            found.target_choice,
            case when target_kind = 'call' and coalesce(len(of_call.choices), 1) <= 1 then coalesce(of_call.choices[1], 0) end
        )::int as resolved_choice
    from found
    left join chosen_attempts on chosen_attempts.base_rollout_id = coalesce(found.target_rollout_id, found.resource_rollout_id)
    left join rollouts as by_attempt
        on by_attempt.base_rollout_id = chosen_attempts.base_rollout_id and by_attempt.attempt = chosen_attempts.attempt
    left join rollouts as by_id on by_id.rollout_id = found.target_rollout_id
    left join of_session on of_session.reward_id = found.reward_id
    left join calls as of_call
        on found.target_kind = 'call' and of_call.trace_id = found.found_trace_id and of_call.span_id = found.found_span_id
    left join tools as of_tool
        on found.target_kind = 'tool' and of_tool.trace_id = found.found_trace_id and of_tool.span_id = found.found_span_id
    left join trace_rollouts on trace_rollouts.trace_id = found.found_trace_id
),

standing as (
    select
        *,
        -- The latest by the sender's time stands; equal targets as stated, names, sources and identifiers compete.
        first_value(reward_id) over (
            partition by rollout_id, widen, target_trace_id, target_span_id, target_response_id, target_tool_call_id, target_choice,
                target_rollout_id, context_trace_id, context_span_id, target_session_id, resource_rollout_id,
                name, source, identifier
            order by emitted_unix_nano desc, reward_id desc
        ) as winner
    from placed
)

select
    reward_id, rollout_id, name, value, label, explanation, source, version, identifier,
    target_kind,
    case when target_kind in ('call', 'tool', 'span', 'trace') then found_trace_id end as target_trace_id,
    case when target_kind in ('call', 'tool', 'span') then found_span_id end as target_span_id,
    resolved_choice as target_choice,
    stated as resolved_by,
    case
        when target_is_judge then 'target_is_judge'
        when target_kind is null or rollout_id is null then 'target_not_found'
        when target_kind = 'call' and resolved_choice is null then 'ambiguous_choice'
    end as unresolved_reason,
    case when winner <> reward_id then winner end as superseded_by,
    emitted_unix_nano, received_unix_nano
from standing

union all by name

select reward_id, name, value, label, explanation, source, version, identifier, refused as unresolved_reason,
    emitted_unix_nano, received_unix_nano
from reward_records
where refused is not null
