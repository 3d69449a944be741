"""The project's wheel, built from a copy: setuptools would leave a build folder behind, and use a stale one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("app", "collector", "instrumentation", "serving", "store", "training", "transforms")


def build_wheel(folder: Path) -> Path:
    """The path of the wheel, in `folder`."""
    copy = folder / "copy"
    copy.mkdir()
    for name in (*PARTS, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    code = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
