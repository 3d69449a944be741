"""Every row of the fault matrix that is the collector's own has a test that bears its number (`pytest.mark.row`)."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Compaction's own rows (4, 26) belong to its tests. The rest of the matrix: rows 33 to 41 and 57 to the transforms.
ROWS = set(range(1, 33)) - {4, 26}


def rows_with_tests() -> dict[int, list[str]]:
    """Row -> the tests that are marked with it, read from the sources so that skipped and slow ones count too."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.row":
                    for argument in call.args:
                        found.setdefault(ast.literal_eval(argument), []).append(f"{path.name}::{node.name}")
    return found


def test_every_row_has_a_test() -> None:
    assert sorted(ROWS - rows_with_tests().keys()) == []
