"""What a model learns to do, one file a task: its examples, their batches, and the loss.

task.py             what the trainer asks of a task
completion.py       the next token: chat, instructions, plain text
classification.py   one label for a text
"""
