"""The fused functions on a CUDA device: kernels against plain operations, gradients against float64, graphs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from core import loss
from core.adapters.dora import row_lengths
from core.ops import dropout, gating, group_gradients, lora_gate, rms_norm, rope, scaled_gate
from core.ops.fast_path import FastPath
from core.ops.kernels import is_hopper, kernels_for
from core.ops.small_gradients import small_gradients
from core.quantize.model import quantize_model
from tests.core.ops.families import OWN, adapted, step, tiny, worst_difference
from tests.live import figure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("width", [64, 576, 4096, 5000])
def test_norm_kernels(dtype: torch.dtype, width: int) -> None:
    x, g, residual = (numbers(33, width, dtype=dtype) for _ in range(3))
    norm = rms_norm.Norm(numbers(width, dtype=dtype), 1e-5, 1.0)
    fast = kernels_for(x)
    assert fast is not None
    leaf = x.float().requires_grad_()
    wide = rms_norm.Norm(norm.weight.float(), norm.eps, norm.offset)
    expected = rms_norm.rms_norm_reference(leaf, wide)
    (d_x,) = torch.autograd.grad(expected, leaf, g.float())
    y, rstd = fast.norm_forward(x, norm.weight, norm.eps, norm.offset)
    torch.testing.assert_close(y.float(), expected, **CLOSE[dtype])
    assert torch.equal(fast.norm_again(x, rstd, norm.weight, norm.offset), y)
    found = fast.norm_backward(g, x, rstd, norm.weight, norm.offset, residual)
    torch.testing.assert_close(found.float(), d_x + residual.float(), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", [gating.SILU, gating.GELU_TANH], ids=lambda each: each.name)
def test_gate_kernels(dtype: torch.dtype, activation: gating.Activation) -> None:
    e, u = numbers(33, 2 * 1500, dtype=dtype).chunk(2, dim=-1)
    g = numbers(33, 1500, dtype=dtype)
    leaves = [e.float().requires_grad_(), u.float().requires_grad_()]
    expected = gating.gate_reference(leaves[0], leaves[1], activation)
    wanted = torch.autograd.grad(expected, leaves, g.float())
    torch.testing.assert_close(gating.gate_forward(e, u, activation).float(), expected, **CLOSE[dtype])
    gated, *found = gating.gate_backward(g.clone(), e, u, activation)
    for one, other in zip([gated, *found], [expected, *wanted], strict=True):
        torch.testing.assert_close(one.float(), other, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", [gating.SILU, gating.GELU_TANH], ids=lambda each: each.name)
@pytest.mark.parametrize("ranks", [(3, 5, 16), (16, 16, 16), (32, 8, 20)], ids=str)
@pytest.mark.parametrize("shape", [(70, 304), (2100, 1024)], ids=str)
def test_gate_kernels_with_small_products(
    dtype: torch.dtype, activation: gating.Activation, ranks: tuple[int, int, int], shape: tuple[int, int]
) -> None:
    rows, width = shape
    small_e, small_u = numbers(rows, ranks[0] + ranks[1], dtype=dtype).split(ranks[:2], dim=1)
    factors = [0.3 * numbers(*size, dtype=dtype) for size in ((width, ranks[0]), (width, ranks[1]), (ranks[2], width))]
    around = lora_gate.Around(small_e, small_u, *factors, 0.7)
    e, u = numbers(rows, 2 * width, dtype=dtype).chunk(2, dim=1)
    g, d_small = numbers(rows, width, dtype=dtype), numbers(rows, ranks[2], dtype=dtype)
    tensors = [getattr(around, each.name) for each in fields(around)[:-1]]
    exact = lora_gate.Around(*(each.double() for each in tensors), around.scale)  # has no kernel
    wide = e.double(), u.double(), exact

    def ends(gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.cat([gradient, torch.zeros_like(gradient)], dim=1).chunk(2, dim=1)  # side by side, as in a layer

    wanted = (
        *lora_gate.lora_gate_forward(*wide, activation),
        *lora_gate.lora_gate_backward(*(wide_ends := ends(g.double())), *wide, d_small.double(), activation),
        *wide_ends,
    )
    found = (
        *lora_gate.lora_gate_forward(e, u, around, activation),
        *lora_gate.lora_gate_backward(*(own_ends := ends(g)), e, u, around, d_small, activation),
        *own_ends,
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype] * other.norm()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", [gating.SILU, gating.GELU_TANH], ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [(70, 300), (2100, 1024)], ids=str)
def test_gate_kernels_with_gains(dtype: torch.dtype, activation: gating.Activation, shape: tuple[int, int]) -> None:
    e, u, g = (numbers(*shape, dtype=dtype) for _ in range(3))
    gains = [torch.rand(shape[1], device="cuda") + 0.5 for _ in range(2)]
    wide = [e.double(), u.double()], [gain.double() for gain in gains]
    wanted = (
        scaled_gate.scaled_gate_forward(*wide, activation),
        *scaled_gate.scaled_gate_backward(g.double(), *wide, activation),
    )
    found = (
        scaled_gate.scaled_gate_forward([e, u], gains, activation),
        *scaled_gate.scaled_gate_backward(g.clone(), [e, u], gains, activation),
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype] * other.norm()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("width", [64, 48])
def test_rope_kernel(dtype: torch.dtype, width: int) -> None:
    x = numbers(2, 5, 7, 64, dtype=dtype).transpose(1, 2)
    cos, sin = (numbers(1, 7, width, dtype=dtype) for _ in range(2))
    leaf = x.float().requires_grad_()
    expected = rope.rope_reference(leaf, cos.float(), sin.float())
    (wanted,) = torch.autograd.grad(expected, leaf, expected.detach())
    own = x.detach().requires_grad_()
    found = rope.rope(own, cos, sin)
    torch.testing.assert_close(found.float(), expected, **CLOSE[dtype])
    (d_x,) = torch.autograd.grad(found, own, expected.detach().to(dtype))
    torch.testing.assert_close(d_x.float(), wanted, rtol=5e-2 if dtype == torch.bfloat16 else 1e-4, atol=5e-2)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("heads", "others", "rank"), [(4, 2, 16), (9, 3, 8), (32, 8, 16)])
def test_q_k_and_v_at_once(dtype: torch.dtype, heads: int, others: int, rank: int) -> None:
    whole = numbers(2, 21, heads + 2 * others, 64, dtype=dtype)
    cos, sin = (numbers(1, 21, 64, dtype=dtype) for _ in range(2))
    smalls, factors = numbers(42, 3 * rank, dtype=dtype), 0.3 * numbers(whole.shape[2] * 64, rank, dtype=dtype)
    widths = [64 * heads, 64 * others, 64 * others]
    pairs = zip(smalls.double().split(rank, dim=1), factors.double().split(widths), strict=True)
    added = whole.double() + torch.cat([small @ b.T for small, b in pairs], dim=1).view(whole.shape)
    turned = rope.rope_reference(added[:, :, : heads + others], cos.double(), sin.double())
    expected = torch.cat([turned, added[:, :, heads + others :]], dim=2)
    fast = kernels_for(whole)
    assert fast is not None
    parts = torch.split(whole, [heads, others, others], dim=2)
    made = torch.zeros_like(whole)
    fast.turn(parts, cos, sin, True, None, made)
    leaf = whole.double().requires_grad_()
    rope.rope_reference(leaf, cos.double(), sin.double()).backward(whole.double())
    assert leaf.grad is not None
    torch.testing.assert_close(made[:, :, : heads + others].double(), leaf.grad[:, :, : heads + others], **CLOSE[dtype])
    assert torch.equal(made[:, :, heads + others :], parts[2])
    fast.turn(parts, cos, sin, False, (smalls, factors), whole)
    torch.testing.assert_close(whole.float(), expected.float(), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("vocabulary", [96, 8192, 49_152, 128_256])
def test_cross_entropy_kernel(dtype: torch.dtype, vocabulary: int) -> None:
    logits = 4 * numbers(37, vocabulary, dtype=dtype)
    logits[0, : vocabulary - 90] = -torch.inf  # whole blocks of words that a model never says
    targets = torch.randint(vocabulary - 90, vocabulary, (37,), device="cuda")
    targets[5] = -100
    leaf = logits.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), leaf)
    fast = kernels_for(logits)
    assert fast is not None
    torch.testing.assert_close(fast.cross_entropy(logits, targets), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.float(), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


def test_chunked_loss_is_the_models_own_in_bfloat16() -> None:
    output = torch.nn.Linear(64, 1000, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    rows = numbers(700, 64, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 1000, (700,), device="cuda")
    expected = torch.nn.functional.cross_entropy(output(rows).float(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(expected, rows)
    found = loss.chunked_loss(loss.Head(output, output, loss.unchanged), rows, targets, 256)
    (d_rows,) = torch.autograd.grad(found, rows)
    found, expected = found.detach(), expected.detach()
    assert abs(float(found - expected)) <= 1e-5 * float(expected)
    assert float((d_rows.float() - wanted.float()).norm()) <= 1e-2 * float(wanted.float().norm())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("start", ["none", "bias", "residual"])
def test_dora_kernels(dtype: torch.dtype, start: str) -> None:
    product, g = numbers(70, 1500, dtype=dtype), numbers(70, 1500, dtype=dtype)
    gain = 1 + 0.1 * torch.randn(1500, device="cuda")
    added = {"none": None, "bias": numbers(1500, dtype=dtype), "residual": numbers(70, 1500, dtype=dtype)}[start]
    fast = kernels_for(product)
    assert fast is not None
    wanted = product.float() * gain + (0.0 if added is None else added.float())
    torch.testing.assert_close(fast.scale_columns(product, gain, added).float(), wanted, **CLOSE[dtype])
    made, sums = fast.scale_back(g, product, gain)
    torch.testing.assert_close(made.float(), g.float() * gain, **CLOSE[dtype])
    torch.testing.assert_close(sums, (g.float() * product.float()).sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rank", [3, 16, 64, 200])
def test_the_kernel_that_adds_a_small_product(dtype: torch.dtype, rank: int) -> None:
    start, small, b = numbers(77, 600, dtype=dtype), numbers(77, 2 * rank, dtype=dtype), numbers(600, rank, dtype=dtype)
    fast = kernels_for(start)
    assert fast is not None
    small = small[:, rank:]  # one of several that stand beside each other
    expected = start.float() + small.float() @ b.float().T
    found = fast.add_product(start, small, b)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, **(CLOSE[dtype] | {"atol": 1e-3 if dtype == torch.float32 else 0.1})
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(96,), (80, 48), (576, 192, 192), (1040, 48, 48), (2048, 512, 512)], ids=str)
@pytest.mark.parametrize(("rank", "rows"), [(16, 300), (3, 70), (32, 2100)])
def test_both_small_gradients_in_one_pass(dtype: torch.dtype, widths: tuple[int, ...], rank: int, rows: int) -> None:
    if not is_hopper(torch.device("cuda")):
        pytest.skip("older GPUs form them one by one")
    # in a wider matrix, and behind other numbers, as the parts of larger ones lie
    gradients = numbers(rows, sum(widths) + 16, dtype=dtype)[:, 8:-8].split(widths, dim=1)
    factors = numbers(sum(widths) + 8, rank, dtype=dtype)[8:].split(widths)
    smalls = numbers(rows, rank * len(widths) + 1, dtype=dtype)[:, 1:].split(rank, dim=1)
    found = small_gradients(gradients, factors, smalls)
    assert found is not None
    d_small, d_factors = found
    for dy, b, s, d_s, d_b in zip(gradients, factors, smalls, d_small.split(rank, dim=1), d_factors, strict=True):
        torch.testing.assert_close(d_s, dy @ b, rtol=1e-2, atol=1e-2 * rank)
        torch.testing.assert_close(d_b, dy.float().T @ s.float(), rtol=1e-3, atol=1e-3 * rows**0.5)
    again = small_gradients(gradients, factors, smalls)
    assert again is not None
    assert torch.equal(again[0], d_small) and all(map(torch.equal, again[1], d_factors))
    alone = small_gradients(gradients, factors, smalls, wants_b=False)
    assert alone is not None and alone[1] == []
    torch.testing.assert_close(alone[0], d_small, rtol=1e-2, atol=1e-2)


def test_small_gradients_of_what_lies_apart_are_left_to_others() -> None:
    dy, b, s = (numbers(*size, dtype=torch.bfloat16) for size in ((64, 96), (96, 16), (64, 16)))
    apart = dy.clone(), b.clone(), s.clone()
    assert small_gradients([dy, apart[0]], [b, apart[1]], [s, apart[2]]) is None
    assert small_gradients([dy[:, 1:]], [b[1:]], [s]) is None  # rows that no tile can begin with
    assert small_gradients([dy.float()], [b.float()], [s.float()]) is None


@pytest.mark.parametrize("settings", [{}, {"method": "dora"}], ids=str)
def test_a_step_forms_small_gradients_in_one_pass(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_hopper(torch.device("cuda")):
        pytest.skip("older GPUs form them one by one")
    layers = []

    def counted(*given: Any) -> Any:
        made = small_gradients(*given)
        layers.append(0 if made is None else len(given[0]))
        return made

    model = adapted(tiny("Llama"), **settings).cuda()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    monkeypatch.setattr(group_gradients, "small_gradients", counted)
    _, found = step(model, FastPath(model))
    assert {3, 1} <= set(layers)  # q, k and v; o and down
    assert 2 in layers or settings  # gate and up, whose B the gate's kernel serves; not with DoRA
    monkeypatch.setattr(group_gradients, "small_gradients", lambda *unused: None)
    _, apart = step(model, FastPath(model))
    assert worst_difference(apart, found) < 2e-2


@pytest.mark.parametrize("rank", [4, 16, 100])
def test_the_kernel_of_row_lengths(rank: int) -> None:
    weight, a, b = (numbers(*shape, dtype=torch.float32) for shape in ((70, 40), (rank, 40), (70, rank)))
    expected = torch.linalg.vector_norm(weight.double() + 0.5 * b.double() @ a.double(), dim=1)
    cross = weight @ a.T
    found = row_lengths(weight.square().sum(dim=1), cross, b, a @ a.T, 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    coarse = row_lengths(weight.square().sum(dim=1), cross.bfloat16(), b, a @ a.T, 0.5)  # as of a bfloat16 base
    torch.testing.assert_close(coarse.double(), expected, rtol=1e-2, atol=1e-2)


def test_dropout_kernel_draws_what_plain_operations_draw() -> None:
    x = torch.ones(100, 1000, device="cuda")
    seed = dropout.draw_seed(x.device)
    found = dropout.dropped(x, seed, 0.3)
    assert torch.equal(found != 0, dropout.keep_mask(seed, x, 0.3) != 0)
    assert 0.69 < float((found != 0).float().mean()) < 0.71


@pytest.mark.parametrize("family", OWN)
def test_gradients_equal_layer_by_layer(family: str) -> None:
    model = adapted(tiny(family)).cuda()
    path = FastPath(model)
    assert "all 3" in path.sentence
    (loss, gradients), (fused_loss, fused) = step(model, None), step(model, path)
    assert float(fused_loss) == pytest.approx(float(loss), rel=1e-5)
    assert worst_difference(gradients, fused) < 1e-3


MADE = [{"method": "adalora"}, {"method": "delta_lora"}, {"method": "sparse_lora"}]  # factors that are no parameters


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.2}, {"method": "dora"}, *MADE], ids=str)
def test_other_settings_equal_layer_by_layer(settings: dict[str, Any]) -> None:
    model = adapted(tiny("Llama"), **settings).cuda()
    (_, gradients), (_, fused) = step(model, None), step(model, FastPath(model))
    assert worst_difference(gradients, fused) < 1e-3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_equals_layer_by_layer(kind: str) -> None:
    model = tiny("Llama")
    quantize_model(model, kind)
    model = adapted(model).cuda()
    (_, gradients), (_, fused) = step(model, None), step(model, FastPath(model))
    assert worst_difference(gradients, fused) < 1e-3


def test_bfloat16_is_no_less_exact_than_layer_by_layer() -> None:
    """On average over models: which of two roundings in a deep model ends nearer to the truth is chance."""
    errors = [_bfloat16_errors(seed) for seed in range(8)]
    generic, fused = (sum(pair) / len(errors) for pair in zip(*errors, strict=True))
    figure(f"mean gradient error in bfloat16 on CUDA: layer by layer {generic:.2e}, fused {fused:.2e}")
    assert fused <= 1.05 * generic


def _bfloat16_errors(seed: int) -> tuple[float, float]:
    """The errors of the generic and of the fused path on one model."""
    model = tiny("Llama", hidden_size=256, intermediate_size=512)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (parameter + 0.02 * torch.randn_like(parameter)).bfloat16().float()
    model = adapted(model).cuda()
    _, truth = step(model, None)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    generic, fused = (_error(step(model, path)[1], truth) for path in (None, FastPath(model)))
    return generic, fused


def _error(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    return sum(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth) / len(truth)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # it warms up on another one than it records on
@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.2}, {"method": "dora"}, *MADE], ids=str)
def test_a_step_can_be_captured_in_a_graph(settings: dict[str, Any]) -> None:
    """Forward and backward replay without a word from the host; dropout draws anew at every replay."""
    model = adapted(tiny("Llama"), **settings).cuda().train()
    path = FastPath(model)
    hidden = torch.randn(2, 16, 32, device="cuda", requires_grad=True)
    angles = tuple(each.cuda() for each in model.model.rotary_emb(hidden, torch.arange(16, device="cuda")[None]))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        out = model.model.layers[1](hidden, position_embeddings=angles, attention_mask=None)
        (d_hidden,) = torch.autograd.grad(out.square().sum(), hidden)
        return out, d_hidden

    with path.running():
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            captured = run()
        expected = None if settings.get("lora_dropout") else [each.clone() for each in run()]
    graph.replay()
    first = [each.clone() for each in captured]
    graph.replay()
    if expected is None:
        assert not torch.equal(first[0], captured[0])
    else:
        for one, other in zip(captured, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
