"""The rivals: peft on transformers' model, with Liger's kernels or without, Unsloth, and the frozen base alone.

Each runs the plainest loop there is, without clipping, schedule or logging, so that nothing but its step is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tests.bench.training.adapter import fill
from tests.bench.training.rows import LONGEST, Row, padded
from tests.bench.training.shapes import PROJECTIONS, random_model, saved_model


class RivalSide:
    """A model that a rival prepared, its loop, and AdamW in one fused update."""

    def __init__(self, shape: str, device: str, r: int, variant: str, scratch: Path) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False  # the exact side is float32 throughout
        self.device = device
        self.path = ""
        self.model = _make(shape, device, r, variant, scratch).train()
        fill(self.model)
        self.autocast = variant not in NO_AUTOCAST
        self.row_by_row = variant == "exact"
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True) if self.parameters else None
        self._batches: list[list[Row]] = []
        self._ready: dict[int, dict[str, Any]] = {}  # made once: the rival waits for no collator
        self._next = 0

    def start(self, rows: list[Row], batch_size: int) -> None:
        """Train on these rows from now on."""
        self._batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        self._ready, self._next = {}, 0

    def step(self) -> int:
        """One optimizer step; returns its tokens, without padding."""
        index = self._next % len(self._batches)
        self._next += 1
        rows = self._batches[index]
        if index not in self._ready:
            self._ready[index] = padded(rows, self.device)
        self._backward(self._ready[index])
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return sum(len(row.ids) for row in rows)

    def with_gradients(self, rows: list[Row], look: Callable[[], None]) -> None:
        """The gradients of one batch; `look` is called when they are whole."""
        trained = sum(len(row.ids) - row.prompt for row in rows)
        for part in [[row] for row in rows] if self.row_by_row else [rows]:
            share = sum(len(row.ids) - row.prompt for row in part) / trained
            self._backward(padded(part, self.device), share)
        look()
        self.model.zero_grad(set_to_none=True)

    def _backward(self, batch: dict[str, Any], share: float = 1.0) -> None:
        with torch.autocast(self.device, dtype=torch.bfloat16) if self.autocast else nullcontext():
            loss = self.model(**batch).loss
        torch.autograd.backward(loss * share if share != 1.0 else loss)


NO_AUTOCAST = ("peft_bf16", "exact", "frozen")


def _make(shape: str, device: str, r: int, variant: str, scratch: Path) -> Any:
    if variant.startswith("unsloth"):
        return _unsloth(shape, device, r, variant, scratch)
    if variant == "frozen":
        return _frozen(random_model(shape, device))
    if "liger" in variant:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(fused_linear_cross_entropy=True, cross_entropy=False)
    model = _nf4(saved_model(shape, device, scratch)) if "nf4" in variant else random_model(shape, device)
    if variant == "exact":
        model = model.float()
    if "gc" in variant.split("_") or variant == "exact":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return _peft(model, r, is_dora="dora" in variant, is_bf16=variant == "peft_bf16")


def _peft(model: Any, r: int, is_dora: bool, is_bf16: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r, lora_alpha=2 * r, target_modules=list(PROJECTIONS), use_dora=is_dora, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config, autocast_adapter_dtype=not is_bf16)


def _frozen(model: Any) -> Any:
    """The base alone, forward and back to its input: what any adapter costs extra is measured against it."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda layer, inputs, output: output.requires_grad_(True))
    return model


def _nf4(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=nf4, device_map={"": 0}, dtype=torch.bfloat16
    )


def _unsloth(shape: str, device: str, r: int, variant: str, scratch: Path) -> Any:
    from unsloth import FastLanguageModel

    folder = saved_model(shape, device, scratch)
    torch.cuda.empty_cache()
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=LONGEST, dtype=torch.bfloat16, load_in_4bit="nf4" in variant
    )
    model = FastLanguageModel.get_peft_model(
        model, r=r, target_modules=list(PROJECTIONS), lora_alpha=2 * r, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth" if "gc" in variant.split("_") else False, random_state=0,
    )  # fmt: skip
    FastLanguageModel.for_training(model)
    return model
