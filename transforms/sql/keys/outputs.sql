-- Response ids that stand inside a recorded output: what an agent's call and the token record of its answer share.
-- grain: one row per (node, kind, key, file)
-- kind: map
-- Read for files with token records only, since it reads text. A hint that spares such a run its second pass: what the
-- conventions read, and found.sql then names, is what holds.
with

outputs as (
    select trace_id, file, attributes_str['output.value'] as output
    from spans
    where oi_kind = 'LLM' and response_id is null and capture is null
),

named as (
    select
        trace_id, file,
        case when json_valid(output) then coalesce(
            output ->> '$.id', output ->> '$.llm_output.id',
            output ->> '$.generations[0][0].message.kwargs.response_metadata.id', output ->> '$[0].output[0].provider_data.response_id'
        ) end as response_id
    from outputs
)

select distinct trace_id as node, 'p' as kind, md5_number_lower('p' || response_id) as key, file, 0 as rows
from named
where response_id is not null
