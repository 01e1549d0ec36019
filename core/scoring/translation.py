"""Scores of translations against one reference each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import ConfigError


def translation_scores(expected: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015), both from 0 to 100, by sacrebleu's defaults.

    Raises ConfigError when sacrebleu is not installed (`has_sacrebleu` tells).
    """
    try:
        import sacrebleu
    except ImportError:
        raise ConfigError("BLEU and chrF need sacrebleu.", "Install it: pip install 'lora-studio[eval]'.") from None
    if not expected:
        return {}
    measures: Any = sacrebleu
    references = [list(expected)]
    return {
        "bleu": float(measures.corpus_bleu(list(given), references).score),
        "chrf": float(measures.corpus_chrf(list(given), references).score),
    }


def has_sacrebleu() -> bool:
    """Whether BLEU and chrF can be had here."""
    from importlib.util import find_spec

    return find_spec("sacrebleu") is not None
