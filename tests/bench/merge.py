"""Merging an adapter into a model folder, against peft's merge_and_unload and save_pretrained.

    python -m tests.bench.merge [--model FOLDER] [--rounds 5]

Both sides start from files and end with a folder. The weights of both folders are compared with the sum in float64,
rounded once. Peft's time without loading its model is shown too: it is the stricter comparison. Two more sides show
what ours is made of: `copy` only copies the base model's tensors to the disk, and `unproven` is ours with sums in
float32 that are rounded without a look at how near to the middle of two numbers they lie.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.record import FOLDER, ROOT, Goal, Result, median, ratio
from tests.bench.sides import Answer, Side, serve, take_turns

STARTER = ROOT / ".cache" / "starter"
RANK = 16
SIDES = ("ours", "peft", "unproven", "copy")


def make_adapters(model_folder: Path, out: Path, count: int, r: int = RANK, targets: Any = "all-linear") -> None:
    """Write `count` adapters with random values in PEFT's format, on every linear layer or on the targets given."""
    import torch

    from core.adapters import adapter_parameters, inject
    from core.config import AdapterConfig
    from core.export.peft import save_adapter
    from core.models import load_model

    model, _ = load_model(model_folder, dtype="bfloat16", device="cpu")
    for index in range(count):
        name = f"adapter{index}"
        inject(model, AdapterConfig(r=r, lora_alpha=2.0 * r, target_modules=targets), name, seed=index)
        draw = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name):
                parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
        save_adapter(model, out / name, name)


def main(argv: list[str] | None = None) -> Result:
    """Run both sides, check the weights, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.merge")
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0 leaves it to torch")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("merge", "Merging into a model folder")
    if arguments.threads:
        result.notes.append(f"{arguments.threads} threads a side, since the machine was busy with other work.")
    with tempfile.TemporaryDirectory() as scratch:
        make_adapters(arguments.model, Path(scratch), 1)
        sides = [
            Side(
                "tests.bench.merge",
                name,
                side=name,
                model=str(arguments.model),
                scratch=scratch,
                threads=arguments.threads,
            )
            for name in SIDES
        ]
        for side in sides:
            side.wait()
            side.ask(warm=True)
        found = take_turns(sides, arguments.rounds, lambda side: side.ask())
        for side in sides:
            side.end()
            result.rows.append(_row(side, found.get(side.label, []), arguments.model, Path(scratch)))
    result.goals = _goals(result.rows)
    result.publish(arguments.out)
    return result


def _row(side: Side, answers: list[Answer], model: Path, scratch: Path) -> dict[str, Any]:
    if not answers:
        return {"side": side.label, "problem": side.error}
    row = {"side": side.label, **{key: median([answer[key] for answer in answers]) for key in answers[0]}}
    if side.label == "copy":
        return row
    wrong, of = wrongly_rounded(model, scratch / "adapter0", scratch / f"{side.label}-merged")
    return row | {"wrongly_rounded": wrong, "weights": of}


def _goals(rows: list[dict[str, Any]]) -> list[Goal]:
    ours, peft = (next(row for row in rows if row["side"] == side) for side in ("ours", "peft"))
    whole, merging = (ratio(peft.get(key), ours.get("seconds")) for key in ("seconds", "seconds_without_loading"))
    cpu = ratio(peft.get("cpu_seconds_without_loading"), ours.get("cpu_seconds"))
    return [
        Goal("7: merge, files to files, against peft", 3.0, whole, note=peft.get("problem", "")),
        Goal("7: merge, peft's model loaded before", 3.0, merging, note=f"in processor time {cpu:.1f}" if cpu else ""),
        Goal("7: wrongly rounded weights", 0, ours.get("wrongly_rounded"), at_least=False),
    ]


def wrongly_rounded(base: Path, adapter: Path, merged: Path) -> tuple[int, int]:
    """Weights of adapted layers that are not the float64 sum rounded once, and how many there are."""
    import json

    import torch
    from safetensors.torch import load_file

    from core.adapters.merged_weight import round_once

    weights, result = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scale, wrong, total = settings["lora_alpha"] / settings["r"], 0, 0
    for key, a in factors.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").replace("lora_A.", "")
        exact = weights[name].double() + scale * (factors[key.replace("lora_A", "lora_B")].double() @ a.double())
        wrong += int((result[name] != round_once(exact, torch.bfloat16)).sum())
        total += exact.numel()
    return wrong, total


class _Merger:
    """One side; every answer is one merge."""

    def __init__(self, side: str, model: str, scratch: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads or torch.get_num_threads())
        self.side, self.model, self.scratch = side, Path(model), Path(scratch)
        self.merge: Any = {"ours": _ours, "peft": _peft, "unproven": _ours, "copy": _copy}[side]
        if side == "unproven":
            _do_not_prove()

    def answer(self, warm: bool = False) -> Answer:
        out = self.scratch / f"{self.side}-merged"
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # what the other side wrote is not to be paid here
        start, cpu = time.perf_counter(), time.process_time()
        loaded = self.merge(self.model, self.scratch / "adapter0", out)
        now, now_cpu = time.perf_counter(), time.process_time()
        return {
            "seconds": now - start,
            "seconds_without_loading": now - (loaded[0] if loaded else start),
            "cpu_seconds": now_cpu - cpu,
            "cpu_seconds_without_loading": now_cpu - (loaded[1] if loaded else cpu),
        }


def _ours(model: Path, adapter: Path, out: Path) -> None:
    from core.merge import merge_to_folder

    merge_to_folder(model, adapter, out)


def _do_not_prove() -> None:
    """Have merged weights rounded in float32 as they come, in this process."""
    from core.adapters import merged_weight

    def summed(weight: Any, left: Any, right: Any, dtype: Any) -> Any:
        scratch = merged_weight._scratch.of(weight, dtype)
        change, wide = (buffer[: weight.numel()].view(weight.shape) for buffer in scratch[:2])
        change.addmm_(left.float(), right.float(), beta=0)
        return change.add_(wide.copy_(weight)).to(dtype)

    assert callable(merged_weight._summed_from)
    merged_weight._summed_from = summed


def _copy(model: Path, adapter: Path, out: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir()
    with safe_open(model / "model.safetensors", framework="pt") as file:
        save_file({name: file.get_tensor(name) for name in file.keys()}, out / "model.safetensors")  # noqa: SIM118
    with (out / "model.safetensors").open("rb") as written:
        os.fsync(written.fileno())


def _peft(model: Path, adapter: Path, out: Path) -> tuple[float, float]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    wrapped: Any = PeftModel.from_pretrained(base, str(adapter))
    loaded = time.perf_counter(), time.process_time()
    wrapped.merge_and_unload().save_pretrained(out)
    return loaded


if __name__ == "__main__":
    import sys

    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        serve(lambda settings: _Merger(**settings).answer)
    else:
        main()
