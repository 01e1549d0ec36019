"""Forms: every setting of the config has its field, and a filled form becomes exactly that config."""

from __future__ import annotations

import dataclasses

import gradio as gr
import pytest

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict, to_dict
from core.errors import ConfigError
from ui import forms
from ui.command_line import train_command
from ui.i18n import Translator

DEFAULTS = {spec.name: spec.default for spec in forms.fields()}


def test_every_setting_is_in_the_form_or_left_out_on_purpose() -> None:
    settings = {
        f.name for kind in (AdapterConfig, DataConfig, OptimConfig, TrainConfig) for f in dataclasses.fields(kind)
    }
    left_out = {
        "adapter", "data", "optim", "method", "target_modules", "target_parameters", "exclude_modules",
        "rank_pattern", "alpha_pattern", "modules_to_save", "method_options",
    }  # fmt: skip
    assert {spec.name for spec in forms.fields()} == settings - left_out


def test_basic_settings_are_the_ones_the_config_marks() -> None:
    assert [spec.name for spec in forms.fields() if spec.basic] == ["r", "lora_alpha", "learning_rate", "epochs"]


def test_names_and_ids_are_unique() -> None:
    specs = forms.fields()
    assert len({spec.name for spec in specs}) == len({spec.elem_id for spec in specs}) == len(specs)
    assert {"train-rank", "train-alpha", "train-learning-rate", "train-epochs"} <= {spec.elem_id for spec in specs}


def test_untouched_form_is_the_default_config() -> None:
    assert forms.config_from(DEFAULTS, "all-linear") == TrainConfig()


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
        kinds = {bool: gr.Checkbox, int: gr.Number, float: gr.Number, str: gr.Dropdown}
        assert isinstance(made, kinds[type(spec.default)])


def test_command_of_an_untouched_form_is_short() -> None:
    assert train_command("m1", "d1", "", "all-linear", DEFAULTS) == "lora-studio train --model m1 --dataset d1"


def test_command_spells_out_what_differs_and_quotes_it() -> None:
    changed = {**DEFAULTS, "r": 8, "learning_rate": 1e-05, "completion_only": False, "use_rslora": True}
    command = train_command("m1", "d1", "it's; rm -rf", ["q_proj", "v_proj"], changed)
    assert "--name 'it'\"'\"'s; rm -rf'" in command
    for words in (
        "--target-modules q_proj,v_proj",
        "--rank 8",
        "--learning-rate 1e-05",
        "--no-completion-only",
        "--use-rslora",
    ):
        assert words in command


def test_command_is_one_the_cli_takes() -> None:
    from typer.main import get_command

    from studio.cli import app

    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    changed = {
        spec.name: (not spec.default if spec.type == "bool" else spec.choices[-1] if spec.choices else spec.default + 1)
        for spec in forms.fields()
    }
    flags = [word for word in train_command("m", "d", "n", ["a"], changed).split() if word.startswith("--")]
    known = {option for parameter in train.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert len(flags) == len(changed) + 4
    assert set(flags) <= known
