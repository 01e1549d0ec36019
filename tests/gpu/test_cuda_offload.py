"""What layers keep in the host's memory, on a CUDA device: the same bits, less memory, copies beside the computing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core import step_graphs
from core.config import AdapterConfig, DataConfig, OptimConfig
from core.ops.decoder_layer import Again
from core.train import StepMetrics, Trainer
from tests.core.toy import same_bits, toy_config, toy_llama, toy_trainer, trained_state
from tests.live import figure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
LAYERS = 8  # one a part
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
    "num_key_value_heads": 4, "initializer_range": 0.02, "max_position_embeddings": 8192,
}  # fmt: skip
ROWS, LENGTH = 4, 4096
INPUT = ROWS * LENGTH * 2048 * 2  # bytes of what a layer keeps
SIDES = [  # fused or not; steps with which all is on the device, and all that can has left it
    (True, LAYERS, 2 * LAYERS), (True, LAYERS, 3 * LAYERS), (False, LAYERS, 2 * LAYERS),
]  # fmt: skip


def trainer(fast_path: bool = True, **changes: Any) -> Trainer:
    """A deterministic one, since sums of gradients on a GPU have no fixed order else."""
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(r=8, lora_alpha=16), "data": DataConfig(validation_share=0.0), "fast_path": fast_path,
        "optim": OptimConfig(learning_rate=1e-3), "batch_size": 8, "micro_batch_size": 0, "epochs": 100.0,
        "deterministic": True,
    }  # fmt: skip
    return toy_trainer(toy_config(**{**settings, **changes}), model=toy_llama(**SHAPE).to(torch.bfloat16).cuda())


def first(made: Trainer, steps: int) -> list[StepMetrics]:
    return [metrics for _, metrics in zip(range(steps), made.steps(), strict=False)]


def passed(made: Trainer, steps: int, times: int = 2) -> tuple[list[Tensor], float, int]:
    """Gradients of passes over long rows, with so many steps given up; milliseconds and peak bytes of the last one."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    made.gradients.recompute.steps = steps
    torch.manual_seed(1)
    ids = torch.randint(0, made.model.config.vocab_size, (ROWS, LENGTH), device="cuda")
    weights = torch.randn(ROWS, LENGTH, SHAPE["hidden_size"], device="cuda", dtype=torch.bfloat16)
    for _ in range(times):
        made.model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started.record()
        with made._training(), made.gradients._running():
            (made.model.model(input_ids=ids, use_cache=False).last_hidden_state * weights).sum().backward()
        ended.record()
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    gradients = [parameter.grad.clone() for parameter in made.parameters if parameter.grad is not None]
    assert len(gradients) == len(made.parameters) and all(gradient.any() for gradient in gradients)
    return gradients, started.elapsed_time(ended), peak


@pytest.mark.parametrize(("fast_path", "here", "away"), SIDES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_steps_have_the_same_bits(fast_path: bool, here: int, away: int, dropout: float) -> None:
    adapter = AdapterConfig(r=8, lora_alpha=16, lora_dropout=dropout)
    kept, moved = (trainer(fast_path, adapter=adapter) for _ in range(2))
    kept.gradients.recompute.steps = here
    moved.gradients.recompute.steps = away - LAYERS // 2
    assert [one.loss for one in first(kept, 4)] == [one.loss for one in first(moved, 4)]
    assert same_bits(trained_state(kept), trained_state(moved))
    assert not kept.gradients.recompute.offloads and moved.gradients.recompute.offloads
    assert moved.gradients.recompute.offload.late == 0


@pytest.mark.parametrize(("fast_path", "here", "away"), SIDES)
def test_gradients_have_the_same_bits_in_less_memory(fast_path: bool, here: int, away: int) -> None:
    made = trainer(fast_path)
    first(made, 1)
    wanted, _, whole = passed(made, here)
    peaks = []
    for steps in (away - LAYERS // 2, away):
        for gradients, _, peak in [passed(made, steps) for _ in range(3)]:
            assert all(torch.equal(one, other) for one, other in zip(gradients, wanted, strict=True))
            peaks.append(peak)
    half, full = max(peaks[:3]), max(peaks[3:])
    figure(f"{LAYERS} layers, inputs of {INPUT >> 20} MiB: peak {whole >> 20} MiB; half of them away {half >> 20} MiB, "
           f"all of them {full >> 20} MiB")  # fmt: skip
    assert whole - half > (LAYERS // 2 - 2) * INPUT
    assert whole - full > (LAYERS - 3) * INPUT  # the layer that computes has its input there, and the next one comes
    assert made.gradients.recompute.offload.late == 0


def test_copies_hide_behind_the_computing() -> None:
    made = trainer(fast_path=False, deterministic=False)
    first(made, 1)
    here = min(passed(made, LAYERS, times=3)[1] for _ in range(3))
    away = min(passed(made, 2 * LAYERS, times=3)[1] for _ in range(3))
    figure(f"forward and backward pass, {ROWS} x {LENGTH} tokens: inputs here {here:.1f} ms, away {away:.1f} ms")
    assert made.gradients.recompute.plan(2 * LAYERS) == [Again.OFFLOAD] * LAYERS
    assert made.gradients.recompute.offload.late == 0
    assert away < 1.25 * here


def test_the_next_input_comes_while_a_layer_computes() -> None:
    """By the device's own clock: beside every copy back, kernels run."""
    made = trainer(deterministic=False)
    first(made, 1)
    passed(made, 3 * LAYERS)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        passed(made, 3 * LAYERS, times=1)
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    least = INPUT / 1e12 * 1e6  # microseconds that a copy of an input takes at least
    copies = [event for event in events if "Pinned" in event.name and event.time_range.elapsed_us() > least]
    kernels = [event.time_range for event in events if "Mem" not in event.name]
    back = [event.time_range for event in copies if "HtoD" in event.name]
    assert len(copies) == 2 * LAYERS - 1 and len(back) == LAYERS - 1  # the last input never has to come
    assert all(any(one.start < copy.end and copy.start < one.end for one in kernels) for copy in back)


def test_pinned_memory_is_used_again() -> None:
    """By the next pass too, of which the host is told long before the device is done with the last one."""
    made = trainer(deterministic=False)
    first(made, 1)
    passed(made, 3 * LAYERS)
    before = torch.cuda.host_memory_stats()
    passed(made, 3 * LAYERS, times=3)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device="cuda")
    with made._training(), made.gradients._running():
        for _ in range(3):
            made.model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    after = torch.cuda.host_memory_stats()
    pinned = after["allocated_bytes.current"]
    figure(f"pinned memory for {LAYERS} inputs of {INPUT >> 20} MiB: {pinned >> 20} MiB")
    assert after["num_host_alloc"] == before["num_host_alloc"]


def test_nothing_is_left_behind_by_a_pass_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    made, broken = trainer(), trainer()
    made.gradients.recompute.steps = LAYERS
    recompute, failures = broken.gradients.recompute, 0
    recompute.steps = LAYERS + LAYERS // 2
    fetch = recompute.offload._fetch

    def fails(layer: Any) -> bool:
        nonlocal failures
        found = fetch(layer)
        if found and failures < 3:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")  # while it is on its way
        return found

    monkeypatch.setattr(recompute.offload, "_fetch", fails)
    assert [one.loss for one in first(broken, 2)] == [one.loss for one in first(made, 2)]
    assert same_bits(trained_state(made), trained_state(broken))
    assert failures == 3 and recompute.steps == LAYERS + LAYERS // 2 + 3
    assert recompute.offload._last is recompute.offload._leaving is recompute.offload._coming is None


def test_steps_that_offload_are_replayed_as_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs, "MOST_LAG", 2.0)  # also what the GPU is busy with
    replayed, ordinary = trainer(deterministic=False), trainer(deterministic=False, graphs=False)
    found = []
    for made in (replayed, ordinary):
        made.gradients.recompute.steps = LAYERS + LAYERS // 2
        found.append(first(made, 24))
    graphs = replayed.gradients.graphs
    assert graphs.reason == "" and graphs._recorded and ordinary.gradients.graphs.reason == "graphs are off"
    assert any("the MLP of 4, of which all else waits" in note for note in found[0][0].notes)
    for one, other in zip(*found, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=5e-2)
    seconds = [sum(metrics.seconds for metrics in side[18:]) for side in found]
    figure(f"six steps that offload: replayed {seconds[0] * 1e3:.1f} ms, ordinary {seconds[1] * 1e3:.1f} ms")
