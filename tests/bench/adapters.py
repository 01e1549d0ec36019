"""Adapters at work: switching, loading, and eight of them in one batch, against peft.

    python -m tests.bench.adapters [--rounds 3]

Switching is timed on 112 adapted modules. The eight rows decode greedily; that their tokens are those of each adapter
by itself is checked first, on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.merge import STARTER, make_adapters
from tests.bench.record import FOLDER, Goal, Result, median, ratio
from tests.bench.sides import Answer, Side, serve, take_turns

ADAPTERS = 8
MODULES = 112
TARGETS = r".*layers\.(\d|1[0-5])\..*_proj"  # 16 layers of 7 projections
PROMPT, NEW = 24, 12  # tokens


def main(argv: list[str] | None = None) -> Result:
    """Run both sides, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adapters")
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("adapters", "Switching, loading, and eight adapters in one batch")
    with tempfile.TemporaryDirectory() as scratch:
        make_adapters(arguments.model, Path(scratch), ADAPTERS, targets=TARGETS)
        settings = {"model": str(arguments.model), "scratch": scratch}
        sides = [Side("tests.bench.adapters", name, side=name, **settings) for name in ("ours", "peft")]
        for side in sides:
            side.wait()
        found = take_turns(sides, arguments.rounds, lambda side: side.ask())
    for side in sides:
        side.end()
        answers = found.get(side.label, [])
        typical = {key: median([answer[key] for answer in answers]) for key in answers[0]} if answers else {}
        result.rows.append({"side": side.label, **typical, "problem": side.error})
    result.goals = _goals(*result.rows)
    result.publish(arguments.out)
    return result


def _goals(ours: dict[str, Any], peft: dict[str, Any]) -> list[Goal]:
    def of(key: str, one: dict[str, Any], other: dict[str, Any]) -> float | None:
        return ratio(one.get(key), other.get(key))

    eight, one = ours.get("eight_adapters_s"), ours.get("one_adapter_s")
    return [
        Goal(f"7: switch of {MODULES} modules, ms", 1.0, ours.get("switch_ms"), at_least=False),
        Goal("7: load against peft", 5.0, of("load_ms", peft, ours), note=peft["problem"]),
        Goal("7: 8 rows with 8 adapters in 8 rows with one", 1.15, ratio(eight, one), at_least=False),
        Goal("8 rows with 8 adapters against peft", 1.0, of("eight_adapters_s", peft, ours), note=peft["problem"]),
    ]


def _fastest(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several repeats: what the work takes when nothing else interrupts it."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


class _Ours:
    def __init__(self, model: str, scratch: str) -> None:
        from core.models import load_model

        self.scratch, self.model = Path(scratch), load_model(model, dtype="float32", device="cpu")[0]

    def load(self, name: str) -> None:
        from core.export.peft import load_adapter

        load_adapter(self.model, self.scratch / name, name)

    def drop(self, name: str) -> None:
        from core.adapters import remove_adapter

        remove_adapter(self.model, name)

    def switch(self, name: str) -> None:
        from core.adapters import set_adapter

        set_adapter(self.model, name)

    def decode(self, ids: Any, names: list[str] | None) -> Any:
        """Greedy tokens (B, NEW); `names` of the rows' adapters, or None for the one that is active."""
        from contextlib import nullcontext

        from core.adapters import adapter_rows
        from core.adapters.switch import group_rows

        groups = group_rows(self.model, names) if names else None
        with adapter_rows(self.model, groups) if groups else nullcontext():
            return greedy(self.model, ids)


class _Peft:
    def __init__(self, model: str, scratch: str) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.scratch = Path(scratch)
        self.model: Any = PeftModel.from_pretrained(base, str(self.scratch / "adapter0"), adapter_name="first").eval()

    def load(self, name: str) -> None:
        self.model.load_adapter(str(self.scratch / name), name)

    def drop(self, name: str) -> None:
        self.model.delete_adapter(name)

    def switch(self, name: str) -> None:
        self.model.set_adapter(name)

    def decode(self, ids: Any, names: list[str] | None) -> Any:
        return greedy(self.model, ids, **({"adapter_names": names} if names else {}))


def greedy(model: Any, ids: Any, **options: Any) -> Any:
    """The likeliest tokens, one after the other, the same loop for both sides."""
    import torch

    chosen, cache = [], None
    with torch.no_grad():
        for _ in range(NEW):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
            chosen.append(ids)
    return torch.cat(chosen, 1)


class _Side:
    """Loads all adapters, checks the rows of a mixed batch, then measures at every request."""

    def __init__(self, side: str, model: str, scratch: str) -> None:
        import torch

        self.side: Any = (_Ours if side == "ours" else _Peft)(model, scratch)
        self.names = [f"adapter{index}" for index in range(ADAPTERS)]
        for name in self.names:
            self.side.load(name)
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(10, 1000, (ADAPTERS, PROMPT), generator=draw)
        mixed = self.side.decode(self.ids, self.names)
        for row, name in enumerate(self.names):
            self.side.switch(name)
            if not torch.equal(self.side.decode(self.ids[row : row + 1], None), mixed[row : row + 1]):
                raise ValueError(f"row {row} says in a mixed batch what {name} does not say alone")

    def answer(self) -> Answer:
        """Milliseconds of a switch and of a load, seconds of both batches."""
        side, last = self.side, self.names[-1]
        order = iter(self.names * 5)
        switch = _fastest(lambda: side.switch(next(order)), 5 * len(self.names))

        def load() -> None:
            side.load(last)
            loads.append(time.perf_counter())

        loads: list[float] = []
        seconds = []
        for _ in range(3):
            side.drop(last)
            start = time.perf_counter()
            load()
            seconds.append(loads[-1] - start)
        side.switch(self.names[0])
        return {
            "switch_ms": 1e3 * switch,
            "load_ms": 1e3 * min(seconds),
            "one_adapter_s": _fastest(lambda: side.decode(self.ids, None), 2),
            "eight_adapters_s": _fastest(lambda: side.decode(self.ids, self.names), 2),
        }


if __name__ == "__main__":
    import sys

    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        serve(lambda settings: _Side(**settings).answer)
    else:
        main()
