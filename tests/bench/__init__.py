"""One command per goal, each against its rivals in the same run, after equal gradients or outputs are checked.

    python -m tests.bench.step        # one GPU: the training step against peft, Liger and Unsloth
    python -m tests.bench.cpu         # the training step on a CPU against peft and transformers' Trainer
    python -m tests.bench.merge       # merging into a model folder
    python -m tests.bench.adapters    # switching, loading, and eight adapters in one batch
    python -m tests.bench.startup     # imports, and process start to the first optimizer step
    python -m tests.bench.gradients   # exactness of every method, and runs that repeat bit for bit
    python -m tests.bench.data        # JSONL to packed batches against TRL
    python -m tests.bench.tasks       # what every task learns, through the studio's jobs
    python -m tests.bench.comparison  # the methods against each other, by quality
    python -m tests.bench.report      # assets/bench/README.md, from the files that the others write

Each side runs in a process of its own, which holds its peak of memory, and the sides take turns. A rival that is not
installed is named as missing. Figures are ratios of one run on one machine; the files say which.
"""
