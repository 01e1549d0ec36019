"""Exactness: every method's gradients against float64, peft's beside them; and runs that repeat bit for bit.

    python -m tests.bench.gradients [--methods lora,dora]

The exact gradients are those of plain autograd in float64 through transformers' own layers. Ours are those of a step of
the Trainer, on its fused functions and packed rows where it has them. Peft reads the same adapter from our file, in its
own best way: float32 as it is, bfloat16 under autocast. The figure of a method is its worst tensor's relative error.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.adapters import adapter_parameters, inject, names
from core.adapters.state import live_tensors
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.export.peft import load_adapter, save_adapter
from core.methods import methods
from core.train import Trainer
from tests.bench.record import FOLDER, Goal, Result, say
from tests.bench.training.ours import NoTokenizer, ReadyTokens
from tests.bench.training.rows import Row, padded, ragged_rows
from tests.bench.training.shapes import SHAPES, random_model

WITH_PEFT = ("lora", "rslora", "dora", "vera")  # what both have, by the same file
SHAPE = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Gradients = dict[str, Tensor]


def main(argv: list[str] | None = None) -> Result:
    """All methods in both formats, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gradients")
    parser.add_argument("--methods", default=",".join(names()))
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("gradients", "Exactness of gradients")
    rows = ragged_rows(6, SHAPES[SHAPE].vocabulary, longest=48)
    for method in arguments.methods.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            result.rows += _of_method(method, rows, Path(scratch))
    result.goals = _goals(result.rows)
    result.publish(arguments.out)
    return result


def _of_method(method: str, rows: list[Row], folder: Path) -> list[dict[str, Any]]:
    found = []
    try:
        config = _adapter(method, folder)
        exact, _ = _steps(_model(torch.float64, config, folder), config, rows, fast=False)
    except Exception as error:  # noqa: BLE001 - the other methods go on
        return [{"method": method, "problem": f"{type(error).__name__}: {error}"[:200]}]
    for name, dtype in DTYPES.items():
        row: dict[str, Any] = {"method": method, "dtype": name}
        try:
            ours, facts = _steps(_model(dtype, config, folder), config, rows)
            row |= {"ours": worst(ours, exact), **facts}
            if method in WITH_PEFT:
                row["peft"] = worst(_of_peft(dtype, rows, folder), exact)
        except Exception as error:  # noqa: BLE001 - a failure is this row's result
            row["problem"] = f"{type(error).__name__}: {error}"[:200]
        found.append(row)
        say(str(row))
    return found


def worst(found: Gradients, exact: Gradients) -> float:
    """The largest relative error (Frobenius) of a gradient; tensors without an exact gradient count as they are."""
    missing = [key for key in exact if key not in found]
    if missing:
        raise ValueError(f"no gradient of {missing[0]}")
    return max(
        float((found[key].double() - value).norm() / value.norm()) for key, value in exact.items() if bool(value.any())
    )


def _adapter(method: str, folder: Path) -> AdapterConfig:
    """Write an adapter with random values of a method; returns its settings."""
    wanted = {"r": 4, "lora_alpha": 8.0}
    used = {key: value for key, value in wanted.items() if key in methods.get(method).uses}
    config = AdapterConfig(method=method, **used)
    model = random_model(SHAPE, "cpu")
    inject(model, config, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    save_adapter(model, folder)
    return config


def _model(dtype: torch.dtype, config: AdapterConfig, folder: Path) -> Any:
    """The same model and adapter in another number format; the weights are bfloat16 numbers in all of them."""
    model = random_model(SHAPE, "cpu").to(dtype)
    load_adapter(model, folder)
    return model


def _steps(model: Any, config: AdapterConfig, rows: list[Row], fast: bool = True) -> tuple[Gradients, dict[str, Any]]:
    """Gradients of the Trainer's first step, and whether two steps reach every tensor and repeat bit for bit."""
    start = {key: tensor.detach().clone() for key, tensor in live_tensors(model, "default").items()}
    first, reached, ends = {}, set(), []
    for _ in range(2 if fast else 1):
        with torch.no_grad():
            for key, tensor in live_tensors(model, "default").items():
                tensor.copy_(start[key])
        seen: list[Gradients] = []
        trainer = _trainer(model, config, rows, fast)
        trainer.optimizer.register_step_pre_hook(lambda *unused, seen=seen: seen.append(_gradients(model)))
        steps = trainer.steps()
        next(steps), next(steps)
        first = seen[0]
        reached |= {key for gradients in seen for key, value in gradients.items() if bool(value.any())}
        ends.append({key: tensor.detach().clone() for key, tensor in live_tensors(model, "default").items()})
    silent = sorted(set(first) - reached)
    same = all(torch.equal(ends[0][key], ends[-1][key]) for key in ends[0])
    return first, {"without_gradient": len(silent), "repeats": same, "path": trainer.path[:60]}


def _gradients(model: Any) -> Gradients:
    tensors = live_tensors(model, "default")
    return {key: tensor.grad.detach().clone() for key, tensor in tensors.items() if tensor.grad is not None}


def _trainer(model: Any, config: AdapterConfig, rows: list[Row], fast: bool) -> Trainer:
    settings = TrainConfig(
        adapter=config, data=DataConfig(validation_share=0.0), batch_size=len(rows), epochs=1000.0,
        eval_every=1_000_000, fast_path=fast, packing=fast,
        optim=OptimConfig(learning_rate=1e-3, max_grad_norm=0.0, schedule="constant", warmup_share=0.0),
    )  # fmt: skip
    return Trainer(model, NoTokenizer(), [], settings, task=ReadyTokens(rows))


def _of_peft(dtype: torch.dtype, rows: list[Row], folder: Path) -> Gradients:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(random_model(SHAPE, "cpu").to(dtype), str(folder), is_trainable=True)
    with torch.autocast("cpu", dtype=torch.bfloat16) if dtype == torch.bfloat16 else nullcontext():
        loss = model(**padded(rows, "cpu")).loss
    loss.backward()
    named = {_in_file(name): parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def _in_file(name: str) -> str:
    """What peft calls a parameter in its files."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default", "")


def _goals(rows: list[dict[str, Any]]) -> list[Goal]:
    measured = [row for row in rows if "ours" in row]
    with_peft = [row for row in measured if row.get("peft")]
    largest = max((row["ours"] / row["peft"] for row in with_peft), default=None)
    problems = "; ".join(f"{row['method']}: {row['problem']}" for row in rows if row.get("problem"))
    silent = sum(row["without_gradient"] for row in measured)
    same = sum(row["repeats"] for row in measured) / max(1, len(measured))
    return [
        Goal("9: our gradient error in peft's, the worst method", 1.0, largest, at_least=False),
        Goal("9: trained tensors without a gradient after two steps", 0, silent, at_least=False, note=problems[:300]),
        Goal("9: share of runs that repeat bit for bit", 1.0, same),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
