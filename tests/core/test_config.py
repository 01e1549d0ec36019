"""Every setting with values of every type, as job files hold them: it is taken, or one error names it."""

from __future__ import annotations

import dataclasses
import math
from datetime import date
from typing import Any

import pytest

from core.config import AdapterConfig, DataConfig, GenerationConfig, OptimConfig, TrainConfig, from_dict, to_dict
from core.errors import ConfigError
from core.methods import methods

KINDS = [TrainConfig, AdapterConfig, DataConfig, OptimConfig, GenerationConfig]
KINDS += [about.options for name in methods.names() if (about := methods.get(name)).options is not None]
LOOP: list[Any] = []
LOOP.append(LOOP)
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2.5, 8.0, math.nan, math.inf, 10**400, "", "x", "lora", "none", "[", [], [8],
    ["q_proj"], [None], [["q_proj"]], LOOP, {}, {"q_proj": 4}, {"q_proj": True}, {5: 3}, {"q_proj": "x"}, {None: None},
    date(2024, 1, 1), b"x",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_value_of_any_type_is_taken_or_refused_by_name(kind: type) -> None:
    taken = 0
    for item in dataclasses.fields(kind):
        for value in VALUES:
            try:
                made = from_dict(kind, {item.name: value})
            except ConfigError as error:
                known = (item.name, "No target modules", "There is no ", "has no options of its own")
                assert any(words in error.what for words in known), error.what
                assert error.fix
            else:
                taken += 1
                assert from_dict(kind, to_dict(made)) == made
    assert taken >= len(dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"adapter": {"method": None}}, "method is None, which is not a text"),
        ({"adapter": {"target_modules": 5}}, "target_modules is 5, which is not a list of names"),
        ({"adapter": {"modules_to_save": [8]}}, r"modules_to_save is \[8\], which is not a list of names"),
        ({"adapter": {"r": [8]}}, r"r is \[8\], which is not a number"),
        ({"adapter": {"rank_pattern": {5: 3}}}, r"rank_pattern is \{5: 3\}"),
        ({"adapter": {"rank_pattern": {"q": True}}}, "rank_pattern holds rank True"),
        ({"optim": [1]}, r"optim is \[1\]"),
        ({5: 3}, "no setting 5"),
    ],
)
def test_what_is_wrong_is_named(values: dict[Any, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_dict(TrainConfig, values)


def test_values_take_the_type_of_their_setting() -> None:
    made = from_dict(TrainConfig, {"adapter": {"r": 8.0, "target_modules": ["q_proj"]}, "epochs": 2, "optim": None})
    assert (type(made.adapter.r), type(made.epochs)) == (int, float)
    assert made.adapter.target_modules == ("q_proj",) and made.optim == OptimConfig()
