"""Sparse LoRA: an update of which most entries, or most directions, are exactly zero."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods

FEW_BLOCKS = 4  # that fused layers compute as one matrix


@dataclass(frozen=True)
class SparseLoRAOptions(Checked):
    """What only sparse LoRA has."""

    mode: str = option(
        "block",
        "Small LoRAs along the diagonal, a gate per direction that can close, or the articles' plain sum.",
        choices=("block", "gated", "sum"),
    )
    blocks: int = option(2, "Blocks on the diagonal, or terms of the sum.", minimum=1, maximum=256)
    threshold: float = option(
        0.0,
        "How far each step pulls the gates towards 0. 0 picks it so that weak ones close within the run.",
        minimum=0.0,
        maximum=1.0,
    )


@methods.register("sparse_lora")
class SparseLoRA(Method):
    """Sparse in entries (block) or in directions (gated)."""

    title = "Sparse LoRA"
    hint = "block-diagonal, higher rank"
    summary = "Several small LoRAs along the diagonal: a higher rank from the same number of parameters."
    paper = "Ren et al. 2024, arXiv 2402.17263"
    options = SparseLoRAOptions
    uses = LORA_SETTINGS | (PLACES - {"target_parameters"})
    layers = frozenset({"linear", "conv1d"})

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """The blocks must divide both sides of the layer."""
        super().check_layer(config, path, d_in, d_out)
        options = SparseLoRAOptions(**config.method_options)
        if options.mode == "block" and (d_in % options.blocks or d_out % options.blocks):
            fitting = [n for n in range(1, 33) if not d_in % n and not d_out % n]
            raise ConfigError(
                f"{options.blocks} blocks do not divide layer {path!r}, which is {d_in} x {d_out}.",
                f"Pick one of {', '.join(map(str, fitting))}, or leave the layer out.",
            )

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """r (in + out), whatever the number of blocks; with one gate per direction, or times the terms of a sum."""
        options = SparseLoRAOptions(**config.method_options)
        whole = r * (d_in + d_out)
        return {"block": whole, "gated": whole + r, "sum": whole * options.blocks}[options.mode]
