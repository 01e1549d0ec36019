"""What every task of the studio learns, through its own jobs, on models that fit a laptop.

    python -m tests.bench.tasks                 all of them; the figures go into assets/bench/tasks.json
    python -m tests.bench.tasks sentiment qa-t5    some of them

pretrain.py   small T5- and BART-type models, pretrained for some minutes on a GPU
texts.py      what they read
phrases.py    everyday sentences with their French, out of grammar.py and lexicon.py
exercises.py  what they practise
cases.py      the runs: their models, rows and settings
goals.py      the bounds
"""
