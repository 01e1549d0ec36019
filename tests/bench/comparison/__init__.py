"""Every method on the same two tasks, with the same steps, its own learning rate from one grid, and several seeds.

    python -m tests.bench.comparison run tickets      # SmolLM2-135M learns to write support tickets
    python -m tests.bench.comparison run sentiment    # MiniLM-L6 learns to tell good reviews from bad ones
    python -m tests.bench.comparison cost tickets     # step time and peak memory, one method at a time
    python -m tests.bench.comparison report           # assets/comparison: the table and the plots

`run` may be stopped and started again: it goes on where it was. Results are JSON lines, one a training run.

    variants.py  what is compared      tasks.py   the two tasks          search.py  which runs are still to do
    runs.py      one training run      fleet.py   many at the same time  report.py  the page; plots.py its pictures
"""
