-- Spans that arrived more than once: senders may repeat a request, and a repeated span is the same thing.
-- grain: one row per (row): a copy of a span, by its place in `spans`
-- kind: bucket
-- Of two copies the finished one replaces the unfinished; of two finished ones the fuller is kept. If finished
-- copies give one attribute different values, `conflicting_copies` says so and the call is not trained.
with

copies as (
    select trace_id, span_id
    from spans
    group by trace_id, span_id
    having count(*) > 1
),

repeated as (
    select
        spans.rowid as row,
        spans.*,
        cardinality(attributes_str) + cardinality(attributes_int) + cardinality(attributes_dbl)
            + cardinality(attributes_bool) + cardinality(attributes_json) as attribute_count,
        to_json({
            s: attributes_str, i: attributes_int, d: attributes_dbl, b: attributes_bool, j: attributes_json,
            e: events, l: links, st: status_code, sm: status_message, n: name, rid: response_id,
            ids: prompt_token_ids, ch: choices, t: [start_unix_nano, end_unix_nano]
        })::varchar as everything
    from spans
    semi join copies using (trace_id, span_id)
),

attributes as (
    select trace_id, span_id, unnest(map_entries(attributes_str)) as entry, end_unix_nano from repeated
    union all
    select trace_id, span_id, unnest(map_entries(attributes_json)), end_unix_nano from repeated
    union all
    select trace_id, span_id, {'key': 'gen_ai.response.id', 'value': response_id}, end_unix_nano
    from repeated
    where response_id is not null
),

conflicts as (
    select trace_id, span_id
    from (
        select trace_id, span_id, entry.key as key
        from attributes
        where end_unix_nano > 0
        group by trace_id, span_id, entry.key
        having count(distinct entry.value) > 1
    )
    group by trace_id, span_id
)

select
    repeated.row, trace_id, span_id,
    row_number() over (
        partition by trace_id, span_id
        order by end_unix_nano > 0 desc, attribute_count desc, sha256(everything), collector_id, seq
    ) = 1 as kept,
    conflicts.trace_id is not null as conflicting_copies
from repeated
left join conflicts using (trace_id, span_id)
