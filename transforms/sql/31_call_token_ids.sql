-- Token ids and log-probabilities of each call, from wherever its facts say they are.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- stored: view
select facts.trace_id, facts.span_id, prompts.prompt_ids, answers.response_ids, answers.response_logprobs
from call_facts as facts
left join token_ids as prompts
    on prompts.trace_id = facts.prompt_ids_trace_id and prompts.span_id = facts.prompt_ids_span_id
left join token_ids as answers
    on answers.trace_id = facts.response_ids_trace_id and answers.span_id = facts.response_ids_span_id
