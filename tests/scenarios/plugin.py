"""The `scenario` marker, the `figure` fixture, and what becomes of the figures at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.scenarios import Figures, keep_figures

Say = Callable[..., None]
_said = pytest.StashKey[list[tuple[str, tuple[int, ...]]]]()
_measured = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--figures` keeps what the tests of the scenarios measure, for the table in the docs."""
    parser.addoption("--figures", action="store_true", help="keep the scenarios' figures for assets/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "scenario(*numbers): shows these scenarios of tests/scenarios/list.yaml")
    config.stash[_measured] = {}


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Say:
    """`figure("40 of 40")` says what a test measured; `figure("40 of 40", 26)` for only one of its scenarios.

    Without dates, and without times unless a limit is set on them: they differ from run to run.
    """
    said = request.node.stash.setdefault(_said, [])

    def say(text: str, *numbers: int) -> None:
        said.append((text, numbers))

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Take the figures of a test that passed."""
    report = yield
    said = item.stash.get(_said, [])
    if report.when == "call" and report.passed and said:
        for mark in item.iter_markers("scenario"):
            for number in mark.args:
                texts = [text for text, numbers in said if not numbers or number in numbers]
                item.config.stash[_measured].setdefault(number, {})[item.nodeid] = texts
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print every figure, and keep them where that was asked for."""
    measured = config.stash[_measured]
    if measured:
        terminalreporter.section("scenarios")
    for number, tests in sorted(measured.items()):
        for text in (text for texts in tests.values() for text in texts):
            terminalreporter.write_line(f"{number:>3}  {text}")
    if config.getoption("--figures"):
        keep_figures(measured)
