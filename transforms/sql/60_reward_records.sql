-- Every evaluation that was sent, in whatever form, with its target as stated and nothing resolved yet.
-- grain: one row per reward_id
-- kind: bucket
-- Forms: `gen_ai.evaluation.result` as log record or span event; OpenInference evaluations.N / annotations.N, inline
-- or on a carrier span with one link, for a span, `trace.` or `session.`; span attributes named in rewards.attributes.
with

log_records as (
    select distinct on (content_sha256)
        'e:' || content_sha256 as node,
        attributes_str['gen_ai.evaluation.name'] as name,
        coalesce(
            attributes_dbl['gen_ai.evaluation.score.value'],
            attributes_int['gen_ai.evaluation.score.value']::double
        ) as value,
        attributes_str['gen_ai.evaluation.score.label'] as label,
        attributes_str['gen_ai.evaluation.explanation'] as explanation,
        coalesce(attributes_str['lightning.reward.source'], scope_name) as source,
        attributes_str['lightning.reward.version'] as version,
        attributes_str['lightning.reward.identifier'] as identifier,
        'span' as widen,
        attributes_str['lightning.target.trace_id'] as target_trace_id,
        attributes_str['lightning.target.span_id'] as target_span_id,
        coalesce(attributes_str['lightning.target.response_id'], attributes_str['gen_ai.response.id']) as target_response_id,
        coalesce(attributes_str['lightning.target.tool_call_id'], attributes_str['gen_ai.tool.call.id']) as target_tool_call_id,
        attributes_int['lightning.target.choice'] as target_choice,
        attributes_str['lightning.rollout.id'] as target_rollout_id,
        trace_id as context_trace_id, span_id as context_span_id,
        coalesce(attributes_str['session.id'], attributes_str['gen_ai.conversation.id']) as target_session_id,
        resource_attributes ->> '$."lightning.rollout.id"' as resource_rollout_id,
        case when time_unix_nano > 0 then time_unix_nano else observed_unix_nano end as emitted_unix_nano,
        received_unix_nano
    from events
    where coalesce(event_name, attributes_str['event.name']) = 'gen_ai.evaluation.result'
    order by content_sha256, received_unix_nano, collector_id, seq
),

span_events as (
    select
        event.attributes ->> '$."gen_ai.evaluation.name"' as name,
        (event.attributes ->> '$."gen_ai.evaluation.score.value"')::double as value,
        event.attributes ->> '$."gen_ai.evaluation.score.label"' as label,
        event.attributes ->> '$."gen_ai.evaluation.explanation"' as explanation,
        coalesce(event.attributes ->> '$."lightning.reward.source"', scope_name) as source,
        event.attributes ->> '$."lightning.reward.version"' as version,
        event.attributes ->> '$."lightning.reward.identifier"' as identifier,
        'span' as widen,
        event.attributes ->> '$."lightning.target.trace_id"' as target_trace_id,
        event.attributes ->> '$."lightning.target.span_id"' as target_span_id,
        coalesce(event.attributes ->> '$."lightning.target.response_id"', event.attributes ->> '$."gen_ai.response.id"') as target_response_id,
        event.attributes ->> '$."lightning.target.tool_call_id"' as target_tool_call_id,
        (event.attributes ->> '$."lightning.target.choice"')::bigint as target_choice,
        event.attributes ->> '$."lightning.rollout.id"' as target_rollout_id,
        trace_id as context_trace_id, span_id as context_span_id,
        null::varchar as target_session_id, null::varchar as resource_rollout_id,
        event.time_unix_nano as emitted_unix_nano, received_unix_nano
    from (
        select trace_id, span_id, scope_name, received_unix_nano, unnest(events) as event
        from spans_unique
        where len(events) > 0
    )
    where event.name = 'gen_ai.evaluation.result'
),

carriers as (
    select
        trace_id, span_id, session_id, end_unix_nano, received_unix_nano, scope_name,
        case when len(links) = 1 then links[1].trace_id end as link_trace_id,
        case when len(links) = 1 then links[1].span_id end as link_span_id,
        list_concat(
            list_transform(map_entries(attributes_str), lambda e: {'key': e.key, 'value': e.value}),
            list_transform(map_entries(attributes_dbl), lambda e: {'key': e.key, 'value': e.value::varchar}),
            list_transform(map_entries(attributes_int), lambda e: {'key': e.key, 'value': e.value::varchar})
        ) as entries
    from spans_unique
    semi join (select trace_id, span_id from span_kinds where carries_evaluation) using (trace_id, span_id)
),

fields as (
    select
        * exclude (entries, entry),
        entry.value as value,
        regexp_extract(
            entry.key,
            '^(trace\.|session\.)?(?:evaluations|annotations)\.(\d+)\.(?:evaluation|annotation)\.(\w+)$',
            ['widen', 'n', 'field']
        ) as part,
        starts_with(replace(replace(entry.key, 'trace.', ''), 'session.', ''), 'annotations') as annotation
    from (select carriers.*, unnest(entries) as entry from carriers)
    where entry.key ~ '^(trace\.|session\.)?(evaluations|annotations)\.\d+\.'
),

inline as (
    select
        max(fields.value) filter (where part.field = 'name') as name,
        try_cast(max(fields.value) filter (where part.field = 'score') as double) as value,
        max(fields.value) filter (where part.field = 'label') as label,
        max(fields.value) filter (where part.field = 'explanation') as explanation,
        coalesce(max(fields.value) filter (where part.field = 'annotator_kind'), any_value(scope_name order by scope_name)) as source,
        max(fields.value) filter (where part.field = 'identifier') as identifier,
        case part.widen when 'trace.' then 'trace' when 'session.' then 'session' else 'span' end as widen,
        link_trace_id as target_trace_id, link_span_id as target_span_id,
        trace_id as context_trace_id, span_id as context_span_id,
        session_id as target_session_id,
        end_unix_nano as emitted_unix_nano, received_unix_nano
    from fields
    group by trace_id, span_id, session_id, link_trace_id, link_span_id, end_unix_nano, received_unix_nano, part.widen, part.n, annotation
),

-- evaluations and annotations with equal name, value and label on one span are one reward.
inline_once as (
    select distinct on (context_trace_id, context_span_id, widen, name, value, label) *
    from inline
    order by context_trace_id, context_span_id, widen, name, value, label, identifier, explanation
),

named_attributes as (
    select
        wanted.key as name,
        coalesce(attributes_dbl[wanted.key], attributes_int[wanted.key]::double, attributes_bool[wanted.key]::int::double) as value,
        scope_name as source, 'span' as widen,
        trace_id as context_trace_id, span_id as context_span_id,
        end_unix_nano as emitted_unix_nano, received_unix_nano
    from spans_unique
    cross join (select unnest($reward_attributes::varchar[]) as key) as wanted
    where coalesce(attributes_dbl[wanted.key], attributes_int[wanted.key]::double, attributes_bool[wanted.key]::int::double) is not null
),

together as (
    select * from log_records
    union all by name
    select * from span_events
    union all by name
    select * from inline_once
    union all by name
    select * from named_attributes
),

identified as (
    select
        *,
        sha256(to_json([
            widen, target_trace_id, target_span_id, target_response_id, target_tool_call_id, target_choice::varchar,
            target_rollout_id, context_trace_id, context_span_id, target_session_id, resource_rollout_id,
            name, value::varchar, label, source, version, identifier, emitted_unix_nano::varchar
        ])) as reward_id
    from together
)

select distinct on (reward_id)
    * replace (coalesce(node, context_trace_id) as node),
    case
        when name is null then 'no_name'
        when value is not null and (not isfinite(value) or abs(value) > 1e8) then 'refused_value'
        when value is null and label is null then 'no_value'
    end as refused
from identified
order by reward_id, received_unix_nano
