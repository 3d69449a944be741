"""The user's own SQL in a run: rewards, credit, and what a population is. It sees whole rollouts and nothing else.

A reward file holds named selects:

    -- name: quick
    select rollout_id, (end_unix_nano - start_unix_nano) < 5e9 as value from rollouts;

Each returns `value` and/or `label`, one target (`rollout_id`; `trace_id`[, `span_id`[, `choice`]]; `response_id`) and, if it
likes, `name` (else the statement's) and `explanation`. A mistake costs one line that names file and statement.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.config import nearest
from otel_lightning.app.errors import ConfigError
from otel_lightning.transforms.config import BUILTIN, TransformConfig
from otel_lightning.transforms.guard import check_expression, check_select, first_line
from otel_lightning.transforms.steps import SQL, literal

NAMED = re.compile(r"^--\s*name:\s*(.*?)\s*$", re.MULTILINE)
# What a statement may read, and of which rollouts it sees what. A trace of several rollouts belongs to none of them here.
OFFERED = {
    "spans": (
        "select spans.* replace (homes.rollout_id as rollout_id) from temp.main.spans_unique as spans "
        "join homes on homes.trace_id = spans.trace_id"
    ),
    "events": (
        "select events.*, coalesce(homes.rollout_id, named.rollout_id) as rollout_id from temp.main.events as events "
        "left join homes on homes.trace_id = events.trace_id "
        "left join named on named.base_rollout_id = events.attributes_str['lightning.rollout.id'] "
        "and named.attempt = coalesce(events.attributes_int['lightning.attempt'], 1)"
    ),
    "calls": "select * from temp.main.whole_calls",
    "tools": "select * from temp.main.tools",
    "rollouts": "select * from temp.main.rollouts",
    "rewards": (
        "select reward_id, rollout_id, name, value, label, explanation, source, version, identifier, target_kind, "
        "target_trace_id, target_span_id, target_choice, emitted_unix_nano from temp.main.sent_rewards "
        "where unresolved_reason is null and superseded_by is null"
    ),
}
HOMES = """
homes as (
    select trace_id, min(rollout_id) as rollout_id from temp.main.calls
    where rollout_id is not null group by trace_id having count(distinct rollout_id) = 1
),
named as (select base_rollout_id, attempt, min(rollout_id) as rollout_id from temp.main.rollouts group by all)
"""
TARGETS = ("rollout_id", "trace_id", "span_id", "choice", "response_id")
RETURNED = {
    "name": "varchar", "value": "double", "label": "varchar", "explanation": "varchar", "rollout_id": "varchar",
    "trace_id": "varchar", "span_id": "varchar", "choice": "integer", "response_id": "varchar",
}  # fmt: skip
COMPUTED = {**RETURNED, "source": "varchar", "version": "varchar", "statement": "varchar"}
# What credit SQL reads beside the offered tables, and what it returns.
CREDIT_TABLES = {
    "choices": "select * from temp.main.choices",
    "rewards": (
        "select reward_id, rollout_id, name, value, label, source, target_kind, target_trace_id, target_span_id, target_choice, "
        "emitted_unix_nano from temp.main.resolved_rewards where unresolved_reason is null and superseded_by is null"
    ),
    "scopes": "select * from temp.main.scopes",
    **{name: OFFERED[name] for name in ("calls", "tools", "rollouts")},
}
CREDITED = {
    "trace_id": "varchar",
    "span_id": "varchar",
    "choice": "integer",
    "credit": "double",
    "reward_ids": "varchar[]",
}
# How many rollouts, at most half of them, are looked at alone as well: what a statement says of them must not change.
CONTROL_ROLLOUTS = 32


@dataclass(frozen=True)
class Statement:
    """One named select of a reward file."""

    file: str
    source: str
    version: str
    name: str
    text: str

    @property
    def where(self) -> str:
        """How an error begins."""
        return f"{self.file}: statement '{self.name}'"


@dataclass(frozen=True)
class CreditFile:
    """A file that assigns credit."""

    file: str
    source: str
    version: str
    text: str


@dataclass(frozen=True)
class OwnSql:
    """What a configuration brings of SQL, read once before a run."""

    rewards: tuple[Statement, ...] = ()
    credit: CreditFile | None = None
    within: str | None = None
    where: str | None = None

    @classmethod
    def read(cls, config: TransformConfig) -> OwnSql:
        """The files that `config` names; ConfigError in one line when one cannot be read."""
        statements = [statement for path in config.rewards.sql for statement in _reward_file(path)]
        sources = {statement.source: statement.file for statement in statements}
        if len(sources) != len(set(config.rewards.sql)):
            raise ConfigError(
                "rewards.sql: two files have one name, which is what their rewards are known by; rename one"
            )
        credit = None
        if config.credit.sql is not None:
            text = _text(Path(config.credit.sql), "credit.sql")
            credit = CreditFile(config.credit.sql, Path(config.credit.sql).name, _sha256(text), text)
        return cls(tuple(statements), credit, config.credit.within, config.where)

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the SQL: names and hashes of texts, never where the files lie."""
        return {
            "rewards": {statement.source: statement.version for statement in self.rewards},
            "credit": None if self.credit is None else [self.credit.source, self.credit.version],
            "within": self.within,
        }

    @property
    def names(self) -> list[str]:
        """What the statements are called, which is what their rewards are called unless they say otherwise."""
        return [statement.name for statement in self.rewards]

    @property
    def reads(self) -> tuple[str, ...]:
        """Tables of a run that must still be there when the SQL runs."""
        if not self.rewards and self.credit is None:
            return ()
        said = ("calls", "call_facts", "messages", "spoken", "token_ids")
        return ("spans", "span_copies", "events", "sent_rewards", "resolved_rewards", "span_targets", "choices", *said)

    def method(self, config: TransformConfig) -> str:
        """The credit method as tables show it: its name, or the name of the user's file."""
        return config.credit.method if self.credit is None else self.credit.source

    def check(self, connection: duckdb.DuckDBPyConnection) -> None:
        """ConfigError in one line unless every text is one harmless select; before anything is computed."""
        for statement in self.rewards:
            check_select(connection, statement.text, statement.where, OFFERED)
        if self.credit is not None:
            check_select(connection, self.credit.text, self.credit.file, CREDIT_TABLES)
        if self.within is not None:
            check_expression(connection, self.within, "credit.within", "rollouts", row_by_row=True)
        if self.where is not None:
            check_expression(connection, self.where, "where", "rollouts", row_by_row=True)

    def after(self, connection: duckdb.DuckDBPyConnection, table: str, *, rehearsal: bool = False) -> None:
        """Run what belongs behind the step that made `table`; in a rehearsal for the names and types of its columns alone."""
        if table == "rollouts":
            connection.execute("create or replace temp table populations (rollout_id varchar, population varchar)")
            if self.within is not None:
                self._populations(connection)
            connection.execute("create or replace temp table unwanted (rollout_id varchar)")
            if self.where is not None:
                self._unwanted(connection)
        elif table == "sent_rewards":
            columns = ", ".join(f"{name} {kind}" for name, kind in COMPUTED.items())
            connection.execute(f"create or replace temp table computed_rewards ({columns})")
            for statement in self.rewards:
                _compute(connection, statement, rehearsal=rehearsal)
            _hold(connection, {statement.source: statement.file for statement in self.rewards})
        elif table == "choices" and self.credit is not None:
            _assign(connection, self.credit, rehearsal=rehearsal)

    def _populations(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute(
                f"insert into populations select rollout_id, population::varchar from ({_within(self.within)})"
            )
        except duckdb.Error as error:
            raise ConfigError(f"credit.within: {first_line(error)}") from None

    def _unwanted(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute(
                f"insert into unwanted select rollout_id from ({_chosen(self.where)}) where chosen is distinct from true"
            )
        except duckdb.Error as error:
            raise ConfigError(f"where: {first_line(error)}") from None


def _chosen(condition: str | None) -> str:
    return f"select rollout_id, (\n{condition}\n)::boolean as chosen from rollouts"


def _within(expression: str | None) -> str:
    return f"select rollout_id, (\n{expression}\n) as population from rollouts"


def _reward_file(path: str) -> list[Statement]:
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        folder = SQL / "rewards"
        known = sorted(item.name.removesuffix(".sql") for item in folder.iterdir() if item.name.endswith(".sql"))
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean {BUILTIN}{guess}?" if guess else f"there are {', '.join(known)}"
            raise ConfigError(f"rewards.sql: no reward '{path}'; {hint}")
        source, text = path, (folder / f"{name}.sql").read_text(encoding="utf-8")
    else:
        source, text = Path(path).name, _text(Path(path), "rewards.sql")
    marks = list(NAMED.finditer(text))
    before = text[: marks[0].start()] if marks else text
    if re.sub(r"--.*", "", before).strip():
        raise ConfigError(f"{path}: begin each statement with a line '-- name: what_it_measures'")
    if not marks:
        raise ConfigError(f"{path}: holds no statement; write '-- name: …' and a select below it")
    found: list[Statement] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        name = mark[1]
        if not name or any(name == other.name for other in found):
            raise ConfigError(f"{path}: statement '{name}' needs a name of its own")
        body = text[mark.end() : following.start() if following else len(text)]
        found.append(Statement(path, source, _sha256(text), name, body))
    return found


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is not UTF-8 text") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _offer(text: str, tables: dict[str, str], *, control: bool) -> str:
    """`text` over the offered tables alone: a CTE of each name stands before whatever else has it."""
    only = "semi join temp.main.control_rollouts using (rollout_id)" if control else "where rollout_id is not null"
    offered = ",\n".join(f"{name} as (select * from ({select}) {only})" for name, select in tables.items())
    return f"with {HOMES},\n{offered}\nselect * from (\n{text.rstrip().rstrip(';')}\n) as given"


def _rows(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    text: str,
    where: str,
    returned: dict[str, str],
    tables: dict[str, str],
    *,
    rehearsal: bool,
) -> set[str]:
    """`table` is what the user's select returns, cast to what is expected; the names of the columns that it has."""
    connection.execute(
        "create or replace temp table control_rollouts as select rollout_id from rollouts "
        f"order by sha256(rollout_id) limit (select least({CONTROL_ROLLOUTS:d}, (count(*) + 1) // 2) from rollouts)"
    )
    try:
        names = {}
        for control in (True, False):
            # An aggregate has a row where there are none.
            limit = " limit 0" if rehearsal else ""
            connection.execute(f"create or replace temp table given as {_offer(text, tables, control=control)}{limit}")
            names = {row[0].lower(): row[0] for row in connection.execute("describe given").fetchall()}
            for name in names:
                if name not in returned:
                    guess = nearest(name, returned)
                    hint = f"did you mean {guess}?" if guess else f"columns are {', '.join(returned)}"
                    raise ConfigError(f"{where}: unknown column '{name}'; {hint}")
            columns = ", ".join(
                f"{name}::{kind} as {name}" if name in names else f"null::{kind} as {name}"
                for name, kind in returned.items()
            )
            target = f"{table}_control" if control else table
            connection.execute(f"create or replace temp table {target} as select {columns} from given")
    except duckdb.Error as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None
    finally:
        connection.execute("drop table if exists given")
    return set(names)


def _compute(connection: duckdb.DuckDBPyConnection, statement: Statement, *, rehearsal: bool) -> None:
    where = statement.where
    names = _rows(connection, "computed", statement.text, where, RETURNED, OFFERED, rehearsal=rehearsal)
    if not names & {"value", "label"}:
        raise ConfigError(f"{where}: returns neither value nor label")
    if not names & {"rollout_id", "trace_id", "response_id"}:
        raise ConfigError(
            f"{where}: returns no target; return rollout_id, trace_id (with span_id, choice) or response_id"
        )
    for name in ("computed", "computed_control"):
        if "name" not in names:
            connection.execute(f"update {name} set name = $name", {"name": statement.name})
        # What was not measured is no reward.
        connection.execute(f"delete from {name} where value is null and label is null")
    wrong = connection.execute(
        """
        select case
            when name is null or name = '' then 'a row has no name'
            when coalesce(rollout_id, trace_id, response_id) is null then 'a row has no target'
            when (rollout_id is not null)::int + (trace_id is not null)::int + (response_id is not null)::int > 1
                then 'a row has several targets; return one of rollout_id, trace_id, response_id'
            when trace_id is null and (span_id is not null or choice is not null and response_id is null)
                then 'span_id and choice need their trace_id'
        end as problem, count(*)
        from computed group by 1 having problem is not null order by 1
        """
    ).fetchone()
    if wrong:
        raise ConfigError(f"{where}: {wrong[0]} ({wrong[1]} rows)")
    lost = connection.execute(
        f"""
        with {HOMES}
        select coalesce(
            'rollout ' || rollout_id, 'trace ' || trace_id || coalesce(' span ' || span_id, ''), 'response ' || response_id
        )
        from computed
        where not coalesce(case
            when rollout_id is not null then rollout_id in (select rollout_id from temp.main.rollouts)
            when trace_id is not null and span_id is null then trace_id in (select trace_id from homes)
            when trace_id is not null then (trace_id, span_id) in (
                select (targets.trace_id, targets.span_id) from temp.main.span_targets as targets
                where targets.target_trace_id in (select trace_id from temp.main.calls where rollout_id is not null)
            )
            else response_id in (
                select response_id from temp.main.calls
                where not list_contains(flags, 'response_id_reused') group by response_id having count(*) = 1
            )
        end, false)
        order by 1 limit 1
        """
    ).fetchone()
    if lost:
        raise ConfigError(f"{where}: its target is not in any rollout: {lost[0]}")
    _same_alone(connection, where, list(RETURNED), TARGETS)
    connection.execute(
        "insert into computed_rewards by name select *, $source as source, $version as version, $statement as statement from computed",
        {"source": statement.source, "version": statement.version, "statement": statement.name},
    )


def _same_alone(
    connection: duckdb.DuckDBPyConnection, where: str, columns: list[str], targets: tuple[str, ...]
) -> None:
    """ConfigError when what a statement says of the control rollouts depends on which others there are."""
    order = ", ".join(columns)
    homes = f"""
        with {HOMES}
        select {order} from computed where coalesce(
            {"rollout_id, " if "rollout_id" in columns else ""}
            (select rollout_id from homes where homes.trace_id = computed.trace_id)
            {", (select min(rollout_id) from temp.main.calls where calls.response_id = computed.response_id)" if "response_id" in columns else ""}
        ) in (select rollout_id from temp.main.control_rollouts) order by all
    """
    together = connection.execute(homes).fetchall()
    alone = connection.execute(
        homes.replace("from computed", "from computed_control").replace("computed.", "computed_control.")
    ).fetchall()
    if len(together) != len(alone) or not all(map(_alike, together, alone)):
        raise ConfigError(
            f"{where}: what it says of a rollout depends on which others there are; use only rows of the same rollout_id"
        )


def _alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    # Sums of doubles may end differently in another plan; nobody means that.
    return all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in zip(one, other, strict=True)
    )


def _hold(connection: duckdb.DuckDBPyConnection, files: dict[str, str]) -> None:
    """ConfigError when a file gives one target two rewards of a name."""
    twice = connection.execute(
        "select source, list(distinct statement order by statement), name, coalesce(rollout_id, trace_id, response_id) as target "
        "from computed_rewards group by source, name, rollout_id, trace_id, span_id, choice, response_id "
        "having count(*) > 1 order by all limit 1"
    ).fetchone()
    if twice:
        raise ConfigError(
            f"{files[twice[0]]}: statement '{', '.join(twice[1])}': two rows named {literal(twice[2])} for {twice[3]}; return one"
        )


def _assign(connection: duckdb.DuckDBPyConnection, credit: CreditFile, *, rehearsal: bool) -> None:
    names = _rows(connection, "computed", credit.text, credit.file, CREDITED, CREDIT_TABLES, rehearsal=rehearsal)
    for needed in ("trace_id", "span_id", "credit"):
        if needed not in names:
            raise ConfigError(f"{credit.file}: returns no column '{needed}'; return trace_id, span_id, choice, credit")
    wrong = connection.execute(
        """
        select case
            when choices.span_id is null then 'a row is of no answer in choices'
            when not isfinite(credit) or abs(credit) > 1e8 then 'a credit is not a number below 100 million'
            when count(*) over (partition by computed.trace_id, computed.span_id, coalesce(computed.choice, 0)) > 1
                then 'two rows are of one answer'
        end as problem, computed.trace_id, computed.span_id
        from computed
        left join choices
            on choices.trace_id = computed.trace_id and choices.span_id = computed.span_id
            and choices.choice = coalesce(computed.choice, 0)
        qualify problem is not null order by all limit 1
        """
    ).fetchone()
    if wrong:
        raise ConfigError(f"{credit.file}: {wrong[0]} (trace {wrong[1]}, span {wrong[2]})")
    _same_alone(connection, credit.file, [name for name in CREDITED if name != "reward_ids"], ("trace_id", "span_id"))
    connection.execute(
        """
        create or replace temp table assigned as
        select choices.trace_id, choices.span_id, choices.choice,
            computed.credit::decimal(38, 12) as credit,
            coalesce(computed.reward_ids, []) as reward_ids
        from choices
        left join computed
            on choices.trace_id = computed.trace_id and choices.span_id = computed.span_id
            and choices.choice = coalesce(computed.choice, 0)
        """
    )
