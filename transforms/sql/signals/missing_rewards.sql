-- Episodes that could be trained on but were never rewarded.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Per service with at least 10 such episodes: above one in five worth a word, above half high.
with

episodes as (
    select returns.rollout_id, coalesce(max(rollouts.service_name), 'unknown service') as service, bool_or(returns.credit_mean is not null) as rewarded
    from returns
    join rollouts using (rollout_id)
    where returns.member and returns.trainable_calls > 0
    group by returns.rollout_id
),

shares as (
    select service, count(*) as n, (count(*) filter (where not rewarded))::double / count(*) as share
    from episodes
    group by service
)

select
    'missing_rewards' as signal, case when share > 0.5 then 'high' else 'low' end as severity, service as subject,
    share as value, case when share > 0.5 then 0.5 else 0.2 end as threshold,
    printf('%d of %d episodes have no reward that counts', round(share * n)::bigint, n) as detail
from shares
where n >= 10 and share > 0.2
