-- One policy version answers differently than the one before: how far the distribution of answer lengths moved.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Population stability index Σ (p − q) ln(p / q) over powers of two, half a count added to each, between consecutive versions with
-- at least 50 answers: above 0.25 worth a word, above 2 high.
with

counted as (
    select policy_version, floor(log2(length + 1))::integer as size, count(*) as n
    from answers
    where policy_version is not null and length is not null
    group by all
),

versions as (
    select policy_version, sum(n) as n, lag(policy_version) over (order by policy_version) as before
    from counted
    group by policy_version
    having sum(n) >= 50
),

sizes as (
    select distinct size from counted
),

shares as (
    select
        versions.policy_version, sizes.size,
        (coalesce(counted.n, 0) + 0.5)::double / (versions.n + 0.5 * (select count(*) from sizes))::double as share
    from versions
    cross join sizes
    left join counted on counted.policy_version = versions.policy_version and counted.size = sizes.size
),

moved as (
    select
        versions.before, versions.policy_version as after,
        sum((later.share - earlier.share) * ln(later.share / earlier.share) order by later.size) as stability
    from versions
    join shares as later using (policy_version)
    join shares as earlier on earlier.policy_version = versions.before and earlier.size = later.size
    group by all
)

select
    'version_drift' as signal, case when stability > 2 then 'high' else 'low' end as severity, before || ' → ' || after as subject,
    stability as value, case when stability > 2 then 2 else 0.25 end::double as threshold,
    'the lengths of its answers are distributed differently (population stability index)' as detail
from moved
where stability > 0.25
