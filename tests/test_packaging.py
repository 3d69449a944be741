"""What is installed is what lies in the folders, and an agent's environment gets nothing heavy."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from wheel import PARTS, ROOT, build_wheel

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = sorted(PROJECT["project"]["scripts"])
HEAVY = ("torch", "pyarrow", "duckdb", "transformers", "pydantic")

# Who may import whom; data flows down, and every part but instrumentation may use app and store.
MAY_IMPORT = {
    "app": set(),
    "store": {"app"},
    "instrumentation": set(),
    "collector": {"app", "store"},
    "transforms": {"app", "store"},
    "serving": {"app", "store"},
    "training": {"app", "store", "transforms", "serving", "instrumentation"},
}


def sources(part: str) -> list[Path]:
    return sorted(
        path
        for path in (ROOT / part).rglob("*")
        if path.suffix in (".py", ".sql", ".yml", ".typed") and "__pycache__" not in path.parts
    )


def test_the_wheel_holds_every_file_of_the_folders_and_no_other(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("otel_lightning/")}
    expected = {f"otel_lightning/{path.relative_to(ROOT).as_posix()}" for part in PARTS for path in sources(part)}
    assert packed == expected


def test_the_base_install_is_opentelemetry_only() -> None:
    names = {requirement.split(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"opentelemetry-sdk", "opentelemetry-exporter-otlp"}
    code = (
        "import sys; sys.modules.update(dict.fromkeys(" + repr(HEAVY) + "));"
        "import otel_lightning.instrumentation.feedback as f; "
        "print(sorted(m for m in sys.modules if m.startswith('otel_lightning.') and not m.startswith('otel_lightning.instrumentation')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("part", PARTS)
def test_imports_follow_the_data(part: str) -> None:
    for path in sorted((ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                if name.startswith("otel_lightning."):
                    other = name.split(".")[1]
                    assert other == part or other in MAY_IMPORT[part], f"{path}: {name}"
                if part in ("app", "store"):
                    assert name.split(".")[0] not in ("pyarrow", "duckdb", "torch"), f"{path}: {name}"
                if part == "instrumentation":
                    assert name.split(".")[0] in {"opentelemetry", "otel_lightning", *sys.stdlib_module_names}, (
                        f"{path}: {name}"
                    )


@pytest.mark.parametrize("name", [*SCRIPTS, "train.py"])
def test_help_is_quick_and_the_readme_knows_the_command(name: str) -> None:
    if name == "train.py":
        module, function = "otel_lightning.training.cli", "main"
    else:
        module, _, function = PROJECT["project"]["scripts"][name].partition(":")
    code = (
        f"import sys; from {module} import {function} as main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pyarrow', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert name in done.stdout
    assert name in (ROOT / "README.md").read_text()


def test_the_installed_version_is_the_projects() -> None:
    assert importlib.metadata.version("otel-lightning") == PROJECT["project"]["version"]
