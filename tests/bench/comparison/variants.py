"""What is compared: each method as its authors mean it, and the controls that its claims need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.config import AdapterConfig
from core.methods import methods

RANK, ALPHA = 8, 16.0


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("tickets", "sentiment")
    quantization: str = "none"

    def adapter(self, modules_to_save: tuple[str, ...]) -> AdapterConfig:
        """Rank 8 and alpha 16 on every linear layer, where the method has a use for these."""
        about = methods.get(self.method)
        shared = {"r": RANK, "lora_alpha": ALPHA, "modules_to_save": modules_to_save}
        used = {key: value for key, value in shared.items() if key in about.uses}
        used |= {key: value for key, value in about.suggested.items() if key != "r" or self.method == "vera"}
        return AdapterConfig(method=self.method, **{**used, **self.settings}, method_options=self.options)


VARIANTS = {
    "lora": Variant("LoRA", "lora"),
    "lora_r2": Variant("LoRA, rank 2", "lora", {"r": 2, "lora_alpha": 4.0}),
    "lora_r32": Variant("LoRA, rank 32", "lora", {"r": 32, "lora_alpha": 64.0}),
    "lora_r1": Variant("LoRA, rank 1", "lora", {"r": 1, "lora_alpha": 2.0}),
    "lora_alpha3": Variant("LoRA, alpha x 3", "lora", {"lora_alpha": 3 * ALPHA}),
    "rslora": Variant("rsLoRA", "rslora"),
    "rslora_r32": Variant("rsLoRA, rank 32", "rslora", {"r": 32}),
    "lora_plus": Variant("LoRA+", "lora_plus"),
    "vera": Variant("VeRA", "vera"),
    "lora_fa": Variant("LoRA-FA (first version)", "lora_fa", options={"correction": "none"}),
    "lora_fa_corrected": Variant("LoRA-FA (corrected gradient)", "lora_fa", options={"correction": "gradient"}),
    "lora_drop": Variant("LoRA-drop", "lora_drop"),
    "adalora": Variant("AdaLoRA, 12 to 8", "adalora", {"r": 12}, {"target_r": 8}),
    "dora": Variant("DoRA", "dora"),
    "delta_lora": Variant("Delta-LoRA", "delta_lora"),
    "sparse_block": Variant("Sparse LoRA (block)", "sparse_lora", options={"mode": "block"}),
    "sparse_gated": Variant("Sparse LoRA (gated)", "sparse_lora", options={"mode": "gated"}),
    "dynamic_rank": Variant("Dynamic Rank, 16 to 8", "dynamic_rank", {"r": 16}, {"final_rank": 8}),
    "velora": Variant("VeLoRA", "velora"),
    "qlora": Variant("LoRA on an NF4 base (QLoRA)", "lora", quantization="nf4"),
    "full": Variant("Full fine-tuning", "full"),
    "last_blocks": Variant("Partial: last 2 blocks", "partial", options={"part": "last_blocks", "blocks": 2}),
    "layernorm": Variant("Partial: norms", "partial", options={"part": "layernorm"}),
    "head": Variant("Frozen: head only", "partial", options={"part": "head"}),
    "bitfit": Variant("BitFit", "bitfit", tasks=("sentiment",)),  # a Llama has no biases
    "adapter": Variant("Bottleneck adapter", "adapter"),
    "prefix": Variant("Prefix tuning", "prefix"),
    "prompt": Variant("Prompt tuning", "prompt"),
    "p_tuning": Variant("P-tuning", "p_tuning"),
}
