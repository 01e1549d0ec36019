"""The `scenario` marker, the `figure` fixture, and what becomes of the figures at the end of a run.

A figure travels with the report of its test, so that runs on several processes (pytest-xdist) keep theirs too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.scenarios import Figures, keep_figures

Say = Callable[..., None]
SCENARIO = "scenario"
_said = pytest.StashKey[list[tuple[str, tuple[int, ...]]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--figures` keeps what the tests of the scenarios measure, for the table in the docs."""
    parser.addoption("--figures", action="store_true", help="keep the scenarios' figures for assets/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and gather what the tests say."""
    config.addinivalue_line("markers", "scenario(*numbers): shows these scenarios of tests/scenarios/list.yaml")
    config.pluginmanager.register(_Gathered(config), "scenario-figures")


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
    """Hand the figures of a test that passed to its report, each with its scenario."""
    report = yield
    if report.when == "call" and report.passed:
        numbers = [number for mark in item.iter_markers("scenario") for number in mark.args]
        for text, only in item.stash.get(_said, []):
            report.user_properties += [(SCENARIO, [number, text]) for number in numbers if not only or number in only]
    return report


class _Gathered:
    """The figures of a whole run, from whichever process they come."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.figures: Figures = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the figures that a report carries."""
        for name, value in report.user_properties:
            if name == SCENARIO and isinstance(value, list):
                number, text = value
                self.figures.setdefault(number, {}).setdefault(report.nodeid, []).append(text)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print every figure, and keep them where that was asked for; the processes of xdist have no terminal."""
        if self.figures:
            terminalreporter.section("scenarios")
        for number, tests in sorted(self.figures.items()):
            for text in (text for texts in tests.values() for text in texts):
                terminalreporter.write_line(f"{number:>3}  {text}")
        if self.config.getoption("--figures"):
            keep_figures(self.figures)
