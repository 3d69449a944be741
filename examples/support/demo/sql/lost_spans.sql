-- Spans that the agents ended but that are not in the lake, by process, from the SDK's own counters.
-- grain: one row per service_instance_id of the bots; ended NULL: the process never said (killed before its last report)
with

counted as (
    select
        service_instance_id,
        max(value) filter (where name = 'otel.sdk.span.started') as started_point,
        sum(value) filter (where name = 'otel.sdk.span.started') as started,
        sum(value) filter (where name = 'otel.sdk.span.live') as live
    from (
        select service_instance_id, name, attributes_str, value
        from metrics
        where name in ('otel.sdk.span.started', 'otel.sdk.span.live')
        qualify row_number() over (
            partition by service_instance_id, name, attributes_str::varchar order by time_unix_nano desc, seq desc
        ) = 1
    )
    group by service_instance_id
),

stored as (
    select service_instance_id, min(service_name) as service_name, count(distinct trace_id || span_id) as stored
    from spans
    where service_name like 'support-%'
    group by service_instance_id
)

select
    stored.service_instance_id, stored.service_name, stored.stored,
    case when counted.started_point is not null then counted.started - coalesce(counted.live, 0) end as ended
from stored
left join counted using (service_instance_id)
order by stored.service_instance_id
