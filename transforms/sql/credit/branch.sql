-- An answer is credited with what came of it: the mean over the ends of the conversation that it leads to.
--   c(t) = mean over the leaves l at or below t, of those that earned anything on the way, of Σ_{s from t to l} x(s)
--   x = own + tool + span + the rewards of traces that began below the same branch; the prefix and R are left out
--   b(t) = mean of c over the branches, t's own included: the answers of calls with one lineage parent and equal prompt
-- The Monte Carlo value of a state reached by alternatives continued from it: Kazemnejad et al., VinePPO, 2024, eq. 6; the
-- branches as their own baseline: Hou et al., TreeRL, 2025. The tree is taken from its deepest level upwards, each answer once.
-- grain: one row per (trace_id, span_id, choice)
-- kind: bucket
with recursive

nodes as (
    select
        choices.rollout_id, choices.trace_id, choices.span_id, choices.choice, choices.step, choices.is_main, choices.trainable,
        choices.own_score, choices.own_reward_ids, choices.tool_score, choices.tool_reward_ids,
        calls.prompt_hash,
        parent.trace_id as parent_trace_id, parent.span_id as parent_span_id, parent.choice as parent_choice
    from choices
    join calls using (trace_id, span_id)
    left join choices as parent
        on parent.trace_id = calls.lineage_trace_id and parent.span_id = calls.lineage_span_id
        and parent.choice = calls.lineage_choice and parent.rollout_id = choices.rollout_id
),

alternatives as (
    select
        *,
        count(*) over (
            partition by rollout_id, parent_trace_id, parent_span_id, parent_choice, prompt_hash
        ) > 1 as branches
    from nodes
),

-- From the beginning downwards: how deep a node lies, and where the branch that it lies in begins.
walk as (
    select
        trace_id, span_id, choice, 0 as depth,
        case when branches then to_json([trace_id, span_id, choice::varchar])::varchar end as branch
    from alternatives
    where parent_span_id is null

    union all

    select
        child.trace_id, child.span_id, child.choice, walk.depth + 1,
        case when child.branches then to_json([child.trace_id, child.span_id, child.choice::varchar])::varchar else walk.branch end
    from walk
    join alternatives as child
        on child.parent_trace_id = walk.trace_id and child.parent_span_id = walk.span_id and child.parent_choice = walk.choice
),

-- A trace that began in another branch than it ended in is part of the prefix of the one where it ended.
begun as (
    select nodes.rollout_id, nodes.trace_id, min_by(coalesce(walk.branch, ''), (nodes.step, nodes.choice)) filter (where nodes.is_main) as branch
    from nodes
    join walk using (trace_id, span_id, choice)
    group by nodes.rollout_id, nodes.trace_id
),

earning as (
    select
        alternatives.rollout_id, alternatives.trace_id, alternatives.span_id, alternatives.choice, alternatives.prompt_hash,
        alternatives.parent_trace_id, alternatives.parent_span_id, alternatives.parent_choice,
        alternatives.branches, alternatives.trainable, walk.depth,
        list_filter([
            alternatives.own_score, alternatives.tool_score,
            case when alternatives.is_main then earned.span end::decimal(38, 9),
            case when alternatives.is_main and begun.branch = walk.branch then earned.trace end::decimal(38, 9)
        ], lambda part: part is not null) as parts,
        list_concat(
            list_concat(coalesce(alternatives.own_reward_ids, []), coalesce(alternatives.tool_reward_ids, [])),
            list_concat(
                case when alternatives.is_main then earned.span_ids else [] end,
                case when alternatives.is_main and begun.branch = walk.branch then earned.trace_ids else [] end
            )
        ) as reward_ids
    from alternatives
    join walk using (trace_id, span_id, choice)
    join earned on earned.trace_id = alternatives.trace_id and earned.span_id = alternatives.span_id
    join begun on begun.rollout_id = alternatives.rollout_id and begun.trace_id = alternatives.trace_id
),

placed as (
    select
        *,
        case when len(parts) > 0 then list_sum(parts)::decimal(38, 9) end as x,
        max(depth) over () as deepest
    from earning
),

-- leaves: ends at or below; paid: those with anything earned on the way; total: the sum over them.
up as (
    select
        trace_id, span_id, choice, parent_trace_id, parent_span_id, parent_choice, depth,
        1::bigint as leaves,
        case when x is null then 0 else 1 end::bigint as paid,
        coalesce(x, 0)::decimal(38, 9) as total
    from placed
    where depth = deepest

    union all

    select
        placed.trace_id, placed.span_id, placed.choice, placed.parent_trace_id, placed.parent_span_id, placed.parent_choice,
        placed.depth,
        coalesce(below.leaves, 1)::bigint,
        case when placed.x is not null then coalesce(below.leaves, 1) else coalesce(below.paid, 0) end::bigint,
        (coalesce(below.total, 0) + coalesce(placed.x, 0) * coalesce(below.leaves, 1)::decimal(18, 0))::decimal(38, 9)
    from (select distinct depth - 1 as depth from up) as level
    join placed using (depth)
    left join (
        select
            parent_trace_id, parent_span_id, parent_choice,
            sum(leaves) as leaves, sum(paid) as paid, sum(total)::decimal(38, 9) as total
        from up
        group by all
    ) as below
        on below.parent_trace_id = placed.trace_id and below.parent_span_id = placed.span_id
        and below.parent_choice = placed.choice
),

credited as (
    select
        placed.*,
        case when up.paid > 0 then (up.total / up.paid)::decimal(38, 12) end as credit
    from placed
    join up using (trace_id, span_id, choice)
),

alike as (
    select
        rollout_id, parent_trace_id, parent_span_id, parent_choice, prompt_hash,
        count(*) as branches,
        (sum(credit) / count(*))::decimal(38, 12) as branch_mean
    from credited
    where branches and trainable and credit is not null
    group by all
)

select
    credited.trace_id, credited.span_id, credited.choice, credited.credit, credited.reward_ids,
    coalesce(alike.branches, 0) as branches,
    alike.branch_mean
from credited
left join alike
    on credited.branches and alike.rollout_id = credited.rollout_id and alike.prompt_hash = credited.prompt_hash
    and alike.parent_trace_id is not distinct from credited.parent_trace_id
    and alike.parent_span_id is not distinct from credited.parent_span_id
    and alike.parent_choice is not distinct from credited.parent_choice
