-- What each span is, judged by its attributes alone, never by its name or its library.
-- grain: one row per (trace_id, span_id); narrow: no content
-- kind: bucket
-- span_kind: capture (token record of a model server), llm, agent, tool, judge (evaluator, guardrail), chain, other
with

marked as (
    select
        trace_id, span_id, parent_span_id, collector_id, seq,
        start_unix_nano, end_unix_nano, status_code,
        name, scope_name, service_name, service_instance_id,
        operation, oi_kind, response_id,
        coalesce(session_id, attributes_str['langsmith.metadata.session_id'], attributes_str['traceloop.association.properties.session_id']) as session_id,
        conversation_id, user_id,
        coalesce(rollout_id, attributes_str['agentlightning.rollout_id']) as rollout_id,
        attempt, task_id, group_id, split, policy_version, capture, span_seq, span_count,
        coalesce(agent_name, attributes_str['agent.name']) as agent_name,
        attributes_str['graph.node.id'] as graph_node,
        -- LangChain says on every span which agent it is for; its own agents have no span of kind agent.
        case when attributes_str['metadata'] like '%"lc_agent_name"%' and json_valid(attributes_str['metadata'])
            then attributes_str['metadata'] ->> '$.lc_agent_name' end as said_agent,
        case when resource_attributes like '%lightning%rollout%' then coalesce(
            resource_attributes ->> '$."lightning.rollout.id"', resource_attributes ->> '$."agentlightning.rollout_id"'
        ) end as resource_rollout_id,
        len(links) as link_count,
        coalesce(attributes_str['gen_ai.input.messages'], attributes_json['gen_ai.input.messages']) as genai_messages,
        -- A span may speak both conventions, one rewritten from the other; what the rewriting lost is the shorter prompt.
        case when oi_kind = 'LLM' and json_valid(genai_messages) then coalesce(json_array_length(genai_messages), 0) < len(list_filter(
            map_keys(attributes_str), lambda k: k ~ '^llm\.input_messages\.\d+\.message\.role$'
        )) else false end as openinference_has_more,
        list_has_any(map_keys(attributes_str), ['evaluation.name', 'annotation.name', 'agentlightning.reward.0.name'])
            or coalesce(attributes_str['agentops.task.output'], attributes_str['agentops.entity.output'], '') like '%"type"%"reward"%'
            or len(list_filter(map_keys(attributes_str), lambda k: k ~ '^((trace|session)\.)?(evaluations|annotations)\.')) > 0
            as carries_evaluation
    from spans_unique
)

select
    * exclude (genai_messages, openinference_has_more, graph_node),
    case
        when capture is not null then 'capture'
        when oi_kind in ('EVALUATOR', 'GUARDRAIL') then 'judge'
        when operation in ('chat', 'text_completion', 'generate_content') and (oi_kind is null or oi_kind = 'LLM') then 'llm'
        when oi_kind = 'LLM' then 'llm'
        when operation in ('invoke_agent', 'create_agent') or oi_kind = 'AGENT' then 'agent'
        when operation = 'execute_tool' or oi_kind = 'TOOL' then 'tool'
        when oi_kind = 'CHAIN' or operation in ('invoke_workflow', 'chain') then 'chain'
        else 'other'
    end as span_kind,
    case
        when capture is not null then 'capture'
        when operation is not null and genai_messages is not null and (oi_kind is null or oi_kind = 'LLM')
            and not openinference_has_more then 'genai'
        when oi_kind is not null then 'openinference'
        when operation is not null then 'genai_events'
    end as convention,
    case
        when operation = 'invoke_agent' or oi_kind = 'AGENT' then coalesce(agent_name, graph_node, name)
    end as agent
from marked
