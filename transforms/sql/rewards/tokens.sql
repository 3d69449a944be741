-- How many tokens an episode read and wrote: costs, so weigh them negatively.
-- grain: one row per (rollout_id, name)
-- kind: bucket
-- An episode with a call that does not say has none.
-- name: tokens
select rollout_id, 'prompt_tokens' as name, case when count(prompt_tokens) = count(*) then sum(prompt_tokens)::double end as value
from calls
where not judge
group by rollout_id
union all
select rollout_id, 'completion_tokens', case when count(completion_tokens) = count(*) then sum(completion_tokens)::double end
from calls
where not judge
group by rollout_id
