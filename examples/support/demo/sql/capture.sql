-- Are the agents' own traces the data? Credited answers by where they came from, and tools tied to the call that asked.
-- grain: one row
select
    (select count(*) from samples where split = 'train' and "use" = 'train') as samples,
    (select count(*) from samples where split = 'train' and "use" = 'train' and convention <> 'serve') as agent_side,
    (select count(*) from tools) as tools,
    (select count(*) from tools where call_span_id is not null) as tools_tied,
    (select count(*) from calls) as calls,
    (select count(*) from rollouts) as episodes,
    (select count(*) from (select distinct trace_id, span_id from spans)) as spans
