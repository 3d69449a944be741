-- Spans as sent, each once.
-- grain: one row per (trace_id, span_id)
-- kind: bucket
-- stored: view
select spans.*, coalesce(span_copies.conflicting_copies, false) as conflicting_copies
from spans
left join span_copies on span_copies.row = spans.rowid
where coalesce(span_copies.kept, true)
