"""`python -m tests.scenarios` writes the table of all scenarios into the docs."""

from __future__ import annotations

import sys

from tests.scenarios import TABLE, read_figures, scenarios, table

figures = read_figures()
TABLE.write_text(table(figures), encoding="utf-8")
bare = [str(scenario.number) for scenario in scenarios() if not (figures.get(scenario.number) or scenario.gap)]
sys.stdout.write(f"{TABLE.name}: {len(scenarios()) - len(bare)} of {len(scenarios())} measured")
sys.stdout.write(f"; without a figure: {', '.join(bare)}\n" if bare else "\n")
