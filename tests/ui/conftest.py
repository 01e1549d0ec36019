"""Fixtures of the page's tests: a real, empty studio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.service import Studio
from ui.i18n import Translator


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio with an empty workspace; no scheduler runs."""
    made = Studio(tmp_path / "workspace")
    yield made
    made.close()


@pytest.fixture(params=["en", "zh"])
def t(request: pytest.FixtureRequest) -> Translator:
    """The strings of each language."""
    return Translator(request.param)
