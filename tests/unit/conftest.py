"""Fixtures of the tests that work with the cache of compiled models."""

from __future__ import annotations

from pathlib import Path

import pytest
from cache_harness import write_small


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test; where it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cnnc"


@pytest.fixture
def small(folder: Path, tmp_path: Path) -> Path:
    """A model of four files, beside an empty cache."""
    return write_small(tmp_path / "models")
