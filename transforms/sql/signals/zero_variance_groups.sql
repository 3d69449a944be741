-- Groups whose members all earned the same: nothing can be learnt from comparing them.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Of at least 10 groups of two or more: above half worth a word, above nine in ten high.
with

shares as (
    select count(*) as n, (count(*) filter (where deviation = 0))::double / count(*) as share
    from baselines
    where kind = 'group' and n >= 2
)

select
    'zero_variance_groups' as signal, case when share > 0.9 then 'high' else 'low' end as severity, 'all groups' as subject,
    share as value, case when share > 0.9 then 0.9 else 0.5 end as threshold,
    printf('%d of %d groups have equal rewards; tasks are too easy, too hard, or sampled without temperature',
        round(share * n)::bigint, n) as detail
from shares
where n >= 10 and share > 0.5
