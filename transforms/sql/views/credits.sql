-- `credits` with the advantage A = c - b.
-- grain: one row per (trace_id, span_id, choice, recipe)
-- kind: reduce
-- b: none 0; group the mean of q over the group; rloo the mean over the other members; population as rloo over all
-- rollouts of the population; branch the mean of c over the branches that t is one of. Fewer than two members: A is exactly 0.
select
    stored.* exclude (scale, trainable, credited_agent, branches, branch_mean),
    case
        when stored.reward is null then null
        when stored.baseline = 'none' then stored.reward::double
        when stored.baseline = 'branch' then
            case when coalesce(stored.branches, 0) < 2 then 0.0 else (stored.reward - stored.branch_mean)::double end
        when coalesce(baselines.n, 0) < 2 then 0.0
        when stored.baseline = 'group' then
            (stored.reward - (baselines.sum / baselines.n)::decimal(38, 12))::double
            / case when stored.scale = 'std' and baselines.deviation > 0 then baselines.deviation else 1.0 end
        else
            (stored.reward - ((baselines.sum - returns.credit_mean) / (baselines.n - 1))::decimal(38, 12))::double
            / case when stored.scale = 'std' and baselines.deviation > 0 then baselines.deviation else 1.0 end
    end as advantage
from stored_credits as stored
join returns
    on returns.rollout_id = stored.rollout_id and returns.recipe = stored.recipe
    and returns.agent is not distinct from stored.credited_agent
left join baselines
    on baselines.recipe = stored.recipe
    and baselines.agent is not distinct from returns.agent
    and baselines.kind = case when stored.baseline = 'population' then 'population' else 'group' end
    and baselines.key = case when stored.baseline = 'population' then returns.population else stored.group_id end
