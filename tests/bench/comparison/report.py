"""The page of the comparison: assets/comparison/README.md and its pictures, from the results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.bench.comparison.claims import CLAIMS, ERRORS, verdict
from tests.bench.comparison.plots import by_size, ranking
from tests.bench.comparison.search import GRID, SEEDS
from tests.bench.comparison.summary import LOSS, QUALITIES, Row, Spread, rows_of
from tests.bench.comparison.variants import VARIANTS

TITLES = {"tickets": "Support tickets, SmolLM2-135M-Instruct", "sentiment": "Sentiment, MiniLM-L6"}
ABOUT = {
    "tickets": "A customer's message in, a JSON ticket out: 320 rows to train on, of which a tenth is for validation; "
    "60 others to test on, answered greedily. 100 steps of 8 rows.",
    "sentiment": "A wry review in (`sentiment_wry.csv`), good or bad out, with a new head that trains beside every "
    "method: 270 rows to train on, of which a tenth is for validation; 150 others to test on. 120 steps of 8 rows. "
    "27 rows are few to pick a rate by: a method whose accuracy is near a half was given a rate at which it learns "
    "nothing.",
}
SHARES = {
    "loss": "loss",
    "valid_json": "valid JSON",
    "named_fields": "product and urgency right",
    "accuracy": "accuracy",
} | {"exact_match": "whole answer right"}


def write_report(results: Path, folder: Path) -> None:
    """Write the page and two pictures a task into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {task: rows for task in TITLES if (rows := rows_of(results, task))}
    for task, rows in tasks.items():
        found = list(rows.values())
        heading = f"{TITLES[task]}: {SHARES[QUALITIES[task][0]]} on rows never seen"
        (folder / f"{task}.svg").write_text(ranking(found, heading))
        (folder / f"{task}-size.svg").write_text(by_size(found, heading))
    parts = [_intro(), *(_section(task, rows) for task, rows in tasks.items()), _claims(tasks)]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


def _intro() -> str:
    grid = ", ".join(f"{rate:g}" for rate in GRID)
    return f"""# The methods compared

Every method on the same rows, with the same number of steps, batches and schedule. Its learning rate is the one with
the lowest validation loss on one grid ({grid}), searched with a seed of its own, from the method's usual rate uphill
until both neighbours are worse. The figures are means over {len(SEEDS)} other seeds, ± their standard deviation. Rank
8 and alpha 16 on every linear layer unless the name says otherwise. Nothing is left out: who loses stays in the table.

Regenerate this page from the results beside it, or start over:

```bash
python -m tests.bench.comparison run tickets      # and: run sentiment; stops and goes on at any time
python -m tests.bench.comparison cost tickets     # and: cost sentiment; with nothing beside it
python -m tests.bench.comparison report
```

These are small models, small datasets and short runs. They show whether a method works and what it costs; a difference
of a few percent between good methods here says little about a large model."""


def _section(task: str, rows: Mapping[str, Row]) -> str:
    missing = [about.title for name, about in VARIANTS.items() if task in about.tasks and name not in rows]
    left_out = f"\n\nNot finished: {', '.join(missing)}." if missing else ""
    return f"""## {TITLES[task]}

{ABOUT[task]}

![Every method on rows never seen]({task}.svg)

![Quality over trained parameters]({task}-size.svg)

{_table(task, rows)}{left_out}

{_costs_note(rows)}"""


def _table(task: str, rows: Mapping[str, Row]) -> str:
    heads = ["Method", *(SHARES[measure].capitalize() for measure in QUALITIES[task]), "Learning rate"]
    heads += ["Trained parameters", "Adapter", "Step", "Peak memory"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows.values():
        cells = [row.title, *(_spread(measure, row.quality[measure]) for measure in QUALITIES[task])]
        cells += [f"{row.rate:g}", f"{row.parameters:,}", _size(row.bytes), _milliseconds(row), _size(row.peak_memory)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _costs_note(rows: Mapping[str, Row]) -> str:
    devices = sorted({row.device for row in rows.values() if row.device})
    if not devices:
        return "Steps and memory were not measured."
    waits = (
        " A model this small waits for the host that launches its kernels: times say what a method adds in operations."
    )
    once = "; ~ where there was time for one" if any(row.passes == 1 for row in rows.values()) else ""
    return (
        f"Step time (the shorter median of two passes{once}) and peak memory on {' and '.join(devices)}, alone, layer "
        f"by layer without the fused path, for every method alike.{'' if 'CPU' in devices[0] else waits}"
    )


def _claims(tasks: Mapping[str, Mapping[str, Row]]) -> str:
    heads = ["Claim", *(f"{task}" for task in tasks)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * len(tasks)]
    for claim in CLAIMS:
        cells = [claim.text]
        for rows in tasks.values():
            said, figures = verdict(claim, rows)
            cells.append(f"**{said}**" + (f": {figures}" if figures else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return f"""## What the articles claim, and what was seen

Tickets are judged by the loss on rows never seen, sentiment by the accuracy. A difference counts from {ERRORS:g}
standard errors on, those of the seeds and, of an accuracy, of its 150 rows too; "as good" means not worse by that much.
With {len(SEEDS)} seeds that is a coarse test: "no difference seen" is not "no difference". The articles' own figures
come from other models and tasks. {_tally(tasks)}

{chr(10).join(lines)}"""


def _tally(tasks: Mapping[str, Mapping[str, Row]]) -> str:
    said = {task: Counter(verdict(claim, rows)[0] for claim in CLAIMS) for task, rows in tasks.items()}
    counts = (
        f"on {task}, {', '.join(f'{count} {words}' for words, count in one.items())}" for task, one in said.items()
    )
    return f"Of {len(CLAIMS)} claims: {'; '.join(counts)}."


def _spread(measure: str, spread: Spread) -> str:
    if measure == LOSS:
        return f"{spread.mean:.3f} ± {spread.deviation:.3f}"
    return f"{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f} %"


def _milliseconds(row: Row) -> str:
    return "" if row.step_seconds is None else f"{'~' * (row.passes < 2)}{1000 * row.step_seconds:.0f} ms"


def _size(count: int | None) -> str:
    if count is None:
        return ""
    units = ((1 << 30, "GiB", 2), (1 << 20, "MiB", 1), (1 << 10, "KiB", 0))
    return next((f"{count / unit:.{digits}f} {name}" for unit, name, digits in units if count >= unit), f"{count} B")
