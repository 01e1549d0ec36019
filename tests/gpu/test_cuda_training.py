"""The main job on a CUDA device: the CPU's gradients, a whole job through a kill, and a merge that answers alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, to_dict
from core.train import Trainer
from tests import toy
from tests.core.toy import toy_config, toy_llama, toy_records, toy_tokenizer, toy_trainer, trained_state
from tests.live import LiveStudio, figure, gone

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


def test_a_job_on_the_gpu_survives_a_kill(tmp_path: Path) -> None:
    """The scheduler hands the job a GPU; after SIGKILL the curves go on as the run that nobody touched drew them."""
    folder = toy.save_model(tmp_path / "model")
    config = TrainConfig(
        max_steps=120, epochs=1000, batch_size=8, eval_every=20, save_every=10, patience=0, dtype="float32",
        data=DataConfig(validation_share=0.2), optim=OptimConfig(learning_rate=5e-3),
    )  # fmt: skip
    curves = [_curves(tmp_path / name, folder, config, kill_at) for name, kill_at in (("calm", 0), ("killed", 40))]
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == list(range(1, 121))
    worst = max(abs(one - other) for (_, one), (_, other) in zip(*curves, strict=True))
    figure(f"killed at step 40 on the GPU: largest difference of a loss {worst:.1e} over 120 steps")
    assert worst < 1e-3  # CUDA's reductions may be ordered otherwise; on the CPU the curves are the same bits


def _curves(root: Path, model: Path, config: TrainConfig, kill_at: int) -> list[tuple[int, float]]:
    with LiveStudio(root) as live:
        spec = {
            "model_id": toy.register_model(live, model).id,
            "dataset_id": toy.register_dataset(live).id,
            "train": to_dict(config),
        }
        job_id = live.store.submit("train", "animals", spec).id
        live.start()
        if kill_at:
            live.until(lambda: (live.job(job_id).checkpoint_step or 0) >= kill_at)
            worker = live.worker(job_id)
            worker.kill()
            live.until(lambda: gone(worker))
        job = live.until_state(job_id, "succeeded", "failed", timeout_s=120)
        assert job.state == "succeeded", (job.error_what, job.error_detail)
        assert job.attempt == (2 if kill_at else 1)
        assert job.device.startswith("cuda:")
        return live.store.metrics(job_id)["loss"]
