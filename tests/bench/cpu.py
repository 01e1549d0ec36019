"""The training step on a CPU: SmolLM2-135M on the ragged ticket data, against peft and transformers' Trainer.

    python -m tests.bench.cpu [--steps 4] [--dtypes float32,bfloat16]

Both sides train the same tokens, masked the same way, 8 rows a step, rank 16 on all linear layers. The sides take turns
step by step; a step's time is all between two optimizer steps, its batch included. Gradients of one batch are compared
first: in float32 with peft's, in 16 bits with peft's in float32, from which ours may be no further than peft's in 16
bits. Useful tokens are those that are not padding. Last, the products with the frozen weights are timed by themselves:
what no implementation can do without, and so how fast one could be.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.merge import STARTER
from tests.bench.record import FOLDER, Goal, Result, ratio
from tests.bench.sides import Answer, Side, take_turns

SIDES = ("ours", "peft")
TOLERANCE = 2e-4  # against peft's gradients in float32, whose loss is 9e-5 off
SLACK = 1.1  # between two ways to round to 16 bits


def main(argv: list[str] | None = None) -> Result:
    """Both number formats, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cpu")
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each side")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("cpu", "The training step on a CPU")
    for dtype in arguments.dtypes.split(","):
        rows = _measure(arguments.model, dtype, arguments.steps, result.notes)
        result.rows += rows
        result.goals += _goals(dtype, *rows)
        result.save(arguments.out)
    result.publish(arguments.out)
    return result


def _measure(model: Path, dtype: str, steps: int, notes: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"model": str(model), "dtype": dtype, "scratch": scratch, "steps": steps + 2}
        sides = [Side("tests.bench.training.cpu_side", side, side=side, **settings) for side in SIDES]
        for side in sides:
            side.wait()
        checked = [side.ask(do="gradients") for side in sides]
        is_exact = dtype == "float32"
        exact = checked[1] if is_exact else _exact_gradients(settings)
        differences = [_difference(each, exact) for each in checked]
        allowed = TOLERANCE if is_exact else SLACK * (differences[1] or 0.0)
        if (difference := differences[0]) is None:
            sides[0].fail(sides[0].error or "there are no gradients to compare its own with")
        elif not difference <= allowed:
            sides[0].fail(f"its gradients are {difference:.2%} off, where {allowed:.2%} were allowed")
        for side in sides:
            side.ask(do="step")  # the first one makes the optimizer's state
        found = take_turns(sides, steps, lambda side: side.ask(do="step"))
        last = [side.ask(do="memory") or {} for side in sides]
        products = (sides[0].ask(do="products") or {}).get("seconds")
        for side in sides:
            side.end()
    notes += [f"{dtype}: {answer['path']}" for answer in last if answer.get("path")]
    rows = [
        _row(dtype, side, found.get(side.label, []), end, difference)
        for side, end, difference in zip(sides, last, differences, strict=True)
    ]
    ours, theirs = (_share(products, found.get(side.label, []), steps) for side in sides)
    if ours and theirs:
        notes.append(
            f"{dtype}: the products with frozen weights alone, as we form them, are {ours:.0%} of our step and "
            f"{theirs:.0%} of theirs: whoever needs nothing else is {1 / theirs:.2f} times as fast as they are."
        )
    return rows


def _share(products: float | None, answers: list[Answer], steps: int) -> float:
    """The part of a step that its products with frozen weights take, at our number of positions; 0 if unknown."""
    return products * steps / sum(answer["seconds"] for answer in answers) if products and answers else 0.0


def _exact_gradients(settings: dict[str, Any]) -> Answer | None:
    """What 16 bits are measured by: peft's gradients in float32."""
    side = Side("tests.bench.training.cpu_side", "exact", side="peft", **(settings | {"dtype": "float32"}))
    side.wait()
    found = side.ask(do="gradients")
    side.end()
    return found


def _difference(one: Answer | None, exact: Answer | None) -> float | None:
    from tests.bench.training.adapter import largest_difference

    return largest_difference(one["file"], exact["file"]) if one and exact else None


def _row(dtype: str, side: Side, answers: list[Answer], last: Answer, difference: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"dtype": dtype, "side": side.label}
    if answers:
        tokens = sum(answer["tokens"] for answer in answers)
        row["tokens_per_s"] = tokens / sum(answer["seconds"] for answer in answers)
        row["tokens_per_cpu_s"] = tokens / sum(answer["cpu_seconds"] for answer in answers)
        row |= {"tokens": tokens, "peak_gib": last.get("peak_gib")}
    return row | {"gradient_difference": difference, "problem": side.error}


def _goals(dtype: str, ours: dict[str, Any], peft: dict[str, Any]) -> list[Goal]:
    speed = ratio(ours.get("tokens_per_s"), peft.get("tokens_per_s"))
    work = ratio(ours.get("tokens_per_cpu_s"), peft.get("tokens_per_cpu_s"))
    memory = ratio(ours.get("peak_gib"), peft.get("peak_gib"))
    note = f"by processor time {work:.2f}" if work else ours["problem"] or peft["problem"]
    return [
        Goal(f"CPU, {dtype}: useful tokens/s against peft + Trainer", 2.5, speed, note=note),
        Goal(f"CPU, {dtype}: peak memory of the process in theirs", 0.6, memory, at_least=False),
    ]


if __name__ == "__main__":
    main()
