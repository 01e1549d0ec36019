"""Every public setting with its default, range and help: the one source of form, CLI, YAML and docs. Torch-free.

Each config is a frozen dataclass that checks itself when it is made, so an invalid one cannot exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from core.errors import ConfigError
from core.quantize.size import QUANTIZATIONS
from core.setting import Checked, option, shown, type_name
from core.tasks import choice

__all__ = [
    "AdapterConfig", "Checked", "DataConfig", "GenerationConfig", "OptimConfig", "TrainConfig", "from_dict", "option",
    "to_dict", "type_name",
]  # fmt: skip

C = TypeVar("C")


@dataclass(frozen=True)
class AdapterConfig(Checked):
    """Which adapter, on which modules. Names are PEFT's, so that its users feel at home.

    `method_options` holds what only one method has; that method's own dataclass, in its own file, checks them.
    """

    method: str = option("lora", "How the update of a weight is parametrised.")
    r: int = option(
        16,
        "Rank: size of the update. More rank learns more and costs more memory.",
        minimum=1,
        maximum=4096,
        basic=True,
    )
    lora_alpha: float = option(
        32.0, "Strength of the update: it is scaled by alpha / rank.", minimum=1e-6, maximum=65536, basic=True
    )
    lora_dropout: float = option(
        0.0, "Share of the adapter's input dropped at random while training.", minimum=0.0, maximum=0.95
    )
    target_modules: str | tuple[str, ...] = option(
        "all-linear", "Layers that get an adapter: 'all-linear', name endings, or a regular expression."
    )
    exclude_modules: str | tuple[str, ...] = option((), "Layers left out although they match.")
    target_parameters: tuple[str, ...] = option(
        (), "Single parameters that get an adapter too, such as a mixture's experts: 'mlp.experts.down_proj'."
    )
    rank_pattern: Mapping[str, int] = option({}, "Another rank for the layers whose name ends with (or matches) a key.")
    alpha_pattern: Mapping[str, float] = option(
        {}, "Another alpha for the layers whose name ends with (or matches) a key."
    )
    modules_to_save: tuple[str, ...] = option(
        (), "Modules trained whole and saved with the adapter, such as a new head."
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead, which keeps high ranks learning (rsLoRA).")
    bias: str = option("none", "Which biases of the base train too.", choices=("none", "all", "lora_only"))
    method_options: Mapping[str, Any] = option({}, "Options that only this method has.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_modules and not self.target_parameters:
            raise ConfigError("No target modules are chosen.", "Choose at least one, or 'all-linear'.")
        if self.target_parameters and self.lora_dropout:
            raise ConfigError("lora_dropout does not work with target_parameters.", "Leave lora_dropout at 0.")
        for rank in self.rank_pattern.values():
            if isinstance(rank, bool) or not (isinstance(rank, int) and 1 <= rank <= 4096):
                raise ConfigError(f"rank_pattern holds rank {shown(rank)}.", "Ranks are whole numbers from 1 to 4096.")
        for alpha in self.alpha_pattern.values():
            if isinstance(alpha, bool) or not (isinstance(alpha, (int, float)) and 1e-6 <= alpha <= 65536):
                raise ConfigError(f"alpha_pattern holds alpha {shown(alpha)}.", "Give numbers from 0.000001 to 65536.")
        from core.methods import methods, options_of  # they are described in terms of this class

        options_of(self)
        methods.get(self.method).check(self)


@dataclass(frozen=True)
class DataConfig(Checked):
    """How rows become training examples."""

    max_length: int = option(
        0,
        "Longest example; longer ones are cut. 0 picks the 99th percentile, rounded up to 64.",
        minimum=0,
        maximum=1_048_576,
        unit="tokens",
    )
    completion_only: bool = option(True, "Train on the answers only, not on the prompts.")
    multi_label: bool = option(False, "A text may have several labels, written with commas between them.")
    token_dropout: float = option(
        0.0, "Share of the prompt's tokens hidden at random each time a row is trained on.", minimum=0.0, maximum=0.9
    )
    curriculum: str = option(
        "none", "Order of the first epoch: drawn at random, or short rows first.", choices=("none", "short_first")
    )
    validation_share: float = option(
        0.05, "Share of the rows held out to measure the validation loss.", minimum=0.0, maximum=0.5
    )
    validation_max_rows: int = option(500, "Most rows that are held out.", minimum=0, maximum=100_000, unit="rows")


@dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW and its schedule."""

    learning_rate: float = option(
        0.0,
        "Size of a step. 0 picks one that suits the width of the model, from 2e-4 (large) to 2e-3 (small).",
        minimum=0.0,
        maximum=10.0,
        basic=True,
    )
    schedule: str = option(
        "cosine", "How the learning rate falls after the warm-up.", choices=("cosine", "linear", "constant")
    )
    warmup_share: float = option(
        0.03, "Share of all steps over which the learning rate rises from 0.", minimum=0.0, maximum=1.0
    )
    weight_decay: float = option(0.0, "Pull of the trained weights towards 0 (decoupled).", minimum=0.0, maximum=10.0)
    label_smoothing: float = option(
        0.0, "Share of the probability that training gives to all other answers alike.", minimum=0.0, maximum=0.9
    )
    neftune_alpha: float = option(
        0.0, "Noise on the embeddings while training (NEFTune); 5 is usual. 0 adds none.", minimum=0.0, maximum=1000.0
    )
    beta1: float = option(0.9, "Decay of AdamW's mean of gradients.", minimum=0.0, maximum=0.9999)
    beta2: float = option(0.999, "Decay of AdamW's mean of squared gradients.", minimum=0.0, maximum=0.99999)
    epsilon: float = option(1e-8, "Keeps AdamW's division finite.", minimum=1e-12, maximum=1.0)
    max_grad_norm: float = option(
        1.0, "Gradients longer than this are scaled down. 0 never clips.", minimum=0.0, maximum=1e6
    )


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training run: its length, its batches, and when it measures, saves and stops."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    task: str = option(
        choice.AUTO, "What is learned. auto takes what the dataset and the model are made for.", choices=choice.NAMES
    )
    dpo_beta: float = option(
        0.1,
        "How strongly preference tuning holds the model to its base: higher keeps it closer.",
        minimum=1e-4,
        maximum=100.0,
    )
    epochs: float = option(3.0, "How often every row is seen.", minimum=0.01, maximum=1000.0, basic=True)
    max_steps: int = option(
        0,
        "Stop after this many steps, whatever the epochs say. 0 means no limit.",
        minimum=0,
        maximum=10_000_000,
        unit="steps",
    )
    batch_size: int = option(
        0, "Rows per optimizer step. 0 picks 16, or 8 below 500 rows.", minimum=0, maximum=65_536, unit="rows"
    )
    micro_batch_size: int = option(
        0,
        "Rows per forward pass; less needs less memory. The result changes by rounding alone, and by what dropout "
        "draws. 0 picks it.",
        minimum=0,
        maximum=65_536,
        unit="rows",
    )
    packing: bool = option(
        True,
        "Put rows behind each other instead of padding them to one length: the same result, sooner. Models that "
        "cannot do this exactly are padded.",
    )
    graphs: bool = option(
        True,
        "Replay steps on a GPU as CUDA graphs where launching takes longer than computing, as with small models, or "
        "all batches have one shape: the same result.",
    )
    deterministic: bool = option(
        False,
        "Two runs give the same bits on a GPU too, with slower kernels: an 8B step took 8 % longer on an H200. Steps "
        "of small models are not replayed then, and can take twice as long. On a CPU they always do.",
    )
    eval_every: int = option(
        0,
        "Steps between two measurements of the validation loss. 0 measures up to 20 times a run.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
    )
    answer_rows: int = option(
        16,
        "Held-out rows that are answered before and after, and the answers scored. 0 answers none.",
        minimum=0,
        maximum=100_000,
        unit="rows",
    )
    answer_every: int = option(
        0,
        "Steps between two scorings of answers. 0 scores them only before the first step and of the best adapter.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
    )
    patience: int = option(
        3,
        "Stop early after this many measurements, and an epoch (classifiers: two), without a better validation loss. "
        "0 never stops early.",
        minimum=0,
        maximum=1000,
    )
    save_every: int = option(
        0, "Steps between two checkpoints. 0 saves at every measurement.", minimum=0, maximum=1_000_000, unit="steps"
    )
    keep_checkpoints: int = option(
        2, "How many of the newest checkpoints are kept, beside the best one.", minimum=1, maximum=100
    )
    dtype: str = option(
        "auto",
        "Number format of the frozen base; adapters are always trained in float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    quantization: str = option(
        "none",
        "Keep the frozen base in 4 bits (nf4, as QLoRA does) or 8 (int8): far less memory, somewhat slower steps.",
        choices=QUANTIZATIONS,
    )
    fast_path: bool = option(
        True, "Run decoder layers on fused functions where the model and the method allow: faster, in less memory."
    )
    seed: int = option(42, "The same seed gives the same run.", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class GenerationConfig(Checked):
    """How a model answers."""

    max_new_tokens: int = option(
        256, "Most tokens of an answer.", minimum=1, maximum=1_048_576, unit="tokens", basic=True
    )
    temperature: float = option(
        0.7, "How freely words are drawn; 0 always takes the likeliest.", minimum=0.0, maximum=10.0, basic=True
    )
    top_p: float = option(
        0.9, "Draw only from the likeliest words that together have this probability.", minimum=1e-6, maximum=1.0
    )
    seed: int = option(0, "The same seed gives the same answer.", minimum=0, maximum=2**31 - 1)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain, JSON- and YAML-ready data; `from_dict` is its inverse."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, (tuple, list, set)) else value


_SECTIONS: dict[str, type] = {"adapter": AdapterConfig, "data": DataConfig, "optim": OptimConfig}


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from plain data; missing keys take their default, unknown ones raise ConfigError."""
    from difflib import get_close_matches

    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            raise ConfigError(f"There is no setting {name!r}.", f"Did you mean {near[0]!r}?" if near else "Remove it.")
        if name in _SECTIONS and (value is None or isinstance(value, Mapping)):  # YAML reads a heading alone as None
            value = from_dict(_SECTIONS[name], value or {})
        made[name] = value
    return kind(**made)
