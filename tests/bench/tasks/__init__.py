"""What every task of the studio learns, through its own jobs, on models that fit a laptop.

    python -m tests.bench.tasks                 all four, as a table
    python -m tests.bench.tasks sentiment qa    some of them

pretrain.py   small T5- and BART-type models, pretrained for some minutes on text that every Python has
cases.py      the runs: their models, rows and settings
"""
