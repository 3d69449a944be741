"""The project's wheel, built from a copy: setuptools would leave a build folder behind, and use a stale one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("app", "collector", "instrumentation", "serving", "store", "training", "transforms")


def build_wheel(folder: Path, compiler: str | None = None) -> Path:
    """The path of the wheel, in `folder`; `compiler` takes the place of the C compiler."""
    copy = folder / "copy"
    copy.mkdir()
    for name in (*PARTS, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, copy / name)
    code = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    environment = os.environ | ({"CC": compiler} if compiler else {})
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
