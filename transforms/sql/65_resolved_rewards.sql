-- Every reward with what it stands on: what was sent, and what the user's reward SQL computed for whole rollouts.
-- grain: one row per (reward_id, rollout_id)
-- kind: bucket
-- A computed reward has exactly one target, its time is its rollout's end; it is there as long as its text is configured.
with

found as (
    select
        computed.*,
        case
            when computed.rollout_id is not null then 'rollout'
            when computed.span_id is null and computed.response_id is null then 'trace'
            else targets.kind
        end as target_kind,
        coalesce(targets.target_trace_id, computed.trace_id) as found_trace_id,
        targets.target_span_id as found_span_id
    from computed_rewards as computed
    left join calls_by_response on calls_by_response.response_id = computed.response_id
    left join span_targets as targets
        on targets.trace_id = coalesce(computed.trace_id, calls_by_response.trace_id)
        and targets.span_id = coalesce(computed.span_id, calls_by_response.span_id)
),

placed as (
    select
        found.* exclude (rollout_id),
        case found.target_kind
            when 'rollout' then found.rollout_id
            when 'call' then of_call.rollout_id
            when 'tool' then of_tool.rollout_id
            else trace_rollouts.rollout_id
        end as rollout_id,
        coalesce(of_call.judge, false) as target_is_judge,
        case when found.target_kind = 'call' then coalesce(found.choice, main_choices.choice) end::int as resolved_choice
    from found
    left join calls as of_call
        on found.target_kind = 'call' and of_call.trace_id = found.found_trace_id and of_call.span_id = found.found_span_id
    left join main_choices
        on main_choices.trace_id = found.found_trace_id and main_choices.span_id = found.found_span_id
    left join tools as of_tool
        on found.target_kind = 'tool' and of_tool.trace_id = found.found_trace_id and of_tool.span_id = found.found_span_id
    left join trace_rollouts on trace_rollouts.trace_id = found.found_trace_id
),

timed as (
    select placed.*, rollouts.end_unix_nano as emitted_unix_nano
    from placed
    join rollouts using (rollout_id)
)

select * from sent_rewards

union all by name

select
    sha256(to_json([
        'computed', case when target_kind = 'rollout' then rollout_id end, trace_id, span_id, choice::varchar, response_id,
        name, value::varchar, label, source, version, emitted_unix_nano::varchar
    ])) as reward_id,
    rollout_id, name, value, label, explanation, source, version,
    target_kind,
    case when target_kind in ('call', 'tool', 'span', 'trace') then found_trace_id end as target_trace_id,
    case when target_kind in ('call', 'tool', 'span') then found_span_id end as target_span_id,
    resolved_choice as target_choice,
    'computed' as resolved_by,
    case
        when value is not null and (not isfinite(value) or abs(value) > 1e8) then 'refused_value'
        when target_is_judge then 'target_is_judge'
        when target_kind = 'call' and resolved_choice is null then 'ambiguous_choice'
    end as unresolved_reason,
    emitted_unix_nano,
    emitted_unix_nano as received_unix_nano
from timed
