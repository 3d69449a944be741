-- Episodes acted by a policy version although several newer ones were already acting: what they teach is out of date.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Of at least 20 training episodes with a version, those behind by two versions or more when they began: above one in five worth a
-- word, above half high.
with

versions as (
    select policy_version, row_number() over (order by policy_version) as number
    from (select distinct policy_version from rollouts where policy_version is not null and split = 'train')
),

begun as (
    select
        rollouts.rollout_id, versions.number,
        max(versions.number) over (
            order by rollouts.start_unix_nano range between unbounded preceding and current row
        ) as newest
    from rollouts
    join versions using (policy_version)
    where rollouts.split = 'train'
),

shares as (
    select count(*) as n, (count(*) filter (where newest - number >= 2))::double / count(*) as share from begun
)

select
    'stale_policy' as signal, case when share > 0.5 then 'high' else 'low' end as severity, 'training episodes' as subject,
    share as value, case when share > 0.5 then 0.5 else 0.2 end as threshold,
    printf('%d of %d episodes were acted two or more versions behind', round(share * n)::bigint, n) as detail
from shares
where n >= 20 and share > 0.2
