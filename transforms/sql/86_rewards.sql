-- The table `rewards`: every evaluation and computed reward, what it stands on, and what became of it.
-- grain: one row per (reward_id, rollout_id)
-- kind: bucket
-- flags say in one place why a reward counts for nothing; reward_unused: it stands, its name is trained on, and the credit
-- method gave it to no call.
with

used as (
    select distinct unnest(reward_ids) as reward_id from credits where reward is not null
)

select
    rewards.*,
    list_filter([
        rewards.unresolved_reason,
        case when rewards.superseded_by is not null then 'superseded' end,
        case when rewards.unresolved_reason is null and members.rollout_id is not null and used.reward_id is null
            and reward_names.weight is not null and (rewards.superseded_by is null or reward_names.combine <> 'last')
            then 'reward_unused' end
    ], lambda flag: flag is not null) as flags
from resolved_rewards as rewards
left join members on members.rollout_id = rewards.rollout_id and members.dropped is null
left join reward_names on reward_names.name = rewards.name
left join used on used.reward_id = rewards.reward_id
