"""Forms: every setting of the config has its field, and a filled form becomes exactly that config."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import gradio as gr
import pytest

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict, to_dict
from core.errors import ConfigError
from core.methods import listed
from ui import forms
from ui.command_line import train_command
from ui.i18n import Translator
from ui.method_fields import fitting

DEFAULTS = {spec.name: spec.default for spec in forms.fields()}


def test_every_setting_is_in_the_form_or_left_out_on_purpose() -> None:
    settings = {
        f.name for kind in (AdapterConfig, DataConfig, OptimConfig, TrainConfig) for f in dataclasses.fields(kind)
    }
    left_out = {
        "adapter", "data", "optim", "target_modules", "target_parameters", "exclude_modules",
        "rank_pattern", "alpha_pattern", "modules_to_save", "method_options",
    }  # fmt: skip
    assert {spec.name for spec in forms.fields() if not spec.method} == settings - left_out
    own = {
        f"{name}.{f.name}"
        for name, about in listed().items()
        if about.options
        for f in dataclasses.fields(about.options)
    }
    assert {spec.name for spec in forms.fields() if spec.method} == own - {"lora_drop.kept"}


def test_basic_settings_are_the_ones_the_config_marks() -> None:
    assert [spec.name for spec in forms.fields() if spec.basic] == ["r", "lora_alpha", "learning_rate", "epochs"]


def test_names_and_ids_are_unique() -> None:
    specs = forms.fields()
    assert len({spec.name for spec in specs}) == len({spec.elem_id for spec in specs}) == len(specs)
    assert {"train-rank", "train-alpha", "train-learning-rate", "train-epochs"} <= {spec.elem_id for spec in specs}


def test_untouched_form_is_the_default_config() -> None:
    assert forms.config_from(DEFAULTS, "all-linear") == TrainConfig()


def test_what_only_a_gpu_can_do_says_so_where_there_is_none(t: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = next(spec for spec in forms.fields() if spec.name == "graphs")
    for has_gpu in (False, True):
        monkeypatch.setattr(forms, "has_gpu", lambda has_gpu=has_gpu: has_gpu)
        field = forms.component(graphs, t)
        assert (field.interactive is False, t("train.gpu_only") in field.info) == (not has_gpu, not has_gpu)
        assert field.value is True


def test_a_number_of_parts_is_refused_where_whole_ones_are_meant() -> None:
    field = forms.component(next(spec for spec in forms.fields() if spec.name == "r"), Translator("en"))
    assert field.preprocess(3.7) == 3.7, "rounded in silence, 4 would be trained where 3.7 stands"
    with pytest.raises(ConfigError, match=r"r is 3\.7, which is not a whole number"):
        forms.config_from({**DEFAULTS, "r": 3.7}, "all-linear")
    rank = forms.config_from({**DEFAULTS, "r": 8.0}, "all-linear").adapter.r
    assert (rank, type(rank)) == (8, int)


def test_round_trip_of_a_changed_config() -> None:
    config = from_dict(
        TrainConfig,
        {
            "adapter": {"r": 8, "use_rslora": True, "bias": "all", "target_modules": ["q_proj", "v_proj"]},
            "data": {"completion_only": False, "validation_share": 0.1},
            "optim": {"learning_rate": 1e-3, "schedule": "linear"},
            "epochs": 1.5, "dtype": "float32", "seed": 7,
        },
    )  # fmt: skip
    again = forms.config_from(forms.values_from(config), ["q_proj", "v_proj"])
    assert to_dict(again) == to_dict(config)


def test_whole_numbers_typed_into_float_fields_are_taken() -> None:
    config = forms.config_from({**DEFAULTS, "epochs": 2, "lora_alpha": 16}, "all-linear")
    assert config.epochs == 2.0 and isinstance(config.epochs, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [("r", 0), ("r", None), ("learning_rate", -1.0), ("epochs", float("nan")), ("schedule", "zigzag"), ("seed", -1)],
)
def test_wrong_values_name_the_field_and_a_way_out(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        forms.config_from({**DEFAULTS, name: value}, "all-linear")
    assert caught.value.what.startswith(f"{name} is") and caught.value.fix


def test_no_targets_is_an_error() -> None:
    with pytest.raises(ConfigError, match="target modules"):
        forms.config_from(DEFAULTS, [])


def test_components_carry_label_help_and_default(t: Translator) -> None:
    for spec in forms.fields():
        made = forms.component(spec, t)
        assert made.label and made.info and made.elem_id == spec.elem_id
        assert made.value == spec.default
        assert not spec.choices or all(label != "" for label, _ in made.choices)
        kinds: dict[type, type] = {bool: gr.Checkbox, int: gr.Number, float: gr.Number, str: gr.Dropdown}
        assert isinstance(made, kinds[type(spec.default)])


def test_command_of_an_untouched_form_is_short() -> None:
    assert train_command("m1", "d1", "", TrainConfig()) == "lora-studio train --model m1 --dataset d1"


def test_command_spells_out_what_differs_and_quotes_it() -> None:
    changed = {**DEFAULTS, "r": 8, "learning_rate": 1e-05, "completion_only": False, "use_rslora": True}
    changed |= {"method": "delta_lora", "delta_lora.mode": "mutate", "delta_lora.delta_scale": 0.5}
    config = forms.config_from(changed, ["q_proj", "v_proj"])
    command = train_command("m1", "d1", "it's; rm -rf", config)
    assert "--name 'it'\"'\"'s; rm -rf'" in command
    for words in (
        "--target-modules q_proj,v_proj",
        "--rank 8",
        "--learning-rate 1e-05",
        "--no-completion-only",
        "--use-rslora",
        "--method delta_lora",
        "--method-options delta_scale=0.5,mode=mutate",
    ):
        assert words in command


def other(spec: forms.FieldSpec) -> Any:
    """A value that is not the default."""
    if spec.type == "bool":
        return not spec.default
    if spec.choices:
        return next(choice for choice in reversed(spec.choices) if choice != spec.default)
    return spec.default + 1


def flags_of(command: str) -> dict[str, Any]:
    """A command's options as the CLI hands them to its function."""
    from typer.main import get_command

    from studio.cli import app

    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    return dict(train.make_context("train", shlex.split(command)[2:]).params)


@pytest.mark.parametrize("method", list(listed()))
def test_form_command_and_job_file_are_the_same_job(method: str) -> None:
    """Every field changed that the method has: the command line and the YAML give back the very config."""
    from studio.commands.flags import train_config
    from studio.spec import from_yaml, to_yaml

    values = {spec.name: other(spec) for spec in forms.fields() if spec.name != "method" and _can_change(spec)}
    values = {**DEFAULTS, **values, "method": method}
    config = forms.config_from(values, ["q_proj"])
    assert config.adapter.method == method
    assert config.adapter.method_options.keys() == {s.leaf for s in forms.options(method) if _can_change(s)}
    assert train_config(flags_of(train_command("m", "d", "n", config)), TrainConfig()) == config
    assert from_yaml(to_yaml("n", "m", "d", config))["train"] == config


def _can_change(spec: forms.FieldSpec) -> bool:
    """Not what would leave its range, and not what only fits with other settings."""
    is_bound = spec.type == "float" and spec.maximum is not None and spec.default + 1 > spec.maximum
    return not is_bound and spec.name not in {"multi_label", "task", "dynamic_rank.nested"}


def test_a_picked_method_brings_what_suits_it_and_takes_it_along() -> None:
    """VeRA's rank comes with VeRA and goes with it; a rank that somebody typed stays."""
    assert fitting("vera", DEFAULTS) == {"r": 256}
    assert fitting("lora", {**DEFAULTS, "r": 256}) == {"r": 16}
    assert fitting("rslora", {**DEFAULTS, "r": 7}) == {}


def test_fields_of_other_methods_do_not_count() -> None:
    values = {**DEFAULTS, "method": "prompt", "r": 0, "lora_dropout": 0.5, "lora_drop.top_n": 0}
    assert forms.config_from(values, []).adapter.method == "prompt"
    with pytest.raises(ConfigError, match="tokens is 0"):
        forms.config_from({**values, "prompt.tokens": 0}, [])
