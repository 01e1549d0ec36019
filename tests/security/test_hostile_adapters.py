"""Adapters that do not fit, are damaged, or want to run code: refused with the difference, the model left as it was."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.adapters import inject, remove_adapter
from core.config import AdapterConfig
from core.errors import StudioError
from core.export.peft import load_adapter, save_adapter
from core.models import load_model
from tests.scenarios.plugin import Say
from tests.security.hostile_models import CANARY, Bomb, write
from tests.toy import save_model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load_model(save_model(tmp_path_factory.mktemp("base") / "model"), "float32", "cpu")[0]


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return harm


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, CONFIG, json.loads((folder / CONFIG).read_text()) | changes)


def first(state: dict[str, torch.Tensor]) -> str:
    return sorted(state)[0]


def _without_first(state: dict[str, torch.Tensor]) -> None:
    del state[first(state)]


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(folder.parent / CANARY)))


def _header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 99_000_000) + b"{" + b" " * 99_000_000)


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another rank": (config(r=3), r"shape|rank"),
    "rank 0": (config(r=0), r"r is 0"),
    "rank of a million": (config(r=10**6), r"r is 1000000"),
    "NaN": (tensors(lambda state: state[first(state)].fill_(float("nan"))), "NaN"),
    "infinity": (tensors(lambda state: state[first(state)].fill_(float("inf"))), "NaN or infinity"),
    "whole numbers": (tensors(lambda s: s.update({first(s): s[first(s)].to(torch.int32)})), "not floating point"),
    "an extra tensor": (tensors(lambda state: state.update(evil=torch.ones(2))), "evil"),
    "a missing tensor": (tensors(_without_first), r"lora_A"),
    "the shape of another base": (tensors(lambda s: s.update({first(s): torch.ones(4, 999)})), "999"),
    "layers of another base": (config(target_modules=["c_attn"]), "c_attn"),
    "an endless expression": (config(target_modules="(a+)+$", rank_pattern={"(a+)+$": 4}), "too complex"),
    "another method": (config(peft_type="LOHA"), "LOHA"),
    "a part not known": (config(use_qalora=True), "QALoRA"),
    "a setting not known": (config(evil_hook="os.system"), "evil_hook"),
    "its own classes": (config(auto_mapping={"parent_library": "os", "base_model_class": "system"}), ""),
    "replicated layers": (config(layer_replication=[[0, 10**9]]), "replicated"),
    "a config of numbers": (config(lora_alpha="8"), "lora_alpha"),
    "only pickles": (_pickle, "pickle"),
    "a header of 99 MB": (_header, "99,000,000"),
}  # fmt: skip


@pytest.fixture
def folders(base: nn.Module, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Copies of one sound adapter of the base."""

    def make(name: str) -> Path:
        inject(base, AdapterConfig(r=4, target_modules=("q_proj", "v_proj")), name="made")
        folder = save_adapter(base, tmp_path / name, "made")
        remove_adapter(base, "made")
        return folder

    yield make


@pytest.mark.scenario(35)
def test_hostile_adapters_are_refused_with_the_difference(
    base: nn.Module, folders: Callable[[str], Path], tmp_path: Path, figure: Say
) -> None:
    assert load_adapter(base, folders("sound"), name="sound")  # the control
    remove_adapter(base, "sound")
    before = [(name, type(module)) for name, module in base.named_modules()]
    accepted = []
    for name, (harm, word) in HARMS.items():
        folder = folders(name.replace(" ", "-"))
        harm(folder)
        try:
            load_adapter(base, folder, name="hostile")
        except StudioError as error:
            assert re.search(word, f"{error.what} {error.fix}"), (name, str(error))
            assert error.fix
        else:
            accepted.append(name)
            remove_adapter(base, "hostile")
        assert [(path, type(module)) for path, module in base.named_modules()] == before, name
    assert accepted == ["its own classes"]  # fields that nothing here reads
    assert not (tmp_path / CANARY).exists()
    figure(f"{len(HARMS) - 1} hostile adapters: all refused with the difference; classes of its own: never looked at")
