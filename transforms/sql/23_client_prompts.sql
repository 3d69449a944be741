-- Prompts of the token records that agents make: each names the call that it continues and the ids that follow it.
-- grain: one row per (trace_id, span_id) of a record whose whole prompt is known; a lost link leaves the rest out
-- kind: bucket
-- A prompt that continues another is that one's prompt, its answer (choice 0) and the record's own ids; lightning.prompt.length
-- says how many ids that must be. A response id that two records claim is continued by none.
with recursive

records as (
    select
        trace_id, span_id, response_id, prompt_token_ids,
        choices[1].token_ids as answer_ids,
        attributes_str['lightning.prompt.prefix_response_id'] as prefix_response_id,
        attributes_int['lightning.prompt.length'] as prompt_length
    from spans_unique
    where capture = 'client'
),

named as (
    select response_id from records where response_id is not null group by response_id having count(*) = 1
),

whole as (
    select trace_id, span_id, response_id, prompt_token_ids as prompt_ids, answer_ids, prompt_length
    from records
    where prefix_response_id is null

    union all

    select
        records.trace_id, records.span_id, records.response_id,
        list_concat(list_concat(whole.prompt_ids, coalesce(whole.answer_ids, [])), coalesce(records.prompt_token_ids, [])),
        records.answer_ids, records.prompt_length
    from whole
    join named using (response_id)
    join records on records.prefix_response_id = whole.response_id and records.response_id <> whole.response_id
)

select trace_id, span_id, prompt_ids
from whole
where prompt_ids is not null and (prompt_length is null or len(prompt_ids) = prompt_length)
