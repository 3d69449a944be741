-- `pairs`: preferences with their messages, for learning from comparisons.
-- grain: one row per (pair_id)
-- kind: reduce
-- kind call: `prompt_messages` is the common prompt, `chosen` and `rejected` are one answer each. kind rollout: the prompt is what
-- the two conversations begin with alike, chosen and rejected what follows; of that only assistant messages are trained.
with

sides as (
    select
        stored.pair_id, stored.kind,
        chosen.prompt_messages::json as prompt, chosen.tools,
        from_json(chosen.prompt_messages, '["JSON"]') as chosen_prompt,
        from_json(rejected.prompt_messages, '["JSON"]') as rejected_prompt,
        list_append(from_json(chosen.prompt_messages, '["JSON"]'), (chosen.response_messages::json -> stored.chosen_choice)) as chosen_all,
        list_append(from_json(rejected.prompt_messages, '["JSON"]'), (rejected.response_messages::json -> stored.rejected_choice)) as rejected_all
    from stored_pairs as stored
    join calls as chosen on chosen.trace_id = stored.chosen_trace_id and chosen.span_id = stored.chosen_span_id
    join calls as rejected on rejected.trace_id = stored.rejected_trace_id and rejected.span_id = stored.rejected_span_id
),

cut as (
    select
        *,
        case when kind = 'call' then len(chosen_prompt)
            else coalesce(
                list_min(list_filter(
                    range(1, least(len(chosen_all), len(rejected_all)) + 1),
                    lambda n: chosen_all[n]::varchar <> rejected_all[n]::varchar
                )) - 1,
                least(len(chosen_all), len(rejected_all))
            ) end as alike
    from sides
)

select
    stored.pair_id, stored.kind, stored.recipe, stored.task_id,
    to_json(cut.chosen_all[1:cut.alike])::varchar as prompt_messages,
    cut.tools,
    to_json(cut.chosen_all[cut.alike + 1:])::varchar as chosen,
    to_json(case when stored.kind = 'call' then cut.rejected_all[len(cut.rejected_prompt) + 1:]
        else cut.rejected_all[cut.alike + 1:] end)::varchar as rejected,
    stored.margin, stored.chosen_id, stored.rejected_id, stored.weight, stored.split
from stored_pairs as stored
join cut using (pair_id)
