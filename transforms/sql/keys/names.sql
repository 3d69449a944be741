-- How the rewards in new files are called, for a lake whose configuration names none: of log records, and of what spans carry.
-- grain: one row per (name)
-- kind: map
with

carried as (
    select
        list_filter(
            map_keys(attributes_str),
            lambda k: k ~ '^((trace|session)\.)?(evaluations|annotations)\.\d+\.(evaluation|annotation)\.name$'
                or k ~ '^agentlightning\.reward\.\d+\.name$'
        ) as keys,
        attributes_str,
        list_filter(events, lambda e: e.name = 'gen_ai.evaluation.result') as said,
        coalesce(attributes_str['agentops.task.output'], attributes_str['agentops.entity.output']) like '%"type"%"reward"%' as unnamed
    from spans
)

select distinct name
from (
    select attributes_str['gen_ai.evaluation.name'] as name
    from events
    where coalesce(event_name, attributes_str['event.name']) = 'gen_ai.evaluation.result'
    union all
    select attributes_str[key] from (select attributes_str, unnest(keys) as key from carried where len(keys) > 0)
    union all
    select unnest(said).attributes ->> '$."gen_ai.evaluation.name"' from carried where len(said) > 0
    union all
    select 'primary' from carried where unnamed
)
where name <> ''
