-- `trajectories`: token sequences with everything a trainer needs, assembled from narrow ranges and the calls they name.
-- grain: one row per (trajectory_id)
-- kind: reduce
-- token_ids, loss_mask, logprobs and advantages have one length; outside trained answers mask and advantage are 0. An
-- advantage is one number an answer, times its own mask.
with

parts as (
    select
        stored.trajectory_id, sample,
        calls.response_logprobs[sample.choice + 1] as logprobs,
        calls.policy_version,
        credits.advantage, credits.reward, credits.weight,
        calls.truncated,
        coalesce(lag(sample.start + sample.length) over (partition by stored.trajectory_id order by sample.start), 0) as gap_start,
        sample.train and credits.advantage is not null as train
    from (select trajectory_id, unnest(samples) as sample from stored_trajectories) as stored
    join calls on calls.trace_id = sample.trace_id and calls.span_id = sample.span_id
    join credits on credits.trace_id = sample.trace_id and credits.span_id = sample.span_id and credits.choice = sample.choice
),

assembled as (
    select
        trajectory_id,
        list(sha256(to_json([sample.trace_id, sample.span_id, sample.choice::varchar])) order by sample.start) as sample_ids,
        list(sample.start order by sample.start) as starts,
        list(sample.length order by sample.start) as lengths,
        list(train order by sample.start) as trained,
        flatten(list(list_concat(
            list_resize([]::tinyint[], sample.start - gap_start, 0::tinyint),
            list_resize([]::tinyint[], sample.length, train::tinyint)
        ) order by sample.start)) as loss_mask,
        flatten(list(list_concat(
            list_resize([]::double[], sample.start - gap_start, 0::double),
            coalesce(logprobs, list_resize([]::double[], sample.length, null))
        ) order by sample.start)) as logprobs,
        flatten(list(list_concat(
            list_resize([]::double[], sample.start - gap_start, 0::double),
            list_resize([]::double[], sample.length, case when train then advantage else 0 end)
        ) order by sample.start)) as advantages,
        list(policy_version order by sample.start) as policy_versions,
        arg_max(reward, sample.start) as reward,
        max(weight) as weight,
        bool_or(truncated) as truncated,
        bool_or(train) as has_trained
    from parts
    group by trajectory_id
),

lengths as (
    select rollout_id, count(*) as n_steps from calls where not judge group by rollout_id
)

select
    stored.trajectory_id, stored.rollout_id, stored.recipe, leaf.revision,
    rollouts.task_id, rollouts.group_id,
    assembled.sample_ids, assembled.starts, assembled.lengths, assembled.trained,
    list_concat(leaf.prompt_ids, leaf.response_ids[stored.leaf_choice + 1]) as token_ids,
    assembled.loss_mask, assembled.logprobs, assembled.advantages, assembled.policy_versions,
    leaf.token_source, leaf.temperature, leaf.sampling, leaf.tokenizer, leaf.logprobs_mode,
    assembled.reward, lengths.n_steps, stored.break_reason, coalesce(assembled.truncated, false) as truncated,
    assembled.weight, rollouts.split
from stored_trajectories as stored
join assembled using (trajectory_id)
join calls as leaf on leaf.trace_id = stored.leaf_trace_id and leaf.span_id = stored.leaf_span_id
join rollouts on rollouts.rollout_id = stored.rollout_id
join lengths on lengths.rollout_id = stored.rollout_id
