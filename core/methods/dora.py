"""DoRA: the length and the direction of each output's weights learn apart."""

from core.config import AdapterConfig
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods


@methods.register("dora")
class DoRA(Method):
    """LoRA on the direction, and a trained length."""

    title = "DoRA"
    hint = "length and direction apart"
    summary = "LoRA turns the weights' direction, and a trained number per output sets their length. Slower than LoRA."
    paper = "Liu et al. 2024, arXiv 2402.09353"
    uses = (LORA_SETTINGS | PLACES) - {"target_parameters"}
    layers = frozenset({"linear", "conv1d"})
    learning_rate_factor = 0.7

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """r (in + out), and one length for every output."""
        return r * (d_in + d_out) + d_out
