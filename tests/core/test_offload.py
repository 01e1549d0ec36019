"""Inputs of layers that wait in the host's memory: when that is offered, and that it changes no bit.

Tensors of the CPU stand for those of a device here; they leave and come back by ordinary copies.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core import gradients, host_memory, offload
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.offload import Offload
from core.ops.decoder_layer import Again
from core.recompute import Recompute
from core.train import StepMetrics, Trainer
from tests.core.toy import same_bits, toy_config, toy_gpt2, toy_llama, toy_trainer, trained_state

LAYERS = 4


@pytest.fixture
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU taken for a device with memory of its own."""
    monkeypatch.setattr(offload, "DEVICES", ("cpu",))


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(r=4, lora_alpha=8), "data": DataConfig(validation_share=0.0),
        "optim": OptimConfig(learning_rate=1e-2, epsilon=1e-2), "batch_size": 4, "micro_batch_size": 4,
    }  # fmt: skip
    return toy_config(**{**settings, **changes})


def trainer(model: Any = None, **changes: Any) -> Trainer:
    return toy_trainer(config(**changes), model=model or toy_llama(num_hidden_layers=LAYERS))


def first(made: Trainer, steps: int) -> list[StepMetrics]:
    return [metrics for _, metrics in zip(range(steps), made.steps(), strict=False)]


def given_up(made: Trainer) -> list[str]:
    """What the log says after every step more, until nothing is left."""
    recompute, found = made.gradients.recompute, []
    first(made, 1)
    while recompute.more():
        found.append(recompute.in_words().removeprefix("Computed again backward, of 4 layers: "))
    return found


def test_a_cpu_has_nothing_to_gain() -> None:
    made = trainer()
    assert given_up(made)[-1] == "all of 4." and len(given_up(trainer(fast_path=False))) == LAYERS
    made.gradients.recompute.steps = 4 * LAYERS  # as a run on a GPU has saved it
    assert made.gradients.recompute.plan(4 * LAYERS) == [Again.LAYER] * LAYERS


def test_layers_as_the_model_has_them_move_their_inputs_last_and_a_part_at_a_time(a_device: None) -> None:
    found = given_up(trainer(fast_path=False))
    assert len(found) == 2 * LAYERS
    moved = [f"all of 4, the inputs of {count} of which wait in the host's memory." for count in range(1, 5)]
    assert found[-5:] == ["all of 4.", *moved]


def test_fused_layers_move_all_they_keep_before_more_is_computed_again(a_device: None) -> None:
    found = given_up(trainer())
    assert len(found) == 3 * LAYERS
    assert found[LAYERS + 1] == (
        "the inner products of the MLP of 2, of which all else waits in the host's memory; "
        "the inner products of the MLP of 2."
    )
    assert found[-1] == "all of 4, the inputs of 4 of which wait in the host's memory."


def test_a_deep_model_moves_eighths() -> None:
    recompute = Recompute(toy_llama(num_hidden_layers=24, hidden_size=8, intermediate_size=8))
    assert [recompute.plan(steps).count(Again.LAYER) for steps in range(9)] == list(range(0, 25, 3))
    assert recompute.steps == 0 and recompute.plan(2)[:7] == [Again.LAYER] * 6 + [Again.NOTHING]


def test_in_a_host_that_is_short_of_memory_all_stays(a_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, made = trainer(), trainer()
    copies: list[int] = []
    monkeypatch.setattr(Offload, "_copy", lambda self, into, source: copies.append(into.copy_(source).nbytes))
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 0)
    made.gradients.recompute.steps = 2 * LAYERS
    found = [one.loss for one in first(made, 2)]
    assert not copies
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 2**30)
    found += [one.loss for one in first(made, 1)]
    assert copies and found == [one.loss for one in first(kept, 3)]


def test_saved_steps_of_a_run_without_a_device_stay_what_they_were() -> None:
    made = trainer()
    first(made, 1)
    made.gradients.load_state_dict({**made.gradients.state_dict(), "recomputed": 3 * LAYERS})
    assert made.gradients.recompute.plan(3 * LAYERS) == [Again.LAYER] * LAYERS
    assert not made.gradients.recompute.offloads


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("method", "fast_path"), [("lora", True), ("lora", False), ("adalora", True)])
def test_steps_have_the_same_bits(a_device: None, dropout: float, method: str, fast_path: bool) -> None:
    adapter = AdapterConfig(method=method, r=4, lora_alpha=8, lora_dropout=dropout)
    changes = {"adapter": adapter, "fast_path": fast_path}
    kept = trainer(**changes)
    wanted = [one.loss for one in first(kept, 3)]
    for steps in range(LAYERS + 1, (3 if fast_path else 2) * LAYERS + 1):
        made = trainer(**changes)
        recompute = made.gradients.recompute
        found = first(made, 1)
        recompute.steps = steps
        found += first(made, 2)
        assert [one.loss for one in found] == wanted
        assert same_bits(trained_state(kept), trained_state(made))
        assert recompute.offloads and recompute.offload._arena.chunks and recompute.offload.late == 0
        assert not any("forward" in vars(layer) for layer in recompute.layers)


def test_another_architecture_has_the_same_bits(a_device: None) -> None:
    kept, made = trainer(toy_gpt2()), trainer(toy_gpt2())
    made.gradients.recompute.steps = 4
    assert [one.loss for one in first(made, 3)] == [one.loss for one in first(kept, 3)]
    assert same_bits(trained_state(kept), trained_state(made))


@pytest.mark.parametrize("steps", [2 * LAYERS, 3 * LAYERS])
def test_layers_without_adapters_before_those_with(a_device: None, steps: int) -> None:
    changes = {"adapter": AdapterConfig(r=4, lora_alpha=8, target_modules=r".*layers\.[23]\..*proj")}
    kept, made = trainer(**changes), trainer(**changes)
    made.gradients.recompute.steps = steps
    assert [one.loss for one in first(made, 3)] == [one.loss for one in first(kept, 3)]
    assert same_bits(trained_state(kept), trained_state(made))


@pytest.mark.parametrize("steps", [2 * LAYERS, 3 * LAYERS])
def test_every_pass_has_the_same_places_so_that_it_can_be_replayed(
    a_device: None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer()
    passes: list[list[tuple[int, int]]] = [[]]
    take, reset = host_memory.Arena.take, host_memory.Arena.reset

    def taking(arena: host_memory.Arena, size_bytes: int, pinned: bool) -> Tensor | None:
        place = take(arena, size_bytes, pinned)
        assert place is not None
        passes[-1].append((size_bytes, place.data_ptr()))
        return place

    def starting(arena: host_memory.Arena) -> None:
        reset(arena)
        passes.append([])

    monkeypatch.setattr(host_memory.Arena, "take", taking)
    monkeypatch.setattr(host_memory.Arena, "reset", starting)
    made.gradients.recompute.steps = steps
    row = made.gradients.prepared.of([0, 1, 2, 3], 0)
    for _ in range(3):
        with made.gradients._running():
            for batch in row.batches:
                made.gradients.add(batch, row.trained)
    first_pass, *others = [taken for taken in passes if taken]
    assert len(others) == 2 and len({place for _, place in first_pass}) == len(first_pass)
    assert others == [first_pass, first_pass]


def test_an_arena_grows_by_what_is_needed_and_gives_its_places_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", 4096)
    arena = host_memory.Arena()
    sizes = 1000, 3000, 10_000, 512
    taken = [arena.take(size, pinned=False) for size in sizes]
    assert [place.numel() for place in taken if place is not None] == list(sizes)
    assert [chunk.numel() for chunk in arena.chunks] == [4096, 10_000, 4096]
    for number, place in enumerate(taken):
        assert place is not None
        place.fill_(number + 1)
    assert [int(place[0]) for place in taken if place is not None] == [1, 2, 3, 4], "places overlap"
    arena.reset()
    again = [arena.take(size, pinned=False) for size in sizes]
    assert all(one is not None and other is not None and one.data_ptr() == other.data_ptr()
               for one, other in zip(taken, again, strict=True))  # fmt: skip
    assert len(arena.chunks) == 3
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 4096)
    assert arena.take(4096, pinned=False) is None


def test_running_out_of_memory_moves_inputs_in_the_end(a_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calm = trainer(), trainer()
    own = type(made.task).loss_sum

    def limited(task: Any, model: Any, batch: Any) -> Tensor:
        if made.task is task and made.gradients.recompute.plan(made.gradients.recompute.steps).count(Again.OFFLOAD) < 3:
            own(task, model, batch)  # forward, and the error after it
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(task, model, batch)

    monkeypatch.setattr(type(made.task), "loss_sum", limited)
    monkeypatch.setattr(gradients, "FULL_SPEED_TOKENS", {"cpu": 10**9})
    found = first(made, 2)
    assert "the inputs of 3 of which wait in the host's memory" in found[0].notes[0]
    assert [one.loss for one in found] == [one.loss for one in first(calm, 2)]
    assert same_bits(trained_state(calm), trained_state(made))


class Layers(nn.Module):
    """Linear layers, checkpointed with their inputs kept by `Offload`."""

    def __init__(self, offloading: Offload, moved: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))
        self.offloading, self.moved = offloading, moved
        self.inputs: list[weakref.ref[Tensor]] = []
        self.events: list[str] = []

    def forward(self, hidden: Tensor, shared: Tensor) -> Tensor:
        for index in range(LAYERS):
            self.inputs.append(weakref.ref(hidden))
            with self.offloading.keeping_input(hidden, index < self.moved):
                hidden = torch.utils.checkpoint.checkpoint(self._layer, hidden, index, shared, use_reentrant=False)
        return hidden

    def _layer(self, hidden: Tensor, index: int, shared: Tensor) -> Tensor:
        self.events.append(f"layer {index}")
        return torch.tanh(self.layers[index](hidden)) * shared


@pytest.mark.parametrize("moved", range(LAYERS + 1))
def test_the_input_of_the_layer_before_comes_while_a_layer_computes(
    moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloading = Offload()
    model = Layers(offloading, moved)
    fetch, sent, shared = offloading._fetch, [], torch.rand(3, 8)

    def told(layer: Any) -> bool:
        found = fetch(layer)
        model.events.extend(["fetch"] * found)
        return found

    def send(memory: Any) -> None:
        sent.append(memory.here.data_ptr())
        Offload._send(offloading, memory)

    monkeypatch.setattr(offloading, "_fetch", told)
    monkeypatch.setattr(offloading, "_send", send)
    given = torch.randn(3, 8, requires_grad=True)
    with offloading.running():
        loss = model(given, shared).square().sum()
        del model.events[:]
        loss.backward()
    backward = [f"{'fetch ' * (0 < index <= moved and index != LAYERS)}layer {index}" for index in range(LAYERS)][::-1]
    assert " ".join(model.events) == " ".join(backward)
    assert offloading.late == 0 and len(sent) == moved and shared.data_ptr() not in sent
    found = [given.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    plain = given.detach().clone().requires_grad_()
    model(plain, shared).square().sum().backward()  # outside of `running`, nothing moves
    wanted = [plain.grad, *(parameter.grad for parameter in model.parameters())]
    assert len(sent) == moved
    assert all(one is not None and other is not None and torch.equal(one, other)
               for one, other in zip(found, wanted, strict=True))  # fmt: skip


def test_inputs_leave_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last one, which is needed at once, and the caller's own."""
    offloading = Offload()
    model = Layers(offloading, LAYERS)
    sent: list[weakref.ref[Tensor]] = []

    def send(memory: Any) -> None:
        sent.append(weakref.ref(memory.here))
        Offload._send(offloading, memory)

    monkeypatch.setattr(offloading, "_send", send)
    given = torch.randn(3, 8)
    with offloading.running():
        loss = model(given, torch.rand(3, 8)).sum()
        gc.collect()
        assert [each() is not None for each in sent] == [False] * (LAYERS - 1) + [True]
        assert [each() is not None for each in model.inputs] == [True] + [False] * (LAYERS - 1)
        loss.backward()
        del loss
    gc.collect()
    assert not any(each() is not None for each in sent)


def test_a_graph_that_is_kept_runs_backward_twice() -> None:
    offloading = Offload()
    model = Layers(offloading, LAYERS)
    with offloading.running():
        loss = model(torch.randn(3, 8), torch.rand(3, 8)).square().sum()
        loss.backward(retain_graph=True)
        once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        loss.backward()
    twice = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(once) == 2 * LAYERS and all(map(torch.equal, once, twice))


def test_an_input_that_finds_no_room_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    offloading = Offload()
    model = Layers(offloading, LAYERS)

    own = torch.empty

    def full(*arguments: Any, **options: Any) -> Tensor:
        if "pin_memory" in options:
            raise RuntimeError("CUDA error: out of memory")
        return own(*arguments, **options)

    with offloading.running(), monkeypatch.context() as patched:
        patched.setattr(offload.torch, "empty", full)
        loss = model(torch.randn(3, 8), torch.rand(3, 8)).sum()
        patched.undo()
        loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_the_host_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CONTAINER", tmp_path)
    assert host_memory.available_bytes() == 0
    (tmp_path / "meminfo").write_text("MemTotal:  2000 kB\nMemFree: 100 kB\nMemAvailable:    1000 kB\nHugePages: 0\n")
    assert host_memory.available_bytes() == 1024000
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory.available_bytes() == 1024000
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("450000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30000\n")
    assert host_memory.available_bytes() == 80000
