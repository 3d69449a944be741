"""SQL that a user typed, over a locked, read-only connection."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import cell, printable
from otel_lightning.transforms.guard import check_select, first_line
from otel_lightning.transforms.tables import open_tables

Form = Literal["table", "json", "csv"]
BATCH_ROWS = 1000
# A column of a table is readable from about this width on.
COLUMN_CHARS = 12


def ask(lake: Path, query: str, form: Form) -> None:
    """Print the rows of `query`; LightningError with DuckDB's own first line when it is not right."""
    told = _Told()
    try:
        _ask(lake, query, form, told)
    except duckdb.IOException as error:
        if told.rows:
            raise LightningError(f"the answer ends after {told.rows} rows: {first_line(error)}; ask again") from None
        # A compaction or a deletion took a file away since the list of files was made: ask again with what is live.
        try:
            _ask(lake, query, form, told)
        except duckdb.Error as error:
            raise LightningError(f"the query was not answered: {first_line(error)}") from None


@dataclass
class _Told:
    """How many rows are out and cannot be taken back."""

    rows: int = 0


def _ask(lake: Path, query: str, form: Form, told: _Told) -> None:
    with open_tables(lake, locked=True) as connection:
        try:
            check_select(connection, query, "the query", None)
            result = connection.execute(query)
            names = [column[0] for column in result.description or []]
            if form == "table":
                _table(names, result.fetchall())
                return
            writer = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
            while rows := result.fetchmany(BATCH_ROWS):
                if writer and not told.rows:
                    writer.writerow(names)
                for row in rows:
                    told.rows += 1
                    if writer:
                        writer.writerow(["" if value is None else _cell(value) for value in row])
                    else:
                        print(_json(dict(zip(names, row, strict=True))))
            if writer and not told.rows:
                writer.writerow(names)
        except duckdb.IOException:
            raise
        except duckdb.Error as error:
            raise LightningError(f"the query was not answered: {first_line(error)}") from None


def _table(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=200, no_color=True)
    texts = [["NULL" if value is None else printable(_text(value)) for value in row] for row in rows]
    if len(names) * COLUMN_CHARS > console.width:
        # Too wide to be read side by side: a line a column.
        widest = max(map(len, names))
        for number, row in enumerate(texts, 1):
            console.print(Text(f"── row {number}"), markup=False)
            for name, text in zip(names, row, strict=True):
                console.print(
                    Text(f"{name:>{widest}} │ {_cut(text, console.width - widest - 3)}"), markup=False, highlight=False
                )
        return
    table = Table(*names, show_edge=False)
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table, markup=False)


def _cut(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _json(row: dict[str, Any]) -> str:
    """One JSON object; what JSON has no number for (NaN, infinity) is null."""
    try:
        return json.dumps(row, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), default=_plain, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float | decimal.Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


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
