"""Every row of the fault matrix has a test with its number."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = set(range(1, 74))


def rows_with_tests() -> dict[int, list[str]]:
    """Row -> the tests that are marked with it, read from the sources so that skipped and slow ones count too."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.row":
                    for argument in call.args:
                        found.setdefault(ast.literal_eval(argument), []).append(f"{path.name}::{node.name}")
    return found


def test_every_row_has_a_test() -> None:
    assert sorted(ROWS - rows_with_tests().keys()) == []
