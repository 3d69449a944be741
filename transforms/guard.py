"""SQL that a user wrote, made safe to run beside ours: one select over tables that it is offered, and nothing else.

Two walls. The connection is locked: files outside the lake cannot be touched and no setting can be changed. And the
text is parsed before it runs: one SELECT whose tables are those it may see, that calls no function which reads files,
runs other SQL, asks for the time or throws dice. What it computes is a function of the rows it was given.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import duckdb

from otel_lightning.app.config import nearest
from otel_lightning.app.errors import ConfigError

# Table functions that make rows of their arguments alone; every other one reads files or the engine's own state.
TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "json_each", "json_tree"}
# What says which tables and columns there are; for people who ask, not for what is computed.
CATALOG_FUNCTIONS = {"duckdb_tables", "duckdb_views", "duckdb_columns", "duckdb_functions", "duckdb_types"}
# The same rows must give the same answer, in any session and on any day.
NOT_A_FUNCTION_OF_ROWS = {
    "age", "currval", "current_database", "current_date", "current_localtime", "current_localtimestamp", "current_query",
    "current_query_id", "current_connection_id", "current_transaction_id", "current_role", "current_schema", "current_schemas",
    "current_setting", "current_time", "current_timestamp", "current_user", "gen_random_uuid", "get_current_time",
    "get_current_timestamp", "getenv", "getvariable", "in_search_path", "localtime", "localtimestamp", "nextval", "now", "pg_sleep",
    "query", "query_table", "random", "session_user", "setseed", "setval", "sleep_ms", "stats", "today", "transaction_timestamp",
    "txid_current", "user", "uuid", "uuidv4", "uuidv7", "version", "write_log", "json_execute_serialized_sql",
}  # fmt: skip
KEYWORDS_THAT_CALL = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_user", "session_user", "user",
    "current_role", "current_schema",
}  # fmt: skip
QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}


def lock(connection: duckdb.DuckDBPyConnection, *folders: Path) -> None:
    """From here on the connection reaches no file outside `folders`, loads nothing and takes no setting.

    What stands in a folder as a link (`spans` on another disk) was put there by its owner and is reached too.
    """
    from otel_lightning.transforms.steps import path_list

    linked = [item.resolve() for folder in folders for item in sorted(folder.iterdir()) if item.is_symlink()]
    connection.execute(f"set allowed_directories = {path_list([str(path.absolute()) for path in (*folders, *linked)])}")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def check_select(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    where: str,
    tables: Collection[str] | None,
    *,
    row_by_row: bool = False,
) -> None:
    """ConfigError in one line, beginning with `where`, unless `text` is one harmless SELECT over `tables`.

    Without `tables` any table that the connection knows may be read, as long as it is no file. With `row_by_row`
    neither subqueries nor windows: each row's answer is its own.
    """
    tree = _parse(connection, text, where)
    known = None if tables is None else set(tables)
    named = {str(item["key"]).lower() for node in _nodes(tree) for item in _entries(node)}
    for node in _nodes(tree):
        kind = str(node.get("type") or "")
        if kind == "BASE_TABLE":
            _check_table(node, where, named, known)
        elif kind == "TABLE_FUNCTION":
            function = str((node.get("function") or {}).get("function_name") or "").lower()
            if function not in (TABLE_FUNCTIONS if known is not None else TABLE_FUNCTIONS | CATALOG_FUNCTIONS):
                raise ConfigError(f"{where}: {function}() is not allowed; only tables can be read")
        elif kind == "SHOW_REF" and known is not None:
            raise ConfigError(f"{where}: write a SELECT, not describe, show or summarize")
        elif kind.endswith("_NODE") and kind not in QUERIES:
            raise ConfigError(f"{where}: only SELECT is allowed; nothing can be changed here")
        if known is not None:
            _check_expression(node, where)
        if row_by_row and node.get("class") in ("SUBQUERY", "WINDOW"):
            raise ConfigError(f"{where}: neither subqueries nor windows; the expression sees one row at a time")


def check_expression(
    connection: duckdb.DuckDBPyConnection, text: str, where: str, table: str, *, row_by_row: bool = False
) -> None:
    """ConfigError in one line, beginning with `where`, unless `text` is one harmless expression over a row of `table`."""
    from otel_lightning.transforms.steps import quoted

    query = f"select (\n{text}\n) as expression from {quoted(table)}"
    check_select(connection, query, where, {table} if row_by_row else None, row_by_row=row_by_row)
    node = _parse(connection, query, where)["statements"][0]["node"]
    # What closes our parenthesis and opens one of its own would be more than an expression.
    if node["type"] != "SELECT_NODE" or [item.get("alias") for item in node["select_list"]] != ["expression"]:
        raise ConfigError(f"{where}: write one expression, e.g. reward > 0.5")


def _parse(connection: duckdb.DuckDBPyConnection, text: str, where: str) -> Any:
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None
    if len(statements) != 1:
        raise ConfigError(f"{where}: holds {len(statements)} statements; write one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise ConfigError(f"{where}: only SELECT is allowed; nothing can be changed here")
    row = connection.execute("select json_serialize_sql($text::varchar)", {"text": text}).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree.get("error"):
        raise ConfigError(f"{where}: {tree.get('error_message') or 'cannot be read'}; write one plain SELECT")
    return tree


def _check_table(node: dict[str, Any], where: str, named: set[str], known: set[str] | None) -> None:
    table = str(node.get("table_name") or "")
    elsewhere = node.get("schema_name") or node.get("catalog_name")
    # A quoted path is a table to DuckDB too.
    if any(sign in table for sign in "/\\.*"):
        raise ConfigError(f"{where}: '{table}' is a file; only tables can be read")
    if known is not None and (elsewhere or table.lower() not in known | named):
        guess = nearest(table, known)
        hint = f"did you mean {guess}?" if guess and not elsewhere else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"{where}: no table '{table}' here; {hint}")


def _check_expression(node: dict[str, Any], where: str) -> None:
    function = str(node.get("function_name") or "").lower()
    if function in NOT_A_FUNCTION_OF_ROWS:
        raise ConfigError(f"{where}: {function}() is not allowed; the same rows must give the same answer")
    names = node.get("column_names")
    if node.get("class") == "COLUMN_REF" and names and len(names) == 1 and names[0].lower() in KEYWORDS_THAT_CALL:
        raise ConfigError(f"{where}: {names[0].lower()} is not allowed; the same rows must give the same answer")
    if node.get("class") == "PARAMETER":
        raise ConfigError(f"{where}: parameters ($name, ?) have no value here")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the parsed statement; an explicit stack, since a hostile text nests deeply."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _entries(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The names that a WITH gives."""
    found = node.get("cte_map")
    return list(found.get("map") or []) if isinstance(found, dict) else []


def first_line(error: duckdb.Error) -> str:
    """DuckDB's message without its picture of the query, with its guess at the right name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = next((line for line in lines if line.startswith(("Candidate", "Did you mean"))), "")
    return f"{lines[0]} {hint}".strip()
