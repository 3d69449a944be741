-- Token ids and log-probabilities, read once: of LLM spans and of token records (plane B).
-- grain: one row per (trace_id, span_id) of an LLM or capture span that has any
-- kind: bucket
-- Lists a choice. Steps carry how many there are (30_call_facts) and join the lists where they are looked into.
select
    spans.trace_id, spans.span_id,
    coalesce(case when spans.capture = 'client' then client_prompts.prompt_ids else spans.prompt_token_ids end, kinds.prompt_token_ids)
        as prompt_ids,
    list_transform(coalesce(spans.choices, kinds.token_choices), lambda c: c.token_ids) as response_ids,
    list_transform(coalesce(spans.choices, kinds.token_choices), lambda c: c.logprobs) as response_logprobs
from spans_unique as spans
join span_kinds as kinds using (trace_id, span_id)
left join client_prompts using (trace_id, span_id)
where kinds.span_kind in ('llm', 'capture')
    and (
        spans.prompt_token_ids is not null or client_prompts.prompt_ids is not null or kinds.prompt_token_ids is not null
        or spans.choices is not null or kinds.token_choices is not null
    )
