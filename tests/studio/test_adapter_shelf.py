"""Adapters of the library: ranks, smaller ones, sums, portable files; and what is said of those that have none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.adapters import adapter_names, inject
from core.adapters.change import dense_change
from core.adapters.inject import adapters_of
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import load_adapter, save_adapter
from core.methods import methods
from core.methods.method import BASELINE
from core.models import load_model
from core.rank import suggest_rank
from studio.adapter_shelf import weights_of
from studio.service import Studio
from studio.tables import AdapterRow
from tests import toy
from tests.core.adapters.tiny import shake


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(tmp_path / "workspace")
    yield studio
    studio.close()


class Shop:
    """A studio with one model, on which adapters are put without training."""

    def __init__(self, studio: Studio, base: Path) -> None:
        self.studio, self.base = studio, base
        self.model_id = toy.register_model(_Parts(studio), base).id

    def add(self, name: str, seed: int = 1, **settings: Any) -> str:
        """An adapter away from its start, filed under a name."""
        model, _ = load_model(self.base, dtype="float32", device="cpu")
        inject(model, AdapterConfig(**{"r": 4, "lora_alpha": 8.0, **settings}), seed=seed)
        shake(model, size=0.1, seed=seed)
        method = str(settings.get("method", "lora"))
        row = AdapterRow(name=name, model_id=self.model_id, method=method, r=4, lora_alpha=8.0, parameters=1,
                         size_bytes=1, step=1, sha256="0" * 64)  # fmt: skip
        self.studio._library.add(row)
        save_adapter(model, self.studio.workspace.adapter_folder(row.id))
        return row.id

    def changes(self, adapter_id: str) -> dict[str, Any]:
        """The dense change of every layer, (out, in)."""
        model, _ = load_model(self.base, dtype="float32", device="cpu")
        load_adapter(model, self.studio.export_path("adapter", adapter_id))
        hosts = adapters_of(model).hosts
        return {path: dense_change(host.adapter("default"), host.base_layer) for path, host in hosts.items()}


class _Parts:
    """What `toy.register_model` asks of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.workspace, self.database, self.library = studio.workspace, studio._database, studio._library


@pytest.fixture
def shop(studio: Studio, base: Path) -> Shop:
    return Shop(studio, base)


def test_ranks_of_an_adapter_whose_singular_values_are_known(shop: Shop) -> None:
    view = shop.studio.adapter_shelf.rank(shop.add("one"))
    values = {path: np.linalg.svd(change, compute_uv=False) for path, change in shop.changes(view.adapter_id).items()}
    assert {layer.path.removeprefix("base_model.model.") for layer in view.layers} == set(values)
    for layer in view.layers:
        squares = values[layer.path][: layer.rank] ** 2
        assert layer.rank_95 == 1 + int(np.searchsorted(np.cumsum(squares), 0.95 * squares.sum()))
        assert layer.norm == pytest.approx(float(np.sqrt(squares.sum())), rel=1e-5)
    assert 1 <= view.rank_90 <= view.rank_95 <= view.rank_99 <= view.rank == 4
    assert view.rule_of_thumb == suggest_rank(32)


def test_a_smaller_adapter_loses_exactly_what_is_said(shop: Shop) -> None:
    before = shop.add("one")
    made, found = shop.studio.adapter_shelf.compress(before, 2, None)
    assert made.name == "one r2" and made.r == 2 and made.size_bytes > 0
    old, new = shop.changes(before), shop.changes(made.id)
    lost = np.sqrt(sum(np.square(old[path] - new[path]).sum() for path in old))
    whole = np.sqrt(sum(np.square(change).sum() for change in old.values()))
    assert found.relative_error == pytest.approx(lost / whole, rel=1e-4)
    assert found.relative_error > 0.01


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_a_sum_is_the_sum(shop: Shop, method: str) -> None:
    one, two = shop.add("one"), shop.add("two", seed=2, r=2, target_modules=("q_proj", "v_proj"))
    made, found = shop.studio.adapter_shelf.combine([one, two], [0.5, -2.0], method, None, "sum")
    first, second, total = shop.changes(one), shop.changes(two), shop.changes(made.id)
    expected = {path: 0.5 * change - 2.0 * second.get(path, 0.0) for path, change in first.items()}
    lost = np.sqrt(sum(np.square(expected[path] - total[path]).sum() for path in expected))
    whole = np.sqrt(sum(np.square(change).sum() for change in expected.values()))
    assert made.name == "sum"
    assert max(found.ranks.values()) == (6 if method == "cat" else 4)
    assert lost / whole == pytest.approx(found.relative_error, abs=1e-5)
    assert (found.relative_error < 1e-9) == (method == "cat")


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "adalora", "prompt", "prefix", "adapter", "full"])
def test_an_adapter_comes_back_as_it_went_out(shop: Shop, tmp_path: Path, method: str) -> None:
    r = 16 if methods.get(method).group == BASELINE else 4
    one = shop.add("one", method=method, r=r, lora_alpha=32.0)
    out = tmp_path / "elsewhere"
    shutil.copytree(shop.studio.export_path("adapter", one), out)
    (out / "notes.py").write_text("print('not ours')")
    back = shop.studio.adapter_shelf.take_in(out, shop.model_id)
    folder = shop.studio.export_path("adapter", back.id)
    assert (back.name, back.method, back.model_id, back.step) == ("elsewhere", method, shop.model_id, 0)
    assert {path.name for path in folder.iterdir()} == {path.name for path in out.iterdir()} - {"notes.py"}
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    assert back.id in [view.id for view in shop.studio.adapters()]


def test_what_is_no_adapter_of_the_model_is_not_taken_in(shop: Shop, tmp_path: Path) -> None:
    take_in, before = shop.studio.adapter_shelf.take_in, len(shop.studio.adapters())
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        take_in(tmp_path, shop.model_id)
    other = toy.save_model(tmp_path / "wider", hidden_size=64)
    model, _ = load_model(other, dtype="float32", device="cpu")
    inject(model, AdapterConfig(r=4))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="shape"):
        take_in(tmp_path / "adapter", shop.model_id)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(AdapterError, match="only pickle weights"):
        take_in(tmp_path / "adapter", shop.model_id)
    assert len(shop.studio.adapters()) == before and not list(shop.studio.workspace.tmp.glob("adapter-*"))


def test_an_adapter_alone_is_weighted_under_a_name_of_its_own(shop: Shop) -> None:
    one = shop.add("one")
    made, _ = shop.studio.adapter_shelf.combine([one], [0.5])
    first, half = shop.changes(one), shop.changes(made.id)
    assert made.name == "one x 0.5"
    assert all(np.allclose(half[path], 0.5 * change, atol=1e-5) for path, change in first.items())


def test_what_cannot_be_done_is_said(shop: Shop, tmp_path: Path) -> None:
    shelf, one = shop.studio.adapter_shelf, shop.add("one")
    dora = shop.add("two", method="dora")
    with pytest.raises(AdapterError, match="two factors"):
        shelf.rank(dora)
    assert shelf.rank.__wrapped__(dora, True).rank >= 4
    with pytest.raises(AdapterError, match="one weight"):
        shelf.combine([one], [1.0, 2.0])
    with pytest.raises(AdapterError, match="only with 'svd'"):
        shelf.combine([one], [1.0], "cat", 3)
    for weights, says in (([0.0], "All weights are 0"), ([1.0], "stays what it is")):
        with pytest.raises(AdapterError, match=says):
            shelf.combine([one], weights)
    with pytest.raises(AdapterError, match="does not change the weights"):
        shelf.rank(shop.add("three", method="prompt", r=16, lora_alpha=32.0))
    assert len(shop.studio.adapters()) == 3
    assert list(shop.studio.workspace.tmp.glob("adapter-*")) == []


def test_a_portable_file_loads_as_plain_lora(shop: Shop, tmp_path: Path) -> None:
    adapter = shop.add("one", rank_pattern={"q_proj": 2})
    made = shop.studio.adapter_shelf.portable(adapter, tmp_path / "out")
    model, _ = load_model(shop.base, dtype="float32", device="cpu")
    load_adapter(model, made.folder)
    assert adapter_names(model) == ["default"]
    hosts, old = adapters_of(model).hosts, shop.changes(adapter)
    for path, change in old.items():
        found = dense_change(hosts[path].adapter("default"), hosts[path].base_layer)
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(change), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "weights"), [("", [0.5, 0.5]), ("1, -2", [1.0, -2.0]), ("1;2", [1.0, 2.0]), ("0.5，2", [0.5, 2.0])]
)
def test_weights_as_they_are_written(text: str, weights: list[float]) -> None:
    assert weights_of(text, 2) == weights


def test_weights_that_are_no_numbers() -> None:
    with pytest.raises(AdapterError, match="a, b"):
        weights_of("a, b", 2)
