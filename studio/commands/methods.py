"""`lora-studio methods`: the methods there are, and the options that only one of them has."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.setting import type_name
from studio.commands.terminal import AsJson, Workspace, emit, facts, table

if TYPE_CHECKING:
    from core.methods import Method

_FACTS = ("title", "summary", "paper")


def methods(
    method: Annotated[str, typer.Argument(help="A method's name, to see its own options.")] = "",
    workspace: Workspace = None,  # as for every command, though this one needs none
    as_json: AsJson = False,
) -> None:
    """List the methods of `train --method`, or the options of one for `train --method-options`."""
    from rich.console import Group

    from core.methods import listed
    from core.methods import methods as registry

    if method:
        about = _about(method, registry.get(method))
        rows = [(item["name"], item["default"], _range(item), item["help"]) for item in about["options"]]
        shown = table(("option", "default", "values", ""), rows, "It has no options of its own.")
        emit(as_json, about, Group(facts({name: about[name] for name in ("name", *_FACTS)}), "", shown))
        return
    found = [_about(name, kind) for name, kind in listed().items()]
    lines = [(one["name"], one["summary"], ", ".join(item["name"] for item in one["options"])) for one in found]
    emit(as_json, {"methods": found}, table(("method", "what it does", "options of its own"), lines))


def _about(name: str, method: type[Method]) -> dict[str, Any]:
    options = dataclasses.fields(method.options) if method.options else ()
    said = {fact: getattr(method, fact) for fact in _FACTS}
    return {"name": name, **said, "merges": method.merges, "options": [_option(item) for item in options]}


def _option(item: dataclasses.Field[Any]) -> dict[str, Any]:
    about = {key: item.metadata[key] for key in ("minimum", "maximum", "choices", "help")}
    return {"name": item.name, "type": type_name(item), "default": item.default, **about}


def _range(option: dict[str, Any]) -> str:
    """What may be given, in a few characters."""
    if option["choices"]:
        return ", ".join(option["choices"])
    if option["minimum"] is None and option["maximum"] is None:
        return "true, false" if option["type"] == "bool" else str(option["type"])
    return f"{option['minimum']} to {option['maximum']}"
