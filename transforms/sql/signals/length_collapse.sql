-- Answers of a policy version became much shorter or much longer than those of the one before.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Mean length in tokens of versions with at least 50 answers: beyond a factor of two worth a word, beyond three high.
with

means as (
    select policy_version, sum(length)::double / count(*) as length
    from answers
    where policy_version is not null and length is not null
    group by policy_version
    having count(*) >= 50
),

steps as (
    select
        lag(policy_version) over (order by policy_version) as before, policy_version as after,
        lag(length) over (order by policy_version) as was, length,
        greatest(length, lag(length) over (order by policy_version))
            / greatest(least(length, lag(length) over (order by policy_version)), 1) as factor
    from means
)

select
    'length_collapse' as signal, case when factor > 3 then 'high' else 'low' end as severity, before || ' → ' || after as subject,
    factor as value, case when factor > 3 then 3 else 2 end::double as threshold,
    printf('answers went from %.1f to %.1f tokens', was, length) as detail
from steps
where factor > 2
