"""SQL that a user typed, over a locked, read-only connection."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import sys
from pathlib import Path
from typing import Any, Literal

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import cell, printable
from otel_lightning.transforms.guard import check_select, first_line
from otel_lightning.transforms.tables import open_tables

Form = Literal["table", "json", "csv"]
BATCH_ROWS = 1000


def ask(lake: Path, query: str, form: Form) -> None:
    """Print the rows of `query`; LightningError with DuckDB's own first line when it is not right."""
    try:
        _ask(lake, query, form)
    except duckdb.IOException:
        # A compaction or a deletion took a file away since the list of files was made: ask again with what is live.
        try:
            _ask(lake, query, form)
        except duckdb.Error as error:
            raise LightningError(f"the query was not answered: {first_line(error)}") from None


def _ask(lake: Path, query: str, form: Form) -> None:
    with open_tables(lake, locked=True) as connection:
        try:
            check_select(connection, query, "the query", None)
            result = connection.execute(query)
            names = [column[0] for column in result.description or []]
            if form == "table":
                _table(names, result.fetchall())
                return
            writer = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
            if writer:
                writer.writerow(names)
            while rows := result.fetchmany(BATCH_ROWS):
                for row in rows:
                    if writer:
                        writer.writerow(["" if value is None else _cell(value) for value in row])
                    else:
                        print(json.dumps(dict(zip(names, row, strict=True)), default=_plain, ensure_ascii=False))
        except duckdb.IOException:
            raise
        except duckdb.Error as error:
            raise LightningError(f"the query was not answered: {first_line(error)}") from None


def _table(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, show_edge=False)
    for row in rows:
        table.add_row(*(Text("NULL" if value is None else printable(_text(value))) for value in row))
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=200, no_color=True)
    console.print(table, markup=False)


def _text(value: Any) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _cell(value: Any) -> str:
    text = _text(value)
    return text if isinstance(value, int | float | decimal.Decimal) else cell(text)


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return str(value)
