"""What a model learns to do, one file a task: its examples, their batches, the loss, and how good the model is.

choice.py           which task a model and a dataset make, and what does not fit; torch-free
made.py             from a task's name to the task
task.py             what the trainer asks of a task
answering.py        held-out rows, answered and scored
completion.py       the next token: chat, instructions, plain text
classification.py   one label for a text, or several
seq2seq.py          one text into another, by an encoder and a decoder
question_answering.py translation.py    the two kinds of that, each with its figures
preference.py       the better of two answers (DPO)
"""
