"""The list of scenarios is whole, and the table in the docs is what the tests measured."""

from __future__ import annotations

from tests.scenarios import TABLE, marked, read_figures, scenarios, table


def test_the_list_is_whole() -> None:
    assert [scenario.number for scenario in scenarios()] == list(range(1, 49))
    assert all(scenario.what and scenario.how and scenario.wanted for scenario in scenarios())


def test_every_scenario_has_a_test_or_says_why_not() -> None:
    known = {scenario.number for scenario in scenarios()}
    assert marked() <= known
    assert sorted(known - marked() - {scenario.number for scenario in scenarios() if scenario.gap}) == []


def test_the_table_in_the_docs_is_the_kept_figures() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(read_figures()), "run python -m tests.scenarios"
