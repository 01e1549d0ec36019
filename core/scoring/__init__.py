"""How good what a model gave is against what was expected, one file a kind of answer. Torch-free.

scores.py        a set of figures, with the confusion matrix and the answers they come from
answers.py       texts: exact, field by field where JSON is expected, and by the words they share
labels.py        labels: accuracy, macro-F1, confusion matrix; one or several labels a text
translation.py   translations: BLEU and chrF, by sacrebleu
"""
