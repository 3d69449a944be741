-- By what each trace may belong together with others: the narrow index from which a run finds what an arrival touches.
-- grain: one row per distinct (node, key); a node is a trace
-- kind: map
-- Keys: t trace, s session, c conversation, r rollout named outright, l linked trace, p response id, i process of a bare
-- LLM call (joined only while nothing names its rollout).
with

marked as (
    select
        trace_id, session_id, conversation_id,
        coalesce(
            rollout_id,
            case when resource_attributes like '%lightning%rollout%' then coalesce(
                resource_attributes ->> '$."lightning.rollout.id"', resource_attributes ->> '$."agentlightning.rollout_id"'
            ) end
        ) as rollout_id,
        coalesce(
            response_id,
            case when oi_kind = 'LLM' then regexp_extract(attributes_str['output.value'], '"id": ?"((?:chatcmpl|resp|cmpl)[-_][^"]+)"', 1) end
        ) as response_id,
        case when parent_span_id is null and capture is null
            and (oi_kind = 'LLM' or operation in ('chat', 'text_completion', 'generate_content')) then service_instance_id end as process,
        list_transform(links, lambda link: link.trace_id) as linked
    from spans
)

select distinct node, key
from (
    select trace_id as node, 't:' || trace_id as key from marked
    union all
    select trace_id, 's:' || session_id from marked where session_id is not null
    union all
    select trace_id, 'c:' || conversation_id from marked where conversation_id is not null
    union all
    select trace_id, 'r:' || rollout_id from marked where rollout_id is not null
    union all
    select trace_id, 'p:' || response_id from marked where response_id <> ''
    union all
    select trace_id, 'i:' || process from marked where process is not null
    union all
    select trace_id, 't:' || unnest(linked) from marked where len(linked) > 0
)
