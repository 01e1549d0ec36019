"""Scores of predicted labels, one or several for each text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Labels = Collection[int]  # the numbers of the labels of one text


def label_scores(expected: Sequence[Labels], given: Sequence[Labels], count: int) -> dict[str, float]:
    """Shares from 0 to 1 over all texts, for labels numbered from 0 to `count` - 1.

    `accuracy`: texts whose labels are all right and none too many; `macro_f1`: F1 of each label that is expected or
    given anywhere, averaged with equal weight (Sokolova and Lapalme 2009, section 3); `micro_f1`: F1 of all decisions
    together, which for one label a text is the accuracy and then left out.
    """
    if not expected:
        return {}
    pairs = [(set(want), set(have)) for want, have in zip(expected, given, strict=True)]
    counts = [_counts(pairs, label) for label in range(count)]
    seen = [(hits, total) for hits, total in counts if total]
    scores = {
        "accuracy": sum(want == have for want, have in pairs) / len(pairs),
        "macro_f1": sum(2 * hits / total for hits, total in seen) / max(1, len(seen)),
    }
    if any(len(want) != 1 or len(have) != 1 for want, have in pairs):
        scores["micro_f1"] = 2 * sum(hits for hits, _ in seen) / max(1, sum(total for _, total in seen))
    return scores


def _counts(pairs: Sequence[tuple[set[int], set[int]]], label: int) -> tuple[int, int]:
    """(texts with the label on both sides, sum of its texts on either side): F1 = 2 hits / total."""
    hits = sum(label in want and label in have for want, have in pairs)
    return hits, sum((label in want) + (label in have) for want, have in pairs)


def confusion_matrix(expected: Sequence[int], given: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """How often each true label (row) was taken for each label (column)."""
    matrix = [[0] * count for _ in range(count)]
    for want, have in zip(expected, given, strict=True):
        matrix[want][have] += 1
    return tuple(map(tuple, matrix))
