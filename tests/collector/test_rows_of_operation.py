"""The rows of the fault matrix about operation, exposure and privacy have tests that bear their numbers."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Rows 33 to 39, 41 and 57 are the transforms' (38 is also stored here), 70 to 73 the instrumentation's.
ROWS = {4, 26, 30, 40, *range(42, 57), *range(58, 70)}


def proven() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.row":
                    for argument in decorator.args:
                        if isinstance(argument, ast.Constant):
                            found.setdefault(int(str(argument.value)), []).append(f"{path.name}::{node.name}")
    return found


def test_every_row_of_operation_has_a_test() -> None:
    assert ROWS - proven().keys() == set()
