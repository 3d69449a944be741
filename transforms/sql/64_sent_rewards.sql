-- Every evaluation that was sent, resolved to what it stands on, with what replaced it or why it found nothing.
-- grain: one row per (reward_id, rollout_id)
-- kind: bucket
-- The first target that is stated counts, and nothing vaguer: only a context span that is missing falls to its trace. With
-- $match = 'time' what names only its surroundings goes to the last call in them that began before it.
with

stated as (
    select
        *,
        case
            when target_span_id is not null then 'span'
            when target_response_id is not null then 'response_id'
            when target_tool_call_id is not null then 'tool_call_id'
            when target_trace_id is not null then 'trace'
            when target_attribute is not null then 'attribute'
            when target_rollout_id is not null then 'rollout'
            when response_id is not null then 'response_id'
            when tool_call_id is not null then 'tool_call_id'
            when session_stated then 'session'
            when context_span_id is not null then 'context'
            when context_trace_id is not null then 'trace'
            when target_session_id is not null then 'session'
            when resource_rollout_id is not null then 'resource'
        end as stated,
        coalesce(target_trace_id, context_trace_id) as stated_trace_id
    from reward_records
    where refused is null
),

-- A tool call id may be used again in another episode: the one of the record's own rollout, else the only one.
tools_by_id as (
    select
        reward_id, trace_id, span_id,
        count(*) over (partition by reward_id, here) as alike,
        here, bool_or(here) over (partition by reward_id) as any_here
    from (
        select
            stated.reward_id, tools.trace_id, tools.span_id,
            coalesce(tools.rollout_id = home.rollout_id, false) as here
        from stated
        join tools on tools.tool_call_id = coalesce(stated.target_tool_call_id, stated.tool_call_id)
        left join trace_rollouts as home on home.trace_id = stated.context_trace_id
        where stated.stated = 'tool_call_id'
    )
    qualify here = any_here
),

-- Any other attribute is looked for in the record's own trace.
spans_by_attribute as (
    select stated.reward_id, min(spans.trace_id) as trace_id, min(spans.span_id) as span_id
    from stated
    join spans_unique as spans
        on spans.trace_id = stated.context_trace_id and spans.span_id <> stated.context_span_id
        and spans.attributes_str[stated.target_attribute] = stated.target_attribute_value
    where stated.stated = 'attribute'
    group by stated.reward_id
    having count(*) = 1
),

spans_of as (
    select reward_id, stated,
        case
            when stated = 'span' then coalesce(target_trace_id, context_trace_id)
            when stated = 'context' then context_trace_id
            when stated = 'response_id' then calls_by_response.trace_id
            when stated = 'tool_call_id' then tools_by_id.trace_id
            when stated = 'attribute' then spans_by_attribute.trace_id
        end as trace_id,
        case
            when stated = 'span' then target_span_id
            when stated = 'context' then context_span_id
            when stated = 'response_id' then calls_by_response.span_id
            when stated = 'tool_call_id' then tools_by_id.span_id
            when stated = 'attribute' then spans_by_attribute.span_id
        end as span_id
    from stated
    left join calls_by_response
        on stated.stated = 'response_id'
        and coalesce(stated.target_response_id, stated.response_id) = calls_by_response.response_id
    left join (select * from tools_by_id where alike = 1) as tools_by_id using (reward_id)
    left join spans_by_attribute using (reward_id)
),

known_traces as (
    select distinct trace_id from span_kinds
),

-- What a record names is a rollout, or a rollout's name whose last attempt it means.
rollout_by_name as (
    select named, max_by(rollout_id, rank) as rollout_id
    from (
        select base_rollout_id as named, max_by(rollout_id, attempt) as rollout_id, 2 as rank
        from rollouts
        group by base_rollout_id
        union all
        select rollout_id, rollout_id, 1 from rollouts
    )
    group by named
),

attempts as (
    select base_rollout_id, attempt, min(rollout_id) as rollout_id from rollouts group by all
),

found as (
    select
        stated.*,
        case
            when stated.widen = 'session' then 'session'
            when stated.widen = 'trace' then 'trace'
            when stated.stated in ('rollout', 'resource') then 'rollout'
            when stated.stated in ('session', 'trace') then stated.stated
            -- A carrier in a trace without a call says nothing about that trace; its process may say which episode it is of.
            when stated.stated = 'context' and home.trace_id is null and span_rollouts.rollout_id is not null then 'rollout'
            when targets.kind is not null then targets.kind
            when stated.stated = 'context' and known_traces.trace_id is not null then 'trace'
        end as target_kind,
        coalesce(
            targets.target_trace_id, case when stated.stated in ('trace', 'context') then stated.stated_trace_id end
        ) as found_trace_id,
        targets.target_span_id as found_span_id,
        coalesce(stated.target_rollout_id, case when stated.stated = 'resource' then stated.resource_rollout_id end, span_rollouts.rollout_id)
            as found_rollout
    from stated
    left join spans_of using (reward_id)
    left join span_targets as targets
        on targets.trace_id = spans_of.trace_id and targets.span_id = spans_of.span_id
    left join known_traces on known_traces.trace_id = stated.stated_trace_id
    left join trace_rollouts as home on home.trace_id = stated.context_trace_id
    left join (
        select trace_id, min(rollout_id) as rollout_id
        from (
            select trace_id, coalesce(rollout_id, resource_rollout_id) as rollout_id from span_kinds
        )
        where rollout_id <> ''
        group by trace_id
        having count(distinct rollout_id) = 1
    ) as span_rollouts on span_rollouts.trace_id = stated.context_trace_id
),

-- In the order of time only where the configuration says so: the last call below that began before the reward.
by_time as (
    select
        found.reward_id,
        max_by(calls.trace_id, (calls.step, calls.span_id)) as trace_id,
        max_by(calls.span_id, (calls.step, calls.span_id)) as span_id
    from found
    join calls on calls.trace_id = found.found_trace_id
    where $match = 'time'
        and found.widen = 'span'
        and found.stated in ('context', 'trace') and found.target_trace_id is null
        and found.target_kind in ('trace', 'span')
        and not calls.judge
        and calls.start_unix_nano <= found.emitted_unix_nano
        and (found.target_kind = 'trace' or found.found_span_id in (calls.scope_span_id, calls.agent_span_id))
    group by found.reward_id
),

moved as (
    select
        found.* replace (
            case when by_time.reward_id is not null then 'call' else found.target_kind end as target_kind,
            coalesce(by_time.trace_id, found.found_trace_id) as found_trace_id,
            coalesce(by_time.span_id, found.found_span_id) as found_span_id,
            case when by_time.reward_id is not null then 'time' else found.stated end as stated
        )
    from found
    left join by_time using (reward_id)
),

-- Which session: the one that is named, else that of the rollout which was found.
sessions as (
    select
        moved.reward_id, moved.name, moved.source, moved.identifier, moved.emitted_unix_nano,
        coalesce(moved.target_session_id, rollouts.session_id) as session_id
    from moved
    left join trace_rollouts on trace_rollouts.trace_id = moved.found_trace_id
    left join rollouts on rollouts.rollout_id = trace_rollouts.rollout_id
    where moved.target_kind = 'session'
),

-- A session's reward stands on the rollouts begun before it and after the previous one of its name, source and
-- identifier; with none begun in between, on the previous one's. So rewards with equally many rollouts before them share.
session_rewards as (
    select sessions.*, count(rollouts.rollout_id) as rollouts_before
    from sessions
    left join rollouts
        on rollouts.session_id = sessions.session_id and rollouts.start_unix_nano <= sessions.emitted_unix_nano
    group by all
),

session_turns as (
    select
        session_id, name, source, identifier, rollouts_before,
        lag(max(emitted_unix_nano)) over (
            partition by session_id, name, source, identifier order by rollouts_before
        ) as after_unix_nano
    from session_rewards
    group by session_id, name, source, identifier, rollouts_before
),

of_session as (
    select session_rewards.reward_id, session_rewards.session_id, rollouts.rollout_id
    from session_rewards
    join session_turns as turns
        on turns.session_id = session_rewards.session_id and turns.name = session_rewards.name
        and turns.source is not distinct from session_rewards.source
        and turns.identifier is not distinct from session_rewards.identifier
        and turns.rollouts_before = session_rewards.rollouts_before
    join rollouts
        on rollouts.session_id = session_rewards.session_id
        and rollouts.start_unix_nano <= session_rewards.emitted_unix_nano
        and (turns.after_unix_nano is null or rollouts.start_unix_nano > turns.after_unix_nano)
),

placed as (
    select
        moved.*,
        case target_kind
            when 'rollout' then coalesce(by_attempt.rollout_id, by_name.rollout_id)
            when 'session' then of_session.rollout_id
            when 'call' then of_call.rollout_id
            when 'tool' then of_tool.rollout_id
            else trace_rollouts.rollout_id
        end as rollout_id,
        of_session.session_id as found_session_id,
        coalesce(of_call.judge, false) as target_is_judge,
        coalesce(moved.target_choice, case when target_kind = 'call' then main_choices.choice end)::int as resolved_choice
    from moved
    left join attempts as by_attempt
        on by_attempt.base_rollout_id = moved.found_rollout and by_attempt.attempt = moved.target_attempt
    left join rollout_by_name as by_name on by_name.named = moved.found_rollout
    left join of_session on of_session.reward_id = moved.reward_id and moved.target_kind = 'session'
    left join calls as of_call
        on moved.target_kind = 'call' and of_call.trace_id = moved.found_trace_id and of_call.span_id = moved.found_span_id
    left join main_choices
        on main_choices.trace_id = moved.found_trace_id and main_choices.span_id = moved.found_span_id
    left join tools as of_tool
        on moved.target_kind = 'tool' and of_tool.trace_id = moved.found_trace_id and of_tool.span_id = moved.found_span_id
    left join trace_rollouts on trace_rollouts.trace_id = moved.found_trace_id
),

standing as (
    select
        *,
        -- The latest by the sender's time stands; equal targets as stated, names, sources and identifiers compete. What
        -- states no target at all competes with nothing: it might be about anything.
        first_value(reward_id) over (
            partition by rollout_id, widen, target_trace_id, target_span_id, target_response_id, target_tool_call_id, target_choice,
                target_attribute, target_attribute_value, target_rollout_id, target_attempt, response_id, tool_call_id,
                context_trace_id, context_span_id, target_session_id, resource_rollout_id,
                name, source, identifier, case when stated is null then reward_id end
            order by emitted_unix_nano desc, reward_id desc
        ) as winner
    from placed
)

select
    reward_id, rollout_id, name, value, label, explanation, source, version, identifier,
    target_kind,
    case when target_kind in ('call', 'tool', 'span', 'trace') then found_trace_id end as target_trace_id,
    case when target_kind in ('call', 'tool', 'span') then found_span_id end as target_span_id,
    case when target_kind = 'call' then resolved_choice end as target_choice,
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
