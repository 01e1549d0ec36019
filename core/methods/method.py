"""The description of a method, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from core.config import AdapterConfig, from_dict
from core.errors import ConfigError
from core.registry import Registry
from core.schedule import suggest_learning_rate
from core.selection import is_saved, pattern_value, selected_targets

if TYPE_CHECKING:
    from core.models import ModelInfo, Target

LORA_SETTINGS = frozenset({"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"})
PLACES = frozenset({"target_modules", "target_parameters", "exclude_modules", "modules_to_save", "bias"})
LAYERS = frozenset({"linear", "conv1d", "embedding"})
VARIANT, BASELINE = "variant", "baseline"


class Method:
    """One way of fine-tuning; a method overrides what differs from LoRA."""

    title: ClassVar[str]
    hint: ClassVar[str] = ""  # a few words beside the title: what sets it apart
    summary: ClassVar[str]  # one sentence for the form: what it does and when to pick it
    paper: ClassVar[str]  # authors, year, arXiv number
    group: ClassVar[str] = VARIANT
    options: ClassVar[type | None] = None  # dataclass that checks AdapterConfig.method_options
    uses: ClassVar[frozenset[str]] = LORA_SETTINGS | PLACES  # settings of AdapterConfig that mean something to it
    reasons: ClassVar[Mapping[str, str]] = {}  # why a setting that it does not use would not work
    suggested: ClassVar[Mapping[str, Any]] = {}  # settings that suit it better than the general defaults
    learning_rate_factor: ClassVar[float] = 1.0  # its usual learning rate, in LoRA's
    stores_pairs: ClassVar[bool] = False  # its file has LoRA's A and B for every layer, and the change is s B A
    merges: ClassVar[bool] = True  # its change folds into the weights
    unmergeable: ClassVar[str] = ""  # why it does not, as the second half of a sentence
    layers: ClassVar[frozenset[str]] = LAYERS  # kinds of layer that it can adapt

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """Raise ConfigError for settings that this method cannot honour."""
        for item in dataclasses.fields(AdapterConfig):
            if item.name in cls.uses or item.name in ("method", "method_options"):
                continue
            value, default = getattr(config, item.name), _default(item)
            if value != default:
                reason = cls.reasons.get(item.name, f"{cls.title} has no use for it")
                raise ConfigError(
                    f"{item.name} is {value!r}, which {cls.title} cannot honour: {reason}.",
                    f"Leave {item.name} at {default!r}.",
                )

    @classmethod
    def check_steps(cls, config: AdapterConfig, total_steps: int) -> None:
        """Raise ConfigError when a run of that many optimizer steps is too short for the method's own schedule."""

    @classmethod
    def check_model(cls, info: ModelInfo, config: AdapterConfig) -> None:
        """Raise ConfigError when the method has nothing to train on a model, as far as its files tell."""

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """Raise ConfigError when the method cannot adapt a layer of that size."""
        r = pattern_value(config.rank_pattern, path, config.r)
        if r > min(d_in, d_out):
            raise ConfigError(
                f"Rank {r} is larger than layer {path!r}, which is {d_in} x {d_out}.",
                f"Choose a rank up to {min(d_in, d_out)}, give this layer its own in rank_pattern, or leave it out.",
            )

    @classmethod
    def trains_matrices(cls, config: AdapterConfig) -> bool:
        """Whether matrices of the base itself train, which a base in 4 or 8 bits rules out."""
        return False

    @classmethod
    def targets(cls, info: ModelInfo, config: AdapterConfig) -> tuple[Target, ...]:
        """The layers of a model that get an adapter."""
        return selected_targets(info, config)

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """Parameters that train on one layer of `d_in` inputs and `d_out` outputs: r (in + out)."""
        return r * (d_in + d_out)

    @classmethod
    def trainable_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """Parameters that train on a whole model: those of its layers, and `modules_to_save`.

        What the weight files do not list is not counted: the head of a model that ties it to its embedding.
        """
        return sum(cls.parameters_by_target(info, config).values()) + whole_parameters(info, config)

    @classmethod
    def parameters_by_target(cls, info: ModelInfo, config: AdapterConfig) -> dict[str, int]:
        """Parameters that train on each kind of layer, by its name: q_proj, k_proj and so on."""
        return {
            target.name: sum(
                cls.layer_parameters(config, pattern_value(config.rank_pattern, path, config.r), *shape)
                for path, shape in zip(target.paths, target.shapes, strict=True)
            )
            for target in cls.targets(info, config)
        }

    @classmethod
    def describe(cls, info: ModelInfo, config: AdapterConfig) -> str:
        """One sentence on what trains: the layers with an adapter, the positions before a text, or how many numbers."""
        if "target_modules" in cls.uses:
            return f"{sum(target.count for target in cls.targets(info, config))} layers get an adapter."
        if tokens := cls.virtual_tokens(config):
            return f"{tokens} trained positions go before every text."
        return f"{cls.trainable_parameters(info, config):,} of the model's own parameters train."

    @classmethod
    def why_unmergeable(cls) -> str:
        """Why its adapters cannot be merged into their base, as a sentence; empty when they can."""
        if cls.merges:
            return ""
        reason = f": {cls.unmergeable}" if cls.unmergeable else ""
        return f"{cls.title} cannot be merged into the weights{reason}."

    @classmethod
    def paper_url(cls) -> str:
        """Where to read the paper; empty when it is not on arXiv."""
        number = re.search(r"arXiv (\d{4}\.\d{4,5})", cls.paper)
        return f"https://arxiv.org/abs/{number[1]}" if number else ""

    @classmethod
    def rate_factor(cls, config: AdapterConfig) -> float:
        """The usual learning rate with these settings, in LoRA's."""
        return cls.learning_rate_factor

    @classmethod
    def learning_rate(cls, hidden_size: int, config: AdapterConfig) -> float:
        """A learning rate for a model this wide, rounded to two digits."""
        return float(f"{cls.rate_factor(config) * suggest_learning_rate(hidden_size):.1e}")

    @classmethod
    def virtual_tokens(cls, config: AdapterConfig) -> int:
        """Trained positions that go before every prompt: 0 but for the prompt-like methods."""
        return 0


methods: Registry[type[Method]] = Registry("adapter method")


def listed() -> dict[str, type[Method]]:
    """All methods by name, in the order to offer them: the default one, its variants, then the baselines."""
    usual = AdapterConfig().method
    found = [(name, methods.get(name)) for name in methods.names()]
    return dict(sorted(found, key=lambda item: (item[0] != usual, item[1].group == BASELINE, item[1].title.lower())))


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def options_of(config: AdapterConfig) -> Any:
    """The method's own options, checked by its dataclass; None when it has none."""
    method = methods.get(config.method)
    if method.options is not None:
        return from_dict(method.options, config.method_options)
    if config.method_options:
        names = ", ".join(sorted(config.method_options))
        raise ConfigError(f"{method.title} has no options of its own, but got {names}.", "Remove them.")
    return None


def whole_parameters(info: ModelInfo, config: AdapterConfig) -> int:
    """Parameters of the modules that `modules_to_save` names, which train whole."""
    return sum(
        d_in * d_out
        for target in info.targets
        for path, (d_in, d_out) in zip(target.paths, target.shapes, strict=True)
        if is_saved(path, config.modules_to_save)
    )
