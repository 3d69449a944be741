-- Token sequences for training: calls merged along lineage as long as the tokens really continue one another.
-- grain: one row per leaf, an answer that no further call extends
-- kind: bucket
-- A sequence grows only while both calls have ids, the child's prompt ids begin with the parent's prompt and answer ids,
-- and tokenizer and temperature are equal; else a new one begins, and break_reason says why. An answer shared by
-- several leaves is trained in exactly one of them, the first by step, and masked in the others. Narrow: ids of calls and
-- ranges only; token ids stay in `calls`.
with recursive

nodes as (
    select
        credits.trace_id, credits.span_id, credits.choice, credits.rollout_id, credits.step, credits."use", credits.recipe,
        ids.prompt_ids, ids.response_ids[credits.choice + 1] as response_ids,
        calls.tokenizer, calls.temperature,
        calls.lineage_trace_id, calls.lineage_span_id, calls.lineage_choice,
        list_contains(calls.flags, 'retokenized_history') as retokenized_history
    from credits
    join calls using (trace_id, span_id)
    join call_token_ids as ids using (trace_id, span_id)
    where $messages and ids.prompt_ids is not null and len(ids.response_ids[credits.choice + 1]) > 0
),

-- Edges of lineage between calls that are both credited, and whether the tokens continue.
edges as (
    select
        child.trace_id, child.span_id, child.choice,
        parent.trace_id as parent_trace_id, parent.span_id as parent_span_id, parent.choice as parent_choice,
        case
            when child.retokenized_history then 'retokenized_history'
            when child.tokenizer is distinct from parent.tokenizer
                or child.temperature is distinct from parent.temperature then 'ids_differ'
            when child.prompt_ids[1:len(parent.prompt_ids)] <> parent.prompt_ids then 'system_changed'
            when child.prompt_ids[len(parent.prompt_ids) + 1:len(parent.prompt_ids) + len(parent.response_ids)] <> parent.response_ids
                then 'ids_differ'
        end as break_reason
    from nodes as child
    join nodes as parent
        on parent.trace_id = child.lineage_trace_id and parent.span_id = child.lineage_span_id
        and parent.choice = child.lineage_choice and parent.rollout_id = child.rollout_id
),

paths as (
    select
        nodes.trace_id, nodes.span_id, nodes.choice,
        [{'trace_id': nodes.trace_id, 'span_id': nodes.span_id, 'choice': nodes.choice,
            'start': len(nodes.prompt_ids), 'length': len(nodes.response_ids)}] as samples,
        case when edges.break_reason is not null then edges.break_reason
            when nodes.lineage_span_id is not null and edges.trace_id is null then 'ids_missing' end as break_reason
    from nodes
    left join edges using (trace_id, span_id, choice)
    where edges.trace_id is null or edges.break_reason is not null
    union all
    select
        child.trace_id, child.span_id, child.choice,
        list_append(paths.samples, {'trace_id': child.trace_id, 'span_id': child.span_id, 'choice': child.choice,
            'start': len(child.prompt_ids), 'length': len(child.response_ids)}),
        paths.break_reason
    from paths
    join edges on edges.parent_trace_id = paths.trace_id and edges.parent_span_id = paths.span_id
        and edges.parent_choice = paths.choice and edges.break_reason is null
    join nodes as child on child.trace_id = edges.trace_id and child.span_id = edges.span_id and child.choice = edges.choice
),

leaves as (
    select paths.*, nodes.rollout_id, nodes.recipe, nodes.step
    from paths
    join nodes using (trace_id, span_id, choice)
    anti join (select parent_trace_id, parent_span_id, parent_choice from edges where break_reason is null) as extended
        on extended.parent_trace_id = paths.trace_id and extended.parent_span_id = paths.span_id
        and extended.parent_choice = paths.choice
),

spread as (
    select trace_id, span_id, choice, rollout_id, step, unnest(samples) as sample
    from leaves
),

owned as (
    select
        trace_id, span_id, choice, sample,
        row_number() over (
            partition by sample.trace_id, sample.span_id, sample.choice order by step, choice, trace_id, span_id
        ) = 1 as first_leaf
    from spread
),

ranges as (
    select
        owned.trace_id, owned.span_id, owned.choice,
        list({'trace_id': sample.trace_id, 'span_id': sample.span_id, 'choice': sample.choice, 'start': sample.start,
            'length': sample.length, 'train': first_leaf and nodes."use" = 'train'} order by sample.start) as samples
    from owned
    join nodes on nodes.trace_id = sample.trace_id and nodes.span_id = sample.span_id and nodes.choice = sample.choice
    group by all
)

select
    sha256(to_json([leaves.trace_id, leaves.span_id, leaves.choice::varchar])) as trajectory_id,
    leaves.rollout_id, leaves.recipe,
    leaves.trace_id as leaf_trace_id, leaves.span_id as leaf_span_id, leaves.choice as leaf_choice,
    ranges.samples, leaves.break_reason
from leaves
join ranges using (trace_id, span_id, choice)
