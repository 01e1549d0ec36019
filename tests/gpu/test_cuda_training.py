"""Training on a CUDA device: the steps of the CPU, and bfloat16."""

from __future__ import annotations

import pytest
import torch

from core.config import AdapterConfig
from core.train import Trainer
from tests.core.toy import toy_config, toy_llama, toy_records, toy_tokenizer, toy_trainer, trained_state
from tests.live import figure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
NO_DROPOUT = AdapterConfig(r=4, lora_alpha=8)


def test_three_steps_equal_those_of_the_cpu() -> None:
    """In float64, except for RMSNorm and RoPE, which transformers computes in float32 whatever the weights are."""
    config = toy_config(adapter=NO_DROPOUT, eval_every=0)
    here = toy_trainer(config, model=toy_llama().double())
    there = toy_trainer(config, model=toy_llama().double().cuda())
    worst = 0.0
    for ours, theirs, _ in zip(here.steps(), there.steps(), range(3), strict=False):
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-6)
        assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=1e-5)
    for name, value in trained_state(here).items():
        other = trained_state(there)[name].cpu()
        worst = max(worst, float((value - other).abs().max()))
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6)
    figure(f"three steps in float64, CUDA against CPU: largest difference of a trained value {worst:.1e}")


def test_bfloat16_learns_and_keeps_its_adapter_in_float32() -> None:
    model = toy_llama().to(torch.bfloat16).cuda()
    trainer = Trainer(model, toy_tokenizer(), toy_records(), toy_config(epochs=20.0))
    losses = [step.loss for step in trainer.steps()]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}
    assert {parameter.device.type for parameter in trainer.parameters} == {"cuda"}
