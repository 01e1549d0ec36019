"""Tensors behind each other in one piece of memory, and the AdamW that updates them so, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.optim import COUNT, MOMENTS, MOST_BYTES, AdamWInPieces, _goes_into_one_piece
from core.pieces import empty_in_one_piece, fill_in_gradients, lay_in_one_piece, pieces_of, runs_of

SHAPES = [(4, 64), (96, 4), (128,), (4, 32), (48, 4)]


def parameters(shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in shapes]


def test_what_lies_behind_each_other_is_one_piece() -> None:
    whole = torch.arange(48.0)
    first, second, third = whole[:16].view(4, 4), whole[16:24], whole[24:].view(4, 6)
    assert [len(run) for run in runs_of([first, second, third])] == [3]
    assert torch.equal(pieces_of([first, second, third])[0], whole)
    assert [len(run) for run in runs_of([second, first, third])] == [1, 1, 1]
    assert [len(run) for run in runs_of([first, third])] == [1, 1], "what lies between belongs to another"
    turned = third.T
    assert [len(run) for run in runs_of([second, turned])] == [1, 1] and pieces_of([turned])[0].shape == (6, 4)
    assert [len(run) for run in runs_of([turned, torch.ones(3)])] == [1, 1]
    parts = empty_in_one_piece([(3, 5), (7,), (2, 2)], whole, whole.dtype)
    assert [part.storage_offset() for part in parts] == [0, 64, 128] and len(runs_of(parts)) == 3


def test_parameters_move_without_changing_and_gradients_lie_as_they_do() -> None:
    own = parameters()
    before = [each.detach().clone() for each in own]
    lay_in_one_piece(own)
    fill_in_gradients(own)
    assert len(pieces_of(own)) == 1
    assert all(torch.equal(each.detach(), old) for each, old in zip(own, before, strict=True))
    gradients = [each.grad for each in own if each.grad is not None]
    (piece,) = pieces_of(gradients)
    assert not piece.any() and len(gradients) == len(own)
    piece.fill_(2.0)
    fill_in_gradients(own)
    assert all(gradient.eq(2.0).all() for gradient in gradients)
    address = own[0].data_ptr()
    lay_in_one_piece(own)
    assert own[0].data_ptr() == address


class Short(torch.Tensor):
    """Of a device whose free memory lies in gaps of 500 numbers."""

    def new_empty(self, size: Any, **options: Any) -> torch.Tensor:
        if torch.Size([size] if isinstance(size, int) else size).numel() > 500:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.empty(size, **options)


def test_where_memory_has_only_gaps_left_they_lie_apart() -> None:
    like = torch.ones(1).as_subclass(Short)
    parts = empty_in_one_piece([(4, 64), (64, 4), (128,)], like, torch.float32)
    assert [tuple(part.shape) for part in parts] == [(4, 64), (64, 4), (128,)] and len(runs_of(parts)) == 3
    assert len(runs_of(empty_in_one_piece([(4, 32), (64, 4)], like, torch.float32))) == 1


def trained(kind: Any, steps: int, missing: int = 0, reload: int = 0, bad: int = 0, laid: bool = True) -> Any:
    """Parameters after some steps, the `missing`-th without a gradient of the third, the `bad`-th not finite."""
    own = parameters()
    groups = [{"params": own[:2], "weight_decay": 0.1}, {"params": own[2:], "weight_decay": 0.0, "lr": 3e-2}]
    optimizer = kind(groups, lr=1e-2, fused=True)
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        found = [torch.randn_like(each) for each in own]
        for each in own:
            each.grad = None
        if laid and kind is AdamWInPieces:
            fill_in_gradients([each for group in optimizer.param_groups for each in group["params"]])
        for index, (each, gradient) in enumerate(zip(own, found, strict=True)):
            if step == missing and index == 3:
                each.grad = None
            elif each.grad is None:
                each.grad = gradient
            else:
                each.grad.copy_(gradient)
        optimizer.found_inf = torch.tensor(float(step == bad))
        if step == reload:
            for each in own:
                optimizer.state[each] = {name: value.clone() for name, value in optimizer.state[each].items()}
        optimizer.step()
    return own, optimizer


@pytest.mark.parametrize(
    "changes", [{}, {"missing": 3}, {"missing": 1}, {"reload": 4}, {"bad": 3}, {"laid": False}], ids=str
)
def test_updates_are_those_of_torch(changes: dict[str, Any]) -> None:
    own, optimizer = trained(AdamWInPieces, 6, **changes)
    wanted, oracle = trained(torch.optim.AdamW, 6, **changes)
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-13, atol=1e-13)
        assert optimizer.state[one][COUNT].item() == oracle.state[other][COUNT].item()
        for name in MOMENTS:
            torch.testing.assert_close(optimizer.state[one][name], oracle.state[other][name], rtol=1e-13, atol=1e-13)


def test_what_goes_into_one_piece() -> None:
    class OnGPU(torch.nn.Parameter):
        is_cuda = True

    def one(count: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
        return OnGPU(torch.empty(count, dtype=dtype, device="meta"), requires_grad=False)

    def goes(*groups: list[torch.nn.Parameter]) -> bool:
        return _goes_into_one_piece([{"params": each} for each in groups])

    assert goes([one(8), one(8)], [one(8)])
    assert not goes([one(8)], [one(8, torch.bfloat16)]), "moments are of the parameters' one format"
    assert not goes([one(MOST_BYTES // 4), one(1)]), "whole models have no room for their weights twice"
    assert not goes(parameters())


def test_a_group_is_one_piece() -> None:
    own, optimizer = trained(AdamWInPieces, 2)
    assert all(each._version >= 2 for each in own), "what is kept of a parameter must notice"
    for group in optimizer.param_groups:
        for name in MOMENTS:
            assert len(pieces_of([optimizer.state[each][name] for each in group["params"]])) == 1
        assert len(pieces_of(group["params"])) == len(pieces_of([each.grad for each in group["params"]])) == 1
    optimizer.zero_grad(set_to_none=False)
    assert not any(each.grad.any() for group in optimizer.param_groups for each in group["params"])
