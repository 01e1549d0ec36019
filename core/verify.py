"""Does a merged folder say the same as base and adapter? Measured on logits, in float32, by plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters import merge
from core.adapters.inject import adapters_of
from core.errors import ConfigError
from core.export.method_file import read_quantization
from core.export.peft import load_adapter
from core.model_config import read_config
from core.models import load_tokenizer, stored_dtype
from core.quantize.model import quantizable, round_model
from core.quantize.rounding import TRAINED, BaseRounding
from core.quantize.size import NONE
from core.skeleton import adapted_config, load_config, model_class

PROBES = 4  # sequences tried when no prompts are given
PROBE_TOKENS = 32
PROBE_SEED = 0
KL_ROWS = 64  # rows of logits in float64 at once


@dataclass(frozen=True)
class MergeCheck:
    """How far the next-token predictions of a merged folder are from those of base and adapter.

    A merged model in bfloat16 rounds every weight once, which alone moves logits; `unrounded_difference` compares with
    base and adapter rounded in the same way, so it shows a wrong merge apart from the price of the number format.
    """

    tokens: int
    dtype: str  # of the merged weights
    max_logit_difference: float  # largest |difference| of a logit, float32 arithmetic on both sides
    kl_divergence: float  # nats per token, mean of KL(base + adapter || merged)
    top1_agreement: float  # share of the tokens with the same most likely next token
    unrounded_difference: float  # like max_logit_difference, with the rounding of the weights taken out


@torch.no_grad()
def verify_merge(
    base: Path | str,
    adapter_folder: Path | str,
    merged: Path | str,
    prompts: Sequence[str] | Sequence[Sequence[int]] = (),
    device: str = "cpu",
    base_precision: str = TRAINED,
) -> MergeCheck:
    """Run base + adapter and the merged folder over prompts (texts or token ids) and compare their logits.

    Without prompts, fixed pseudo-random tokens are tried. One model is in memory at a time, in float32.
    The base is as the adapter knew it, quantised where it was; `base_precision` is what the merge was asked for, and
    where that is another one, `max_logit_difference` and the others show what it costs.
    """
    rounding = BaseRounding(read_quantization(Path(adapter_folder)), base_precision)
    base, merged = Path(base), Path(merged)
    plain = _load(merged, device)
    dtype = next(plain.parameters()).dtype
    sequences = _token_ids(prompts, merged, plain)
    found = _logits(plain.float(), sequences)
    del plain
    model = _adapted(base, adapter_folder, device, rounding.trained)
    expected = _logits(model, sequences)
    if rounding.used != rounding.trained:
        del model
        model = _adapted(base, adapter_folder, device, rounding.used)
    merge(model)
    _round_merged(model, dtype)
    return _compare(expected, _logits(model, sequences), found, str(dtype).removeprefix("torch."))


def _adapted(base: Path, adapter_folder: Path | str, device: str, quantization: str) -> Any:
    """The base in float32, with the values of its quantised form if asked, and with the adapter."""
    dtype = "auto" if quantization == NONE else stored_dtype(base)
    model = _load(base, device, dtype, adapted_config(read_config(base), Path(adapter_folder))).float()
    round_model(model, quantization)
    load_adapter(model, adapter_folder, "verify")
    return model


def _load(folder: Path, device: str, dtype: str = "auto", config: dict[str, Any] | None = None) -> Any:
    """The model of a folder, as `config` has it when that differs from its own by another head."""
    own = read_config(folder)
    config = own if config is None else config
    kind, settings = model_class(config), load_config(config, folder)
    model = kind.from_pretrained(folder, config=settings, dtype=dtype, local_files_only=True, use_safetensors=True)
    return model.to(device).eval()


def _token_ids(prompts: Sequence[str] | Sequence[Sequence[int]], folder: Path, model: Any) -> list[Tensor]:
    if not prompts:
        vocabulary = model.get_input_embeddings().num_embeddings
        generator = torch.Generator().manual_seed(PROBE_SEED)
        return list(torch.randint(vocabulary, (PROBES, PROBE_TOKENS), generator=generator))
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    ids: list[Any] = load_tokenizer(folder)(texts)["input_ids"] if texts else [list(prompt) for prompt in prompts]
    if len(ids) != len(prompts) or not all(ids):
        raise ConfigError("A prompt to verify with is empty.", "Give texts, or lists of token ids.")
    return [torch.tensor(sequence) for sequence in ids]


def _logits(model: Any, sequences: Sequence[Tensor]) -> Tensor:
    """Logits of all tokens of all sequences, (N, V), on the CPU; of a classifier, one row (L) a sequence.

    A model that turns one text into another is shown the sequence on both sides.
    """
    device = next(model.parameters()).device
    takes_two = bool(model.config.is_encoder_decoder) and not hasattr(model, "classification_head")
    rows = []
    for ids in sequences:
        ids = ids.unsqueeze(0).to(device)
        output = model(input_ids=ids, **({"decoder_input_ids": ids} if takes_two else {})).logits
        rows.append(output.flatten(0, -2).cpu())
    return torch.cat(rows)


def _round_merged(model: nn.Module, dtype: torch.dtype) -> None:
    for host in adapters_of(model).hosts.values():
        for key in host.originals:
            parameter = host.base_layer.get_parameter(key)
            parameter.copy_(parameter.to(dtype))
    for layer in quantizable(model).values():  # of a quantised base, the others are rounded too
        weight = layer.get_parameter("weight")
        weight.copy_(weight.to(dtype))


def _compare(expected: Tensor, rounded: Tensor, found: Tensor, dtype: str) -> MergeCheck:
    kl = sum(_kl_sum(expected[i : i + KL_ROWS], found[i : i + KL_ROWS]) for i in range(0, len(found), KL_ROWS))
    return MergeCheck(
        tokens=len(found),
        dtype=dtype,
        max_logit_difference=float((found - expected).abs().max()),
        kl_divergence=max(0.0, kl / len(found)),
        top1_agreement=float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
        unrounded_difference=float((found - rounded).abs().max()),
    )


def _kl_sum(expected: Tensor, found: Tensor) -> float:
    """Sum over rows of KL(softmax(expected) || softmax(found)), in float64: float32 could not show a small one."""
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum())
