-- Calls as they are stored: with what was said in them, their tools and their token ids.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- stored: view
-- No step compares text: it goes from where the conventions' text was put together straight into the file.
select
    calls.* replace (
        case when $messages then coalesce(prompts.prompt_messages, '[]') end as prompt_messages,
        case when $messages then coalesce(answers.response_messages, '[]') end as response_messages,
        case when $messages then facts.tools end as tools,
        case when $messages then ids.prompt_ids end as prompt_ids,
        case when $messages then ids.response_ids end as response_ids,
        case when $messages then ids.response_logprobs end as response_logprobs
    )
from calls
join call_facts as facts using (trace_id, span_id)
join call_token_ids as ids using (trace_id, span_id)
left join messages as prompts on $messages and prompts.trace_id = facts.prompt_trace_id and prompts.span_id = facts.prompt_span_id
left join spoken as answers on $messages and answers.trace_id = facts.answer_trace_id and answers.span_id = facts.answer_span_id
