"""The loss against transformers' own, in float64: equal sums, equal gradients, by both of its paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from core.adapters import adapter_parameters, inject
from core.config import AdapterConfig
from core.loss import Head, chunked_loss, find_head, loss_sum
from tests.core.toy import toy_gpt2, toy_llama

VOCABULARY = 60
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1,
}  # fmt: skip


def gemma2() -> Any:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8))


def granite() -> Any:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0))


def cohere() -> Any:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25))


def untied() -> Any:
    return toy_llama(tie_word_embeddings=False)


MODELS: list[Callable[[], Any]] = [toy_llama, toy_gpt2, gemma2, granite, cohere]


def adapted(make: Callable[[], Any], **changes: Any) -> Any:
    """A float64 model whose adapter is not at its start, where half of the gradients are 0."""
    model = make().double().eval()
    inject(model, AdapterConfig(r=2, lora_alpha=4, **changes), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(2, VOCABULARY, (3, 11), generator=generator)
    labels = input_ids.clone()
    labels[:, :4] = -100
    labels[1, 7:] = -100  # the end of a shorter row
    return input_ids, labels


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(adapter_parameters(model)))
    assert all(gradient.abs().sum() > 0 for gradient in found)
    return list(found)


@pytest.mark.parametrize("make", MODELS)
def test_equal_to_transformers_by_both_paths(make: Callable[[], Any]) -> None:
    model = adapted(make)
    input_ids, labels = batch()
    output = model(input_ids=input_ids, labels=labels)
    own = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), labels[:, 1:])  # what .loss is, but for its rounding
    count = int((labels[:, 1:] != -100).sum())
    wanted = gradients(model, own)
    head = find_head(model)
    assert head is not None
    for path in (head, None):
        loss = loss_sum(model, path, input_ids, labels) / count
        torch.testing.assert_close(loss, own, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss.float(), output.loss, rtol=1e-6, atol=0)
        for found, right in zip(gradients(model, loss), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("changes", [{"target_modules": ("lm_head", "q_proj")}, {"modules_to_save": ("lm_head",)}])
def test_a_trained_output_layer_gets_its_gradient(changes: dict[str, Any]) -> None:
    model = adapted(untied, **changes)
    input_ids, labels = batch()
    wanted = gradients(model, loss_sum(model, None, input_ids, labels))
    found = gradients(model, loss_sum(model, find_head(model), input_ids, labels))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 7, 100])
def test_chunks_change_nothing(chunk_rows: int) -> None:
    torch.manual_seed(0)
    output = torch.nn.Linear(6, 9).double()
    rows, targets = torch.randn(7, 6, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (7,))
    head = Head(output, output, lambda logits: torch.tanh(logits / 2) * 2)
    wanted = torch.nn.functional.cross_entropy(head.logits(rows), targets, reduction="sum")
    found = chunked_loss(head, rows, targets, chunk_rows)
    inputs = [rows, *output.parameters()]
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, inputs), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(head, rows, targets, chunk_rows), wanted)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    output = torch.nn.Linear(4, 5).double()
    targets = torch.randint(0, 5, (6,))
    rows = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: chunked_loss(Head(output, output, lambda y: y), x, targets, 4), (rows,))


def test_only_trained_positions_reach_the_output_layer() -> None:
    model = adapted(toy_llama)
    input_ids, labels = batch()
    head = find_head(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    loss_sum(model, head, input_ids, labels)
    assert sum(seen) == int((labels[:, 1:] != -100).sum())


def test_a_model_that_does_more_after_its_head_uses_its_own_logits() -> None:
    class Shifted(type(toy_llama())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * torch.linspace(0.5, 2, output.logits.shape[-1]).to(output.logits)
            return output

    model = toy_llama()
    assert find_head(model) is not None
    model.__class__ = Shifted
    assert find_head(model) is None


@pytest.mark.parametrize("with_head", [True, False])
def test_a_batch_without_a_trained_token_gives_a_connected_zero(with_head: bool) -> None:
    model = adapted(toy_llama)
    input_ids, labels = batch()
    loss = loss_sum(model, find_head(model) if with_head else None, input_ids, torch.full_like(labels, -100))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, list(adapter_parameters(model))):
        assert torch.count_nonzero(gradient) == 0


def test_padding_changes_nothing() -> None:
    model = adapted(toy_llama)
    input_ids, labels = batch()
    head = find_head(model)
    alone = loss_sum(model, head, input_ids[1:2, :7], labels[1:2, :7])
    padded = torch.cat([input_ids[1:2, :7], torch.zeros(1, 9, dtype=torch.long)], dim=1)
    marked = torch.cat([labels[1:2, :7], torch.full((1, 9), -100)], dim=1)
    torch.testing.assert_close(loss_sum(model, head, padded, marked), alone, rtol=1e-12, atol=0)


def test_no_gradient_flows_below_the_lowest_adapter() -> None:
    model = toy_llama()
    inject(model, AdapterConfig(r=2, target_modules=r".*layers\.1\..*q_proj"), seed=0)
    needs: dict[int, bool] = {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda module, args, output, index=index: needs.__setitem__(
                index, (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    loss_sum(model, find_head(model), *batch())
    assert needs == {0: False, 1: True}


def test_bfloat16_base_has_a_float32_loss_near_the_float32_one() -> None:
    input_ids, labels = batch()
    full = toy_llama()
    half = toy_llama().bfloat16()
    head = find_head(half)
    assert head is not None
    loss = loss_sum(half, head, input_ids, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sum(full, find_head(full), input_ids, labels), rtol=0.02, atol=0)


def test_the_share_of_a_token_is_not_rounded_to_16_bits() -> None:
    """1 / 97 in bfloat16 is off by 0.3 %, and every gradient of the step would be with it."""
    torch.manual_seed(0)
    model = toy_llama().bfloat16()
    head = find_head(model)
    assert head is not None
    rows, targets = torch.randn(97, 32).bfloat16(), torch.randint(0, 50, (97,))
    found = []
    for scale in (1.0, 1 / 97):
        leaf = rows.clone().requires_grad_()
        (chunked_loss(head, leaf, targets, chunk_rows=40) * scale).backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert torch.equal(found[1], (found[0].double() / 97).bfloat16())
