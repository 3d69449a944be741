"""Fixtures of the fault tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from victim import WORLDS, Victim, needed


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path / "lake", tmp_path / "told")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The preloaded library that makes file operations fail."""
    gcc = needed("gcc", "gcc")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(
        [gcc, "-shared", "-fPIC", "-O1", str(WORLDS / "fault_shim.c"), "-o", str(library), "-ldl"], check=True
    )
    return str(library)
