"""Form fields made from the config dataclasses: default, range, choices and help have one source, `core.config`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict
from core.errors import ConfigError
from ui.i18n import Translator

SECTIONS: dict[str, type] = {"adapter": AdapterConfig, "data": DataConfig, "optim": OptimConfig, "": TrainConfig}
# Written as patterns or lists; the page offers check boxes for the targets and leaves the rest to YAML and the CLI.
_NOT_IN_FORM = {
    "method", "target_modules", "target_parameters", "exclude_modules", "rank_pattern", "alpha_pattern",
    "modules_to_save", "method_options",
}  # fmt: skip


@dataclass(frozen=True)
class FieldSpec:
    """One setting: where it lives in TrainConfig and what its metadata says."""

    section: str  # adapter, data, optim, or "" for TrainConfig itself
    name: str
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
        return f"train-{plain.replace('_', '-')}"


def fields() -> list[FieldSpec]:
    """Every setting that the form shows, basic ones first, in the order of the dataclasses."""
    found = [spec for section, kind in SECTIONS.items() for spec in _fields_of(section, kind)]
    return sorted(found, key=lambda spec: not spec.basic)


def _fields_of(section: str, kind: type) -> Iterator[FieldSpec]:
    for item in dataclasses.fields(kind):
        if item.name in _NOT_IN_FORM or item.name in SECTIONS:
            continue
        about = item.metadata
        yield FieldSpec(
            section, item.name, str(item.type), item.default, about["help"], about["minimum"], about["maximum"],
            tuple(about["choices"]), about["unit"], about["basic"],
        )  # fmt: skip


def component(spec: FieldSpec, t: Translator) -> gr.components.Component:
    """The Gradio component of one setting, labelled, explained and bounded."""
    label = t(f"field.{spec.name}")
    if spec.unit:
        label = f"{label} ({t(f'unit.{spec.unit}')})"
    shared: dict[str, Any] = {"label": label, "info": t.help(spec.name, spec.help), "elem_id": spec.elem_id}
    if spec.choices:
        choices = [(t.known(f"choice.{choice}", choice), choice) for choice in spec.choices]
        return gr.Dropdown(choices, value=spec.default, filterable=False, **shared)
    if spec.type == "bool":
        return gr.Checkbox(value=spec.default, **shared)
    whole = spec.type == "int"
    # The bounds are checked by the config, whose message says what to do; the browser's own would only say "invalid".
    return gr.Number(value=spec.default, precision=0 if whole else None, step=1 if whole else _step(spec), **shared)


def _step(spec: FieldSpec) -> float:
    """How far the arrows of a number field go: a power of ten that suits the default."""
    if not spec.default:
        return 0.01
    return float(10.0 ** (math.floor(math.log10(abs(spec.default))) - (0 if spec.default < 1 else 1)))


def nested(values: Mapping[str, Any], targets: Any) -> dict[str, Any]:
    """Form values by field name as the nested data that `from_dict` takes.

    ConfigError names the field that is empty.
    """
    data: dict[str, Any] = {"adapter": {"target_modules": targets}, "data": {}, "optim": {}}
    for spec in fields():
        value = values[spec.name]
        if value is None:
            raise ConfigError(f"{spec.name} is empty.", f"The default is {spec.default}.")
        if spec.type == "float":
            value = float(value)
        (data[spec.section] if spec.section else data)[spec.name] = value
    return data


def config_from(values: Mapping[str, Any], targets: Any) -> TrainConfig:
    """The TrainConfig of a filled form; ConfigError says which field is wrong and what to write."""
    return from_dict(TrainConfig, nested(values, targets))


def values_from(config: TrainConfig) -> dict[str, Any]:
    """The form values of a config, by field name: the inverse of `config_from`."""
    holders = {"adapter": config.adapter, "data": config.data, "optim": config.optim, "": config}
    return {spec.name: getattr(holders[spec.section], spec.name) for spec in fields()}
