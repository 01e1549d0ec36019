"""VeRA: one frozen random pair for the whole model, and two trained vectors a layer."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.methods.method import PLACES, Method, methods


@dataclass(frozen=True)
class VeRAOptions(Checked):
    """What only VeRA has; names are PEFT's."""

    d_initial: float = option(0.1, "Start value of the vector between the two matrices.", minimum=1e-6, maximum=10.0)
    projection_prng_key: int = option(
        0, "Seed of the random matrices; the same seed gives the same matrices.", minimum=0, maximum=2**31 - 1
    )
    save_projection: bool = option(
        True, "Keep the random matrices in the adapter's file; without them it is smaller and needs the same seed."
    )


@methods.register("vera")
class VeRA(Method):
    """The fewest parameters."""

    title = "VeRA"
    summary = "All layers share one random pair of matrices; only two small vectors a layer train. Tiny adapters."
    paper = "Kopiczko et al. 2023, arXiv 2310.11454"
    options = VeRAOptions
    uses = (PLACES - {"target_parameters"}) | {"r", "lora_dropout"}
    reasons = {
        "lora_alpha": "its vectors set the strength by themselves",
        "rank_pattern": "all layers share one pair of matrices, of one rank",
    }
    layers = frozenset({"linear", "conv1d"})
    suggested = {"r": 256}
    learning_rate_factor = 10.0

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """Any rank fits any layer: the matrices are not trained."""

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """r + out: the two vectors."""
        return r + d_out
