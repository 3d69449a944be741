-- Which answers, and which whole episodes, are preferred to which others of the same task: ids and margins alone.
-- grain: one row per (pair_id)
-- kind: reduce
-- call: equal prompt, unequal answers, credits that differ by at least $min_margin; two answers of one call count. rollout: two
-- episodes that begin alike and go on differently. Per prompt the $k of largest margin, then by pair_id, across the rollouts of
-- one task, split and recipe. Only the 2 k best and the 2 k worst answers of a prompt are held against each other, at most k of
-- one wording: no pair outside of these can be among the k largest, unless credits tie, and then sample ids decide.
with

judged as (
    select
        answers.trace_id, answers.span_id, answers.choice, answers.rollout_id, answers.step,
        answers.prompt_hash, answers.opening_hash, answers.response_hash, answers.conversation_hash,
        credits.recipe, credits.reward, credits.weight, rollouts.task_id, rollouts.split
    from answers
    join credits using (trace_id, span_id, choice)
    join rollouts on rollouts.rollout_id = answers.rollout_id
    where credits."use" = 'train' and credits.reward is not null and $k > 0
),

-- An episode is judged by q; where its agents are judged apart, by its reward.
episodes as (
    select
        rollout_id, recipe,
        case when count(*) = 1 then max(credit_mean) else max(reward)::decimal(38, 12) end as credit
    from returns
    where member
    group by rollout_id, recipe
),

ends as (
    select judged.* replace (episodes.credit as reward)
    from judged
    join episodes using (rollout_id, recipe)
    where episodes.credit is not null
    qualify row_number() over (partition by judged.rollout_id, judged.recipe order by judged.step desc, judged.choice, judged.span_id) = 1
),

candidates as (
    select
        'call' as kind, recipe, task_id, split, prompt_hash as state, response_hash as said,
        sha256(to_json([trace_id, span_id, choice::varchar])) as id,
        trace_id, span_id, choice, reward, weight
    from judged
    union all
    select
        'rollout', recipe, task_id, split, opening_hash, conversation_hash, rollout_id,
        trace_id, span_id, choice, reward, weight
    from ends
),

ranked as (
    select
        *,
        row_number() over (partition by kind, recipe, task_id, split, state, said order by reward desc, id) as best,
        row_number() over (partition by kind, recipe, task_id, split, state, said order by reward, id) as worst
    from (
        select *
        from candidates
        window same as (partition by kind, recipe, task_id, split, state)
        qualify min(reward) over same < max(reward) over same and min(said) over same < max(said) over same
    )
),

highs as (
    select *
    from ranked
    where best <= $k
    qualify row_number() over (partition by kind, recipe, task_id, split, state order by reward desc, id) <= 2 * $k
),

lows as (
    select *
    from ranked
    where worst <= $k
    qualify row_number() over (partition by kind, recipe, task_id, split, state order by reward, id) <= 2 * $k
),

formed as (
    select
        sha256(to_json([highs.kind, highs.recipe, highs.id, lows.id])) as pair_id,
        highs.kind, highs.recipe, highs.task_id, highs.split, highs.state,
        (highs.reward - lows.reward)::double as margin,
        (highs.weight * lows.weight)::double as weight,
        highs.id as chosen_id, lows.id as rejected_id,
        highs.trace_id as chosen_trace_id, highs.span_id as chosen_span_id, highs.choice as chosen_choice,
        lows.trace_id as rejected_trace_id, lows.span_id as rejected_span_id, lows.choice as rejected_choice
    from highs
    join lows
        on lows.kind = highs.kind and lows.recipe = highs.recipe and lows.task_id = highs.task_id
        and lows.split = highs.split and lows.state = highs.state
    where highs.said <> lows.said and highs.reward > lows.reward
        and highs.reward - lows.reward >= $min_margin::decimal(18, 9)
)

select * exclude (state)
from formed
qualify row_number() over (partition by kind, recipe, task_id, split, state order by margin desc, pair_id) <= $k
