"""Exactness: every method's gradients against float64, peft's beside them; and runs that repeat bit for bit.

    python -m tests.bench.gradients [--methods lora,dora]

The exact gradients are those of plain autograd in float64 through transformers' own layers. Ours are those of a step of
the Trainer, on its fused functions and packed rows where it has them. Peft reads the same adapter from our file, in its
own best way: float32 as it is, bfloat16 under autocast. The error of a draw (adapter and rows) is that of its worst
tensor; as it depends on the draw, a figure is the median over draws, which both sides share.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.adapters import adapter_parameters, inject, names
from core.adapters.state import live_tensors
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.export.peft import load_adapter, save_adapter
from core.methods import methods
from core.train import Trainer
from tests.bench.record import FOLDER, Goal, Result, median, say
from tests.bench.training.ours import NoTokenizer, ReadyTokens
from tests.bench.training.rows import Row, padded, ragged_rows
from tests.bench.training.shapes import SHAPES, random_model

WITH_PEFT = ("lora", "rslora", "dora", "vera", "lora_plus", "adalora")  # it has them too, in the same files
LOOKS_AT_ROWS = ("velora",)  # at padding too: the exact side gets the same packed rows
WITH_BIASES = ("bitfit",)  # which trains nothing in a Llama
SHAPE = "tiny"
DRAWS = 25
DRAWS_ALONE = 5  # of a method that nothing is compared with
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Gradients = dict[str, Tensor]


def main(argv: list[str] | None = None) -> Result:
    """All methods in both formats, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gradients")
    parser.add_argument("--methods", default=",".join(names()))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # the model is tiny, and another job on the machine would hold up a second thread
    result = Result("gradients", "Exactness of gradients")
    for method in arguments.methods.split(","):
        result.rows += _of_method(method, arguments.draws)
    result.goals = _goals(result.rows)
    result.notes = _notes(arguments.draws)
    result.publish(arguments.out)
    return result


def _of_method(method: str, draws: int) -> list[dict[str, Any]]:
    """The rows of a method, one a format."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in DTYPES}
    count = draws if method in WITH_PEFT else min(draws, DRAWS_ALONE)
    for seed in range(1, count + 1):
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, row in of_draw(method, seed, Path(folder)).items():
                    found[name].append(row)
        except Exception as error:  # noqa: BLE001 - the other methods go on
            return [{"method": method, "problem": f"{type(error).__name__}: {error}"[:200]}]
    rows = [{"method": method, "dtype": name, **_summary(several)} for name, several in found.items()]
    for row in rows:
        say(str(row))
    return rows


def of_draw(method: str, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What one adapter and one set of rows give, by format."""
    rows = ragged_rows(6, SHAPES[SHAPE].vocabulary, longest=48, seed=seed)
    config = _adapter(method, folder, seed)
    exact, _ = _steps(_model(torch.float64, config, folder), config, rows, fast=False)
    found = {}
    for name, dtype in DTYPES.items():
        ours, facts = _steps(_model(dtype, config, folder), config, rows)
        found[name] = {"ours": worst(ours, exact), **facts}
        if method in WITH_PEFT:
            found[name]["peft"] = worst(_of_peft(dtype, rows, folder), exact)
    return found


def _summary(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the errors, their largest beside them, and the worst of the rest."""
    errors = {side: [draw[side] for draw in draws] for side in ("ours", "peft") if side in draws[0]}
    interval = {"ratio_90": _interval(errors["ours"], errors["peft"])} if "peft" in errors else {}
    return {
        **{side: median(values) for side, values in errors.items()},
        **{f"{side}_most": max(values) for side, values in errors.items()},
        **interval,
        "without_gradient": max(draw["without_gradient"] for draw in draws),
        "repeats": all(draw["repeats"] for draw in draws),
        "path": draws[0]["path"],
    }


def _interval(ours: list[float], peft: list[float]) -> str:
    """Where the ratio of the medians lies in 90 of 100 samples of the draws, drawn anew with replacement."""
    index = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    ratios = np.median(np.array(ours)[index], axis=1) / np.median(np.array(peft)[index], axis=1)
    low, high = np.quantile(ratios, (0.05, 0.95))
    return f"{low:.2f} to {high:.2f}"


def worst(found: Gradients, exact: Gradients) -> float:
    """The largest relative error (Frobenius) of a gradient; tensors without an exact gradient count as they are."""
    missing = [key for key in exact if key not in found]
    if missing:
        raise ValueError(f"no gradient of {missing[0]}")
    return max(
        float((found[key].double() - value).norm() / value.norm()) for key, value in exact.items() if bool(value.any())
    )


def _adapter(method: str, folder: Path, seed: int) -> AdapterConfig:
    """Write an adapter with random values of a method; returns its settings."""
    wanted = {"r": 4, "lora_alpha": 8.0}
    used = {key: value for key, value in wanted.items() if key in methods.get(method).uses}
    config = AdapterConfig(method=method, **used)
    model = random_model(SHAPE, "cpu", method in WITH_BIASES)
    inject(model, config, seed=seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    save_adapter(model, folder)
    return config


def _model(dtype: torch.dtype, config: AdapterConfig, folder: Path) -> Any:
    """The same model and adapter in another number format; the weights are bfloat16 numbers in all of them."""
    model = random_model(SHAPE, "cpu", config.method in WITH_BIASES).to(dtype)
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
        eval_every=1_000_000, fast_path=fast, deterministic=True,
        packing=fast or config.method in LOOKS_AT_ROWS,
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
    ratios = {f"{row['method']} in {row['dtype']}": row["ours"] / row["peft"] for row in measured if row.get("peft")}
    above = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items() if value > 1.0)
    problems = "; ".join(f"{row['method']}: {row['problem']}" for row in rows if row.get("problem"))
    silent = sum(row["without_gradient"] for row in measured)
    same = sum(row["repeats"] for row in measured) / max(1, len(measured))
    largest = max(ratios.values(), default=None)
    return [
        Goal("9: our gradient error in peft's, the worst method", 1.0, largest, at_least=False, note=above),
        Goal("9: trained tensors without a gradient after two steps", 0, silent, at_least=False, note=problems[:300]),
        Goal("9: share of runs that repeat bit for bit", 1.0, same),
    ]  # fmt: skip


def _notes(draws: int) -> list[str]:
    return [
        f"`ours` and `peft` are medians over draws of the worst tensor's relative error, `most` the largest;"
        f" {draws} draws where peft is beside us, else {min(draws, DRAWS_ALONE)}.",
        "`ratio 90`: where the ratio lies in 90 of 100 resamplings of the draws;"
        " one that holds 1 leaves open which is larger.",
        "Beside peft stand the methods that it has too, in the same files and with the same gradients.",
        "BitFit on a Qwen2 of the same sizes, as a Llama has no biases.",
    ]


if __name__ == "__main__":
    main()
