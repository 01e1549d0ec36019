"""Bottleneck adapters: two small layers with a non-linearity after each attention and each feed-forward block."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.config import AdapterConfig, Checked, option
from core.methods.method import BASELINE, Method, methods
from core.selection import ALL_LINEAR

if TYPE_CHECKING:
    from core.models import ModelInfo, Target

# The last projection of attention and of the feed-forward block, by family.
BLOCK_OUTPUTS = (
    *("o_proj", "down_proj"),  # Llama and most of its kin
    *("out_proj", "fc2", "self_attn.dense"),  # BART, OPT, Phi
    *("c_proj", "fc_out", "feed_forward.w2"),  # GPT-2, GPT-J, LFM2
    *("attention.dense", "self_attention.dense", "dense_4h_to_h"),  # GPT-NeoX, Bloom, Falcon
    *("output.dense", "out_lin", "lin2", "ffn_output", "Wo"),  # BERT, DistilBERT, ALBERT, ModernBERT
    *("o", "wo"),  # T5
)


@dataclass(frozen=True)
class BottleneckOptions(Checked):
    """What only bottleneck adapters have."""

    width: int = option(64, "Width of the bottleneck.", minimum=1, maximum=65_536)
    exact_start: bool = option(True, "Start as the bare model; otherwise from small random numbers, as in the paper.")
    norms: bool = option(False, "Train the model's normalisation layers too, as in the paper.")


@methods.register("adapter")
class Bottleneck(Method):
    """The method that LoRA was compared with."""

    title = "Bottleneck adapter"
    hint = "extra layers after each block"
    summary = "Small extra layers after each block. They cannot be merged, so answers take a little longer."
    paper = "Houlsby et al. 2019, arXiv 1902.00751"
    group = BASELINE
    options = BottleneckOptions
    uses = frozenset({"target_modules", "exclude_modules", "modules_to_save"})
    merges = False
    unmergeable = "its layers bend what passes through them, and no matrix can do that"
    layers = frozenset({"linear", "conv1d"})
    learning_rate_factor = 1.0

    @staticmethod
    def placed(config: AdapterConfig) -> AdapterConfig:
        """The settings with 'all-linear' taken as the paper means it: the end of each block."""
        is_all = isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR
        return replace(config, target_modules=BLOCK_OUTPUTS) if is_all else config

    @classmethod
    def targets(cls, info: "ModelInfo", config: AdapterConfig) -> "tuple[Target, ...]":
        """The layers at the end of each block."""
        return super().targets(info, cls.placed(config))

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """Any width fits any layer."""

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """Two matrices between `d_out` and the bottleneck, and their biases."""
        width = BottleneckOptions(**config.method_options).width
        return 2 * d_out * width + width + d_out
