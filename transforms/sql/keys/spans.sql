-- By what each trace may belong together with others: the narrow index from which a run finds what an arrival touches.
-- grain: one row per (node, kind, key, file); a node is a trace, `rows` its spans in that file (on its own key, else 0)
-- kind: map
-- Kinds: t trace (its own, or one that it links to), s session, c conversation, r rollout named outright, p response id,
-- i process of a bare LLM call (joined only while nothing names its rollout). Only narrow columns are read: what stands in
-- attributes is found when the steps have read them (found.sql).
with

marked as (
    select
        trace_id, file, session_id, conversation_id, response_id, links,
        coalesce(
            rollout_id,
            case when resource_attributes like '%lightning%rollout%' then coalesce(
                resource_attributes ->> '$."lightning.rollout.id"', nullif(resource_attributes ->> '$."agentlightning.rollout_id"', '')
            ) end
        ) as rollout_id,
        case when parent_span_id is null and capture is null
            and (oi_kind = 'LLM' or operation in ('chat', 'text_completion', 'generate_content')) then service_instance_id end as process
    from spans
),

named as (
    select trace_id as node, file, 't' as kind, trace_id as name, count(*) as rows from marked group by all
    union all
    select trace_id, file, 's', session_id, 0 from marked where session_id is not null group by all
    union all
    select trace_id, file, 'c', conversation_id, 0 from marked where conversation_id is not null group by all
    union all
    select trace_id, file, 'r', rollout_id, 0 from marked where rollout_id is not null group by all
    union all
    select trace_id, file, 'p', response_id, 0 from marked where response_id <> '' group by all
    union all
    select trace_id, file, 'i', process, 0 from marked where process is not null group by all
    union all
    select trace_id, file, 't', link.trace_id, 0
    from (select trace_id, file, unnest(links) as link from marked where len(links) > 0)
    where link.trace_id <> trace_id
    group by all
)

select node, kind, md5_number_lower(kind || name) as key, file, rows
from named
