"""What a plan says of the adapter: what trains, why it cannot, and which of its names fit nothing. Torch-free.

Names are looked up in the weight files. A head that is tied to the embedding, or made for new labels, is not in them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from core.config import AdapterConfig, TrainConfig
from core.errors import ConfigError
from core.methods import methods
from core.models import ModelInfo
from core.parts import HEADS
from core.quantize.size import NONE
from core.selection import endings, is_saved, matches, pattern_value
from studio.views import Check

_MEND = "Correct the name, or remove it."


def adapter_checks(info: ModelInfo, run: TrainConfig, total_steps: int) -> Iterator[Check]:
    """What trains, or the first reason why the method cannot train it, and names that change nothing."""
    config = run.adapter
    method = methods.get(config.method)
    try:
        method.check_model(info, config)
        modules = _modules(info)
        if "target_modules" in method.uses:
            _check_targets(info, config, modules)
        _check_saved(config, modules)
        if run.quantization != NONE and method.trains_matrices(config):
            raise ConfigError(
                f"A 4- or 8-bit base cannot train its own weights, which {method.title} does.",
                "Set quantization to none, or pick an adapter method.",
            )
        method.check_steps(config, total_steps)
        yield Check("ok", method.describe(info, config))
        yield from _idle_names(info, config)
    except ConfigError as error:
        yield Check("error", error.what, error.fix)


def _modules(info: ModelInfo) -> list[str]:
    """The paths of all modules with weights in them, and of those that hold such modules."""
    found: dict[str, None] = {}
    for tensor in info.tensors:
        path = tensor.rpartition(".")[0]
        while path and path not in found:
            found[path] = None
            path = path.rpartition(".")[0]
    return list(found)


def _check_targets(info: ModelInfo, config: AdapterConfig, modules: Collection[str]) -> None:
    """Raise ConfigError when no layer gets an adapter, one that the method cannot adapt, or a name is no layer's."""
    method = methods.get(config.method)
    targets = method.targets(info, config)
    if not targets:
        names = ", ".join(target.name for target in info.linear_targets())
        raise ConfigError("The chosen target modules match no layer of this model.", f"It has: {names}.")
    for target in targets:
        if target.group == "embedding" and "embedding" not in method.layers:
            raise ConfigError(f"{method.title} cannot adapt the embedding {target.name}.", "Leave this layer out.")
        for path, (d_in, d_out) in zip(target.paths, target.shapes, strict=True):
            method.check_layer(config, path, d_in, d_out)
    known = {ending for path in modules for ending in endings(path)} | HEADS
    for entry in config.target_modules if not isinstance(config.target_modules, str) else ():
        if entry not in known:
            names = ", ".join(target.name for target in info.linear_targets())
            raise ConfigError(f"target_modules {entry!r} matches no layer of this model.", f"It has: {names}.")


def _check_saved(config: AdapterConfig, modules: Collection[str]) -> None:
    """Raise ConfigError when nothing is what `modules_to_save` names; some of its names may be those of other heads."""
    wanted = config.modules_to_save
    if wanted and not any(is_saved(path, wanted) for path in (*modules, *HEADS)):
        raise ConfigError(
            f"modules_to_save {', '.join(map(repr, wanted))} matches no layer of this model.",
            f"Name modules of the model, such as {', '.join(sorted({_leaf(path) for path in modules})[:8])}.",
        )


def _idle_names(info: ModelInfo, config: AdapterConfig) -> Iterator[Check]:
    """Warnings of names and patterns that fit nothing, so that what was meant does not happen."""
    layers = [path for target in info.targets for path in target.paths]
    excluded = config.exclude_modules
    for entry in ((excluded,) if excluded else ()) if isinstance(excluded, str) else excluded:
        rule = entry if isinstance(excluded, str) else (entry,)
        if not any(matches(path, rule) for path in (*layers, *HEADS)):
            yield Check(
                "warning", f"exclude_modules {entry!r} fits no layer of this model: nothing is left out.", _MEND
            )
    if config.target_parameters:
        return  # single parameters have ranks too, and the files may hold them in other pieces
    paths = [path for target in methods.get(config.method).targets(info, config) for path in target.paths]
    for name, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in pattern:
            if not any(pattern_value({key: True}, path, False) for path in paths):
                yield Check("warning", f"{name} {key!r} fits no layer with an adapter: it changes nothing.", _MEND)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
