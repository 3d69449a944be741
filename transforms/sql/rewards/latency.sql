-- How long the model took in an episode, in seconds: a cost, so weigh it negatively (rewards.train: {latency_s: -0.01}).
-- grain: one row per (rollout_id)
-- kind: bucket
-- An episode with a call of unknown duration has none.
-- name: latency_s
select
    rollout_id,
    case when count(latency_ms) = count(*) then (sum(latency_ms::decimal(18, 3)) * 0.001::decimal(4, 3))::double end as value
from calls
where not judge
group by rollout_id
