"""Fixtures every test may use: the real starter model, fetched once, and a fresh workspace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STARTER_CACHE = REPOSITORY / ".cache" / "starter"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--no-first-run"]

pytest_plugins = ["tests.scenarios.plugin"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


# A run in the background of a shell ignores Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--screenshots` makes the browser tests train on all sample tickets and redraw the pictures of the README."""
    parser.addoption("--screenshots", action="store_true", help="redraw assets/screenshots")


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The starter model as `lora-studio models add starter` makes it; fetched once, kept in `.cache/`."""
    if not (STARTER_CACHE / "config.json").exists():
        from studio.starter import fetch_starter

        scratch = STARTER_CACHE.with_name(f"starter-{os.getpid()}")
        fetch_starter(scratch)
        STARTER_CACHE.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # another test process was faster
            scratch.rename(STARTER_CACHE)
    return STARTER_CACHE


@pytest.fixture
def samples() -> Path:
    """The folder of the sample datasets."""
    return REPOSITORY / "assets" / "datasets"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's Chromium; a reason to skip only where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    return executable


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    """The one driver of a test run: playwright refuses a second one in the same process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        yield driver
