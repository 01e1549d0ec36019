"""Flags made from the config dataclasses: their fields, defaults, ranges and help are the only source."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict, to_dict
from core.errors import ConfigError

SECTIONS: dict[str, type] = {"": TrainConfig, "adapter": AdapterConfig, "optim": OptimConfig, "data": DataConfig}
SHORT = {"r": "--rank", "lora_alpha": "--alpha", "learning_rate": "--lr"}
MORE = {"method": " See `lora-studio methods`.", "method_options": " See `lora-studio methods METHOD`."}
_NAME_LIST = re.compile(r"[\w.-]+(,[\w.-]+)*")


def with_train_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command`, which takes **settings, one flag for each training setting; None stands for "not given"."""
    own = [item for item in inspect.signature(command).parameters.values() if item.kind is not item.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    flags = [_flag(item) for kind in SECTIONS.values() for item in _fields(kind)]
    parameters = [item.replace(annotation=hints[item.name]) for item in own] + flags
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


def train_config(settings: Mapping[str, Any], base: TrainConfig) -> TrainConfig:
    """`base` with the settings that were given; ConfigError names the one that is out of range."""
    values = to_dict(base)
    for section, kind in SECTIONS.items():
        target = values[section] if section else values
        for item in _fields(kind):
            given = settings.get(item.name)
            if given is not None:
                target[item.name] = _parsed(item, given)
    return from_dict(TrainConfig, values)


def _fields(kind: type) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if item.name not in SECTIONS]


def _flag(item: dataclasses.Field[Any]) -> inspect.Parameter:
    dashed = item.name.replace("_", "-")
    names = [f"--{dashed}/--no-{dashed}"] if item.type == "bool" else [f"--{dashed}"]
    if item.name in SHORT:
        names.insert(0, SHORT[item.name])
    about = item.metadata
    choices = f" One of: {', '.join(about['choices'])}." if about["choices"] else ""
    option = typer.Option(
        *names,
        help=f"{about['help']}{choices}{MORE.get(item.name, '')}{_syntax(item)}{_default(item)}",
    )
    kind = {"int": int, "float": float, "bool": bool}.get(str(item.type), str)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default(item: dataclasses.Field[Any]) -> str:
    """As text: the flag's own default is None, "not given", so that a job file's value can stand."""
    return "" if item.default in (dataclasses.MISSING, ()) else f" [default: {item.default}]"


def _syntax(item: dataclasses.Field[Any]) -> str:
    if "Mapping" in str(item.type):
        return " As name=value,name=value."
    return " Several: a,b,c." if "tuple" in str(item.type) else ""


def _parsed(item: dataclasses.Field[Any], given: Any) -> Any:
    """A flag's text as the field's value: a list of names, or pairs name=value; numbers are numbers already."""
    if "Mapping" in str(item.type):
        return dict(_pair(item.name, part) for part in given.split(",") if part)
    if "tuple" in str(item.type) and given != "all-linear":
        if _NAME_LIST.fullmatch(given):
            return given.split(",")
        return given if "str |" in str(item.type) else [given]  # a regular expression
    return given


def _pair(flag: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--{flag.replace('_', '-')} has {text!r}.", "Write name=value, several with commas between.")
    from studio.spec import read_value

    return name, read_value(value)
