-- `funnel`: spans → calls → trainable → rewarded → credited → in a group → trained tokens, and why each other fell out.
-- grain: one row per (stage, reason)
-- kind: reduce
-- reason NULL is what remained at that stage.
with

-- Under method agent a rollout has several returns; what the funnel asks of them they have in common.
whole as (
    select rollout_id, bool_or(member) as member, max(dropped) as dropped from returns group by rollout_id
),

call_state as (
    select
        calls.trace_id, calls.span_id, calls.rollout_id, calls.trainable, calls.untrainable_reason,
        coalesce(list_sum(list_transform(calls.response_ids, lambda ids: len(ids))), calls.completion_tokens, 0) as tokens,
        whole.member, whole.dropped,
        credits.reward, credits.advantage, credits."use", coalesce(calls.truncated, false) as truncated,
        rollouts.split
    from calls
    left join whole on whole.rollout_id = calls.rollout_id
    left join rollouts on rollouts.rollout_id = calls.rollout_id
    left join (select * from credits where choice = 0) as credits using (trace_id, span_id)
),

stages as (
    select 1 as place, 'calls' as stage, null as reason, * from call_state
    union all
    select 2, 'trainable', case when trainable then null else coalesce(untrainable_reason, 'unknown') end, * from call_state
    union all
    select 3, 'member', case when coalesce(member, false) then null else coalesce(dropped, 'no_rollout') end, *
    from call_state where trainable
    union all
    select 4, 'rewarded', case when reward is null then 'no_reward' end, * from call_state where trainable and member
    union all
    select 5, 'credited', case when advantage = 0 then 'zero_advantage' end, *
    from call_state where trainable and member and reward is not null
    union all
    select 6, 'train_split', case when split <> 'train' then split when "use" <> 'train' then case when truncated then 'truncated' else 'masked' end end, *
    from call_state where trainable and member and reward is not null
)

select 0 as place, 'spans' as stage, null as reason, sum(spans)::bigint as spans, 0::bigint as calls, count(*)::bigint as rollouts, 0::bigint as tokens
from rollouts
union all
select
    place, stage, reason, null::bigint, count(*)::bigint, count(distinct rollout_id)::bigint, sum(tokens)::bigint
from stages
group by place, stage, reason
union all
select 7, 'rewards', unresolved_reason, null, count(*)::bigint, count(distinct rollout_id)::bigint, null
from rewards
where unresolved_reason is not null
group by unresolved_reason
union all
select 8, 'rewards', 'reward_unused', null, count(*)::bigint, count(distinct rollout_id)::bigint, null
from rewards
where list_contains(flags, 'reward_unused')
having count(*) > 0
order by place, reason nulls first
