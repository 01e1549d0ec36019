"""Form fields made from the config dataclasses: default, range, choices and help have one source, `core.config`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import gradio as gr

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict, type_name
from core.errors import ConfigError
from core.methods import listed, methods
from studio.system import devices
from ui.i18n import Translator

SECTIONS: dict[str, type] = {"adapter": AdapterConfig, "data": DataConfig, "optim": OptimConfig, "": TrainConfig}
OPTIONS = "method_options"
# Written as patterns or lists; the page offers check boxes for the targets and leaves the rest to YAML and the CLI.
_NOT_IN_FORM = {
    "target_modules", "target_parameters", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save",
    OPTIONS,
}  # fmt: skip
_GPU_ONLY = {"graphs", "deterministic"}  # on a CPU they change nothing


@cache
def has_gpu() -> bool:
    """Whether this machine has a GPU that CUDA uses."""
    return any(device.kind == "cuda" for device in devices())


@dataclass(frozen=True)
class FieldSpec:
    """One setting: where it lives in TrainConfig and what its metadata says."""

    section: str  # adapter, data, optim, method_options, or "" for TrainConfig itself
    name: str  # for an option of a method both names: lora_drop.threshold
    type: str  # int, float, bool or str
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    unit: str
    basic: bool

    @property
    def elem_id(self) -> str:
        """`train-learning-rate` for learning_rate; r and lora_alpha go by the names people use."""
        plain = {"r": "rank", "lora_alpha": "alpha"}.get(self.name, self.name)
        return f"train-{plain.replace('_', '-').replace('.', '-')}"

    @property
    def method(self) -> str:
        """The method whose option it is; empty for a setting of all."""
        return self.name.partition(".")[0] if self.section == OPTIONS else ""

    @property
    def leaf(self) -> str:
        """The name without the method's."""
        return self.name.rpartition(".")[2]


@cache
def fields() -> tuple[FieldSpec, ...]:
    """Every setting that the form shows: basic ones first, then the dataclasses' others, then the methods' own."""
    found = [spec for section, kind in SECTIONS.items() for spec in _fields_of(section, kind)]
    return (*sorted(found, key=lambda spec: not spec.basic), *(spec for name in listed() for spec in options(name)))


def options(method: str) -> list[FieldSpec]:
    """The settings that only one method has; lists of names are filled in by training."""
    kind = methods.get(method).options
    found = _fields_of(OPTIONS, kind, f"{method}.") if kind else ()
    return [spec for spec in found if not spec.type.startswith("tuple")]


def _fields_of(section: str, kind: type, prefix: str = "") -> Iterator[FieldSpec]:
    for item in dataclasses.fields(kind):
        if item.name in _NOT_IN_FORM or item.name in SECTIONS:
            continue
        about = item.metadata
        yield FieldSpec(
            section, f"{prefix}{item.name}", type_name(item), item.default, about["help"],
            about["minimum"], about["maximum"], tuple(about["choices"]), about["unit"], about["basic"],
        )  # fmt: skip


def component(spec: FieldSpec, t: Translator, **look: Any) -> gr.components.Component:
    """The Gradio component of one setting, labelled, explained and bounded; `look` goes to Gradio as it is."""
    label = t(f"option.{spec.leaf}") if spec.method else t(f"field.{spec.name}")
    if spec.unit:
        label = f"{label} ({t(f'unit.{spec.unit}')})"
    shared: dict[str, Any] = {"label": label, "info": t.help(spec.name, spec.help), "elem_id": spec.elem_id}
    if spec.name in _GPU_ONLY and not has_gpu():
        shared |= {"info": f"{t('train.gpu_only')} {shared['info']}", "interactive": False}
    shared |= look
    if spec.name == "method":
        return gr.Dropdown(_method_choices(t), value=spec.default, filterable=False, **shared)
    if spec.choices:
        choices = [(t.known(f"choice.{choice}", choice), choice) for choice in spec.choices]
        return gr.Dropdown(choices, value=spec.default, filterable=False, **shared)
    if spec.type == "bool":
        return gr.Checkbox(value=spec.default, **shared)
    whole = spec.type == "int"
    # The bounds are checked by the config, whose message says what to do; the browser's own would only say "invalid".
    # So is whether a number is whole: with a precision Gradio would round 3.7 to 4 without a word.
    return gr.Number(value=spec.default, step=1 if whole else _step(spec), **shared)


def _method_choices(t: Translator) -> list[tuple[str, str]]:
    """Every method by its title and what sets it apart."""
    return [
        (" · ".join(t.sentence(words) for words in (about.title, about.hint) if words), name)
        for name, about in listed().items()
    ]


def _step(spec: FieldSpec) -> float:
    """How far the arrows of a number field go: a power of ten that suits the default."""
    if not spec.default:
        return 0.01
    return float(10.0 ** (math.floor(math.log10(abs(spec.default))) - (0 if spec.default < 1 else 1)))


def nested(values: Mapping[str, Any], targets: Any) -> dict[str, Any]:
    """Form values by field name as the nested data that `from_dict` takes; what the method does not use is left out.

    ConfigError names the field that is empty.
    """
    data: dict[str, Any] = {"adapter": {OPTIONS: {}}, "data": {}, "optim": {}}
    method = values["method"]
    if "target_modules" in methods.get(method).uses:
        data["adapter"]["target_modules"] = targets
    for spec in fields():
        if not is_shown(spec, method):
            continue
        value = values[spec.name]
        if value is None:
            raise ConfigError(f"{spec.leaf} is empty.", f"The default is {spec.default}.")
        if spec.type == "float":
            value = float(value)
        elif spec.type == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not spec.method:
            (data[spec.section] if spec.section else data)[spec.name] = value
        elif value != spec.default:
            data["adapter"][OPTIONS][spec.leaf] = value
    return data


def is_shown(spec: FieldSpec, method: str) -> bool:
    """Whether a setting means something to a method."""
    if spec.section == "adapter" and spec.name != "method":
        return spec.name in methods.get(method).uses
    return spec.method in ("", method)


def suggested(method: str) -> dict[str, Any]:
    """What fits a method better than the general defaults, for the fields that some method has a suggestion for."""
    usual = {spec.name: spec.default for spec in fields()}
    named = {name for about in listed().values() for name in about.suggested}
    return {name: methods.get(method).suggested.get(name, usual[name]) for name in named}


def config_from(values: Mapping[str, Any], targets: Any) -> TrainConfig:
    """The TrainConfig of a filled form; ConfigError says which field is wrong and what to write."""
    return from_dict(TrainConfig, nested(values, targets))


def values_from(config: TrainConfig) -> dict[str, Any]:
    """The form values of a config, by field name: the inverse of `config_from`."""
    holders = {"adapter": config.adapter, "data": config.data, "optim": config.optim, "": config}
    own = {f"{config.adapter.method}.{name}": value for name, value in config.adapter.method_options.items()}
    return {
        spec.name: own.get(spec.name, spec.default) if spec.method else getattr(holders[spec.section], spec.name)
        for spec in fields()
    }
