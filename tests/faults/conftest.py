"""Fixtures of the fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from victim import Victim


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    """A lake to be killed over."""
    return Victim(tmp_path / "lake", tmp_path / "told")
