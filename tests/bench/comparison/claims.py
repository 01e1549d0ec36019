"""What the articles claim, each as a comparison of two variants that the results can answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.comparison.summary import Row, error_between

HELD, NOT_HELD, EVEN, UNKNOWN = "held", "did not hold", "no difference seen", "not measured"
ERRORS = 2.0  # a difference counts from this many standard errors on


@dataclass(frozen=True)
class Claim:
    """`variant` against `rival`: by quality ("better", "as good", "worse"), or that a cost is at most `bound` times."""

    text: str
    variant: str
    rival: str
    of: str = "better"  # better, as good, worse, parameters, bytes, step_seconds, peak_memory
    bound: float = 1.0


CLAIMS = (
    Claim("LoRA is as good as full fine-tuning (LoRA; articles 0 and 4)", "lora", "full", "as good"),
    Claim("LoRA saves three quarters of the memory of full fine-tuning or more", "lora", "full", "peak_memory", 0.25),
    Claim("LoRA is better than training the head alone", "lora", "head"),
    Claim("LoRA is better than training the last two blocks (LoRA, FT-Top2)", "lora", "last_blocks"),
    Claim("A rank of 2 is enough: as good as rank 8 (LoRA, section 7.2)", "lora_r2", "lora", "as good"),
    Claim("Rank 32 is better than rank 8 (article 4: rank matters)", "lora_r32", "lora"),
    Claim("rsLoRA is better than LoRA at rank 32 (rsLoRA)", "rslora_r32", "lora_r32"),
    Claim("LoRA+ is better than LoRA at equal steps (LoRA+; article 3)", "lora_plus", "lora"),
    Claim("VeRA is as good as LoRA (VeRA)", "vera", "lora", "as good"),
    Claim("VeRA trains a tenth of LoRA's parameters or less (VeRA)", "vera", "lora", "parameters", 0.1),
    Claim("VeRA is better than LoRA of rank 1", "vera", "lora_r1"),
    Claim("LoRA-FA is as good as LoRA (LoRA-FA, first version)", "lora_fa", "lora", "as good"),
    Claim("LoRA-FA's corrected gradient is better than its first version", "lora_fa_corrected", "lora_fa"),
    Claim("LoRA-FA trains about half of LoRA's parameters", "lora_fa", "lora", "parameters", 0.6),
    Claim("LoRA-FA needs less memory than LoRA", "lora_fa", "lora", "peak_memory", 0.99),
    Claim("LoRA-drop is as good as LoRA (LoRA-drop)", "lora_drop", "lora", "as good"),
    Claim("LoRA-drop trains half of LoRA's parameters (LoRA-drop)", "lora_drop", "lora", "parameters", 0.55),
    Claim("AdaLoRA is better than LoRA of the same final size (AdaLoRA)", "adalora", "lora"),
    Claim("DoRA is better than LoRA (DoRA)", "dora", "lora"),
    Claim("DoRA's steps take as long as LoRA's, within a tenth", "dora", "lora", "step_seconds", 1.1),
    Claim("Delta-LoRA is better than LoRA (Delta-LoRA)", "delta_lora", "lora"),
    Claim("Delta-LoRA is no more than LoRA with three times the alpha", "delta_lora", "lora_alpha3", "as good"),
    Claim("Block-sparse LoRA is as good as LoRA at equal parameters (MELoRA)", "sparse_block", "lora", "as good"),
    Claim("Gated LoRA is as good as LoRA (SoRA)", "sparse_gated", "lora", "as good"),
    Claim("A rank that falls from 16 to 8 is better than rank 8 (article 0)", "dynamic_rank", "lora"),
    Claim("LoRA on a 4-bit base is as good as on a 16-bit one (QLoRA)", "qlora", "lora", "as good"),
    Claim("LoRA on a 4-bit base needs less memory (QLoRA)", "qlora", "lora", "peak_memory", 0.99),
    Claim("VeLoRA is as good as LoRA (VeLoRA)", "velora", "lora", "as good"),
    Claim("VeLoRA needs less memory than LoRA (VeLoRA)", "velora", "lora", "peak_memory", 0.99),
    Claim("BitFit is as good as LoRA", "bitfit", "lora", "as good"),
    Claim("Bottleneck adapters are as good as LoRA", "adapter", "lora", "as good"),
    Claim("Bottleneck adapters make steps slower than LoRA's (article 1)", "lora", "adapter", "step_seconds", 1.0),
    Claim("Prefix tuning is harder to train: worse than LoRA (article 1)", "prefix", "lora", "worse"),
    Claim("Prompt tuning is limited: worse than LoRA (article 0)", "prompt", "lora", "worse"),
    Claim("P-tuning is worse than LoRA", "p_tuning", "lora", "worse"),
)


def verdict(claim: Claim, rows: Mapping[str, Row]) -> tuple[str, str]:
    """Whether a claim held on a task, and the figures that say so."""
    one, other = rows.get(claim.variant), rows.get(claim.rival)
    if one is None or other is None:
        return UNKNOWN, ""
    if claim.of in ("better", "as good", "worse"):
        return _of_quality(claim.of, one, other)
    cost, rival = getattr(one, claim.of), getattr(other, claim.of)
    if not cost or not rival or (claim.of == "step_seconds" and min(one.passes, other.passes) < 2):
        return UNKNOWN, ""
    return (HELD if cost / rival <= claim.bound else NOT_HELD), f"{cost / rival:.2f} times"


def _of_quality(of: str, one: Row, other: Row) -> tuple[str, str]:
    difference = other.cost - one.cost  # above 0: `one` is better
    error = error_between(one, other)
    name = one.measure
    figures = f"{name} {one.main.mean:.3f} against {other.main.mean:.3f}, better by {difference:+.3f} ± {error:.3f}"
    if not abs(difference) > ERRORS * error:  # also without an error, from one seed
        return (HELD if of == "as good" else EVEN), figures
    is_better = difference > 0
    return (HELD if is_better != (of == "worse") else NOT_HELD), figures
