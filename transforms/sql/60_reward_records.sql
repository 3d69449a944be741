-- Every evaluation that was sent, in whatever form, with its target as stated and nothing resolved yet.
-- grain: one row per reward_id
-- kind: bucket
-- Forms: `gen_ai.evaluation.result` as log record or span event; OpenInference evaluations.N / annotations.N, inline
-- or on a carrier span with one link, for a span, `trace.` or `session.`; Agent Lightning's agentlightning.reward.N with
-- its link attributes; numeric span attributes named in rewards.attributes. `node` is what the record came in: e: and its
-- content hash, or the trace of its span.
with

log_records as (
    select
        'e:' || content_sha256 as node,
        attributes_str['gen_ai.evaluation.name'] as name,
        coalesce(
            attributes_dbl['gen_ai.evaluation.score.value'],
            attributes_int['gen_ai.evaluation.score.value']::double,
            attributes_bool['gen_ai.evaluation.score.value']::integer::double
        ) as value,
        attributes_str['gen_ai.evaluation.score.label'] as label,
        attributes_str['gen_ai.evaluation.explanation'] as explanation,
        coalesce(attributes_str['lightning.reward.source'], scope_name) as source,
        attributes_str['lightning.reward.version'] as version,
        attributes_str['lightning.reward.identifier'] as identifier,
        'span' as widen,
        attributes_str['lightning.target.trace_id'] as target_trace_id,
        attributes_str['lightning.target.span_id'] as target_span_id,
        attributes_str['lightning.target.response_id'] as target_response_id,
        attributes_str['lightning.target.tool_call_id'] as target_tool_call_id,
        attributes_int['lightning.target.choice'] as target_choice,
        attributes_str['lightning.rollout.id'] as target_rollout_id,
        attributes_int['lightning.attempt'] as target_attempt,
        attributes_str['gen_ai.response.id'] as response_id,
        attributes_str['gen_ai.tool.call.id'] as tool_call_id,
        trace_id as context_trace_id, span_id as context_span_id,
        coalesce(attributes_str['session.id'], attributes_str['gen_ai.conversation.id']) as target_session_id,
        coalesce(
            resource_attributes ->> '$."lightning.rollout.id"', resource_attributes ->> '$."agentlightning.rollout_id"'
        ) as resource_rollout_id,
        case when time_unix_nano > 0 then time_unix_nano else observed_unix_nano end as emitted_unix_nano,
        received_unix_nano
    from events
    where coalesce(event_name, attributes_str['event.name']) = 'gen_ai.evaluation.result'
    qualify row_number() over (partition by content_sha256 order by received_unix_nano, collector_id, seq) = 1
),

span_events as (
    select
        trace_id as node,
        event.attributes ->> '$."gen_ai.evaluation.name"' as name,
        try_cast(event.attributes ->> '$."gen_ai.evaluation.score.value"' as double) as value,
        event.attributes ->> '$."gen_ai.evaluation.score.label"' as label,
        event.attributes ->> '$."gen_ai.evaluation.explanation"' as explanation,
        coalesce(event.attributes ->> '$."lightning.reward.source"', scope_name) as source,
        event.attributes ->> '$."lightning.reward.version"' as version,
        event.attributes ->> '$."lightning.reward.identifier"' as identifier,
        'span' as widen,
        event.attributes ->> '$."lightning.target.trace_id"' as target_trace_id,
        event.attributes ->> '$."lightning.target.span_id"' as target_span_id,
        event.attributes ->> '$."lightning.target.response_id"' as target_response_id,
        event.attributes ->> '$."lightning.target.tool_call_id"' as target_tool_call_id,
        try_cast(event.attributes ->> '$."lightning.target.choice"' as bigint) as target_choice,
        event.attributes ->> '$."lightning.rollout.id"' as target_rollout_id,
        try_cast(event.attributes ->> '$."lightning.attempt"' as bigint) as target_attempt,
        event.attributes ->> '$."gen_ai.response.id"' as response_id,
        event.attributes ->> '$."gen_ai.tool.call.id"' as tool_call_id,
        trace_id as context_trace_id, span_id as context_span_id,
        coalesce(event.attributes ->> '$."session.id"', event.attributes ->> '$."gen_ai.conversation.id"') as target_session_id,
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
        trace_id, span_id, session_id, conversation_id, end_unix_nano, received_unix_nano, scope_name,
        coalesce(case when len(links) = 1 then links[1].trace_id end, target_trace_id) as link_trace_id,
        coalesce(case when len(links) = 1 then links[1].span_id end, target_span_id) as link_span_id,
        target_response_id, target_tool_call_id, target_choice, reward_source, reward_version, reward_identifier,
        attributes_str,
        list_concat(
            list_transform(map_entries(attributes_str), lambda e: {'key': e.key, 'value': e.value}),
            list_transform(map_entries(attributes_dbl), lambda e: {'key': e.key, 'value': e.value::varchar}),
            list_transform(map_entries(attributes_int), lambda e: {'key': e.key, 'value': e.value::varchar})
        ) as entries
    from spans_unique
    semi join (select trace_id, span_id from span_kinds where carries_evaluation) using (trace_id, span_id)
),

entries as (
    select carriers.* exclude (entries, attributes_str), unnest(entries) as entry from carriers
),

fields as (
    select
        * exclude (entry),
        entry.value as value,
        regexp_extract(
            entry.key,
            '^(trace\.|session\.)?(evaluations|annotations)\.(\d+)\.(?:evaluation|annotation)\.(\w+)$',
            ['widen', 'what', 'n', 'field']
        ) as part
    from entries
    where entry.key ~ '^(trace\.|session\.)?(evaluations|annotations)\.\d+\.(evaluation|annotation)\.\w+$'
),

inline as (
    select
        trace_id as node,
        max(fields.value) filter (where part.field in ('name', 'names')) as name,
        try_cast(max(fields.value) filter (where part.field = 'score') as double) as value,
        max(fields.value) filter (where part.field = 'label') as label,
        max(fields.value) filter (where part.field = 'explanation') as explanation,
        coalesce(min(reward_source), max(fields.value) filter (where part.field = 'annotator_kind'), min(scope_name)) as source,
        min(reward_version) as version,
        coalesce(max(fields.value) filter (where part.field = 'identifier'), min(reward_identifier)) as identifier,
        case part.widen when 'trace.' then 'trace' when 'session.' then 'session' else 'span' end as widen,
        link_trace_id as target_trace_id, link_span_id as target_span_id,
        min(target_response_id) as target_response_id, min(target_tool_call_id) as target_tool_call_id,
        min(target_choice) as target_choice,
        trace_id as context_trace_id, span_id as context_span_id,
        coalesce(session_id, conversation_id) as target_session_id,
        end_unix_nano as emitted_unix_nano, received_unix_nano
    from fields
    group by
        trace_id, span_id, session_id, conversation_id, link_trace_id, link_span_id, end_unix_nano, received_unix_nano,
        part.widen, part.n, part.what
),

-- evaluations and annotations with equal name, value and label on one span are one reward.
inline_once as (
    select distinct on (context_trace_id, context_span_id, widen, name, value, label) *
    from inline
    order by context_trace_id, context_span_id, widen, name, value, label, identifier, explanation, source
),

-- agentlightning.reward.0.value … on a span; the older form is a JSON output {"type": "reward", "value": …}.
lightning_values as (
    select
        trace_id, span_id, part.n,
        max(entry.value) filter (where part.field = 'name') as name,
        try_cast(max(entry.value) filter (where part.field = 'value') as double) as value
    from (
        select *, regexp_extract(entry.key, '^agentlightning\.reward\.(\d+)\.(name|value)$', ['n', 'field']) as part
        from entries
        where starts_with(entry.key, 'agentlightning.reward.')
    )
    where part.n <> ''
    group by trace_id, span_id, part.n

    union all

    select trace_id, span_id, '0', null, try_cast(case when json_valid(output) then output ->> '$.value' end as double)
    from (
        select
            trace_id, span_id,
            coalesce(attributes_str['agentops.task.output'], attributes_str['agentops.entity.output']) as output
        from carriers
    )
    where case when json_valid(output) then output ->> '$.type' end = 'reward'
),

-- A link attribute pair says which attribute of its target has which value.
lightning_links as (
    select
        trace_id, span_id,
        max(match) filter (where key = 'trace_id') as trace_match,
        max(match) filter (where key = 'span_id') as span_match,
        max(match) filter (where key = 'gen_ai.response.id') as response_match,
        max(match) filter (where key = 'gen_ai.tool.call.id') as tool_match,
        max(match) filter (where key in ('agentlightning.rollout_id', 'lightning.rollout.id')) as rollout_match,
        max(match) filter (where key in ('session.id', 'gen_ai.conversation.id')) as session_match,
        min(key) filter (where key not in (
            'trace_id', 'span_id', 'gen_ai.response.id', 'gen_ai.tool.call.id', 'agentlightning.rollout_id', 'lightning.rollout.id',
            'session.id', 'gen_ai.conversation.id', 'agentlightning.attempt_id'
        )) as attribute_key,
        min_by(match, key) filter (where key not in (
            'trace_id', 'span_id', 'gen_ai.response.id', 'gen_ai.tool.call.id', 'agentlightning.rollout_id', 'lightning.rollout.id',
            'session.id', 'gen_ai.conversation.id', 'agentlightning.attempt_id'
        )) as attribute_match
    from (
        select
            trace_id, span_id,
            max(entry.value) filter (where part.field = 'key') as key,
            max(entry.value) filter (where part.field = 'value') as match
        from (
            select *, regexp_extract(entry.key, '^agentlightning\.link\.(\d+)\.(key|value)_match$', ['n', 'field']) as part
            from entries
            where starts_with(entry.key, 'agentlightning.link.')
        )
        where part.n <> ''
        group by trace_id, span_id, part.n
    )
    group by trace_id, span_id
),

lightning as (
    select
        carriers.trace_id as node,
        -- The first reward of a span without a name of its own is the primary one.
        coalesce(lightning_values.name, case when n = '0' then 'primary' else n end) as name,
        lightning_values.value,
        coalesce(reward_source, scope_name) as source, reward_version as version, reward_identifier as identifier,
        'span' as widen,
        coalesce(link_trace_id, trace_match, case when span_match is not null then carriers.trace_id end) as target_trace_id,
        coalesce(link_span_id, span_match) as target_span_id,
        coalesce(target_response_id, response_match) as target_response_id,
        coalesce(target_tool_call_id, tool_match) as target_tool_call_id,
        target_choice, rollout_match as target_rollout_id,
        case when link_span_id is null and span_match is null then attribute_key end as target_attribute,
        case when link_span_id is null and span_match is null then attribute_match end as target_attribute_value,
        carriers.trace_id as context_trace_id, carriers.span_id as context_span_id,
        coalesce(session_match, session_id, conversation_id) as target_session_id,
        session_match is not null as session_stated,
        end_unix_nano as emitted_unix_nano, received_unix_nano
    from carriers
    join lightning_values using (trace_id, span_id)
    left join lightning_links using (trace_id, span_id)
),

named_attributes as (
    select
        trace_id as node,
        wanted.key as name,
        coalesce(attributes_dbl[wanted.key], attributes_int[wanted.key]::double, attributes_bool[wanted.key]::int::double) as value,
        coalesce(reward_source, scope_name) as source, reward_version as version, reward_identifier as identifier,
        'span' as widen,
        target_trace_id, target_span_id, target_response_id, target_tool_call_id, target_choice,
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
    select * from lightning
    union all by name
    select * from named_attributes
),

identified as (
    select
        * replace (nullif(name, '') as name),
        sha256(to_json([
            widen, target_trace_id, target_span_id, target_response_id, target_tool_call_id, target_choice::varchar,
            target_rollout_id, target_attempt::varchar, response_id, tool_call_id, target_attribute, target_attribute_value,
            context_trace_id, context_span_id, target_session_id, resource_rollout_id,
            name, value::varchar, label, source, version, identifier, emitted_unix_nano::varchar
        ])) as reward_id
    from together
)

select
    *,
    case
        when name is null then 'no_name'
        when value is not null and (not isfinite(value) or abs(value) > 1e8) then 'refused_value'
        when value is null and label is null then 'no_value'
    end as refused
from identified
qualify row_number() over (partition by reward_id order by received_unix_nano, node) = 1
