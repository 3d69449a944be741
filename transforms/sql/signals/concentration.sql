-- One user gives most of what is learnt from: of the reward, or of the tokens.
-- grain: one row per (signal, subject)
-- kind: reduce
-- Of at least 10 users, the share of the first in all positive reward and in all tokens answered: above a quarter worth a word,
-- above half high.
with

users as (
    select rollout_id, min(user_id) as user_id, sum(length) as tokens
    from answers
    where user_id is not null
    group by rollout_id
),

earned as (
    select rollout_id, max(reward) as reward from returns where member group by rollout_id
),

given as (
    select
        users.user_id,
        sum(case when earned.reward > 0 then earned.reward end) as reward,
        sum(users.tokens) as tokens
    from users
    join earned using (rollout_id)
    group by users.user_id
),

parts as (
    select 'reward' as what, user_id, reward::double as part, (sum(reward) over ())::double as whole, count(*) over () as n from given
    union all
    select 'length', user_id, tokens::double, (sum(tokens) over ())::double, count(*) over () from given
)

select
    'concentration' as signal, case when part / whole > 0.5 then 'high' else 'low' end as severity,
    what || ' of user ' || user_id as subject,
    part / whole as value, case when part / whole > 0.5 then 0.5 else 0.25 end as threshold,
    printf('one of %d users gives %.0f%% of all %s', n, 100 * part / whole, case when what = 'reward' then 'reward' else 'tokens' end)
        as detail
from parts
where n >= 10 and whole > 0 and part / whole > 0.25
