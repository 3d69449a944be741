-- The call of a response id, where it is of one alone: what a reward on the response stands on.
-- grain: one row per response_id
-- kind: bucket
select response_id, min(trace_id) as trace_id, min(span_id) as span_id
from calls
where response_id is not null and not list_contains(flags, 'response_id_reused')
group by response_id
having count(*) = 1
