"""What every task of the studio learns, through its own jobs, on models that fit a laptop.

    python -m tests.bench.tasks                 all of them; the figures go into assets/bench/tasks.json
    python -m tests.bench.tasks sentiment qa-t5    some of them

pretrain.py   small T5- and BART-type models, pretrained for some minutes on text that every Python has
cases.py      the runs: their models, rows and settings
goals.py      the bounds
"""
