"""The training step on one GPU against peft, Liger's kernels and Unsloth.

    PYTHONPATH=. python3 -m tests.bench.step [--groups small,large] [--budget-seconds 460] [--out FOLDER]

Every side is a process of its own. Before it is timed, the gradients of its first step are compared with those of the
same model in float32: a side without a gradient somewhere is not timed, and one whose gradients are further off than
bfloat16 costs the best of the others counts for no goal. Nothing but torch, transformers and the rivals
is needed; a side that fails is reported and the rest goes on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.record import FOLDER, Result, median, ratio, say
from tests.bench.sides import Answer, Side
from tests.bench.training.goals import goals
from tests.bench.training.groups import GROUPS, TINY_GROUPS, Group, missing
from tests.bench.training.shapes import SHAPES

MODULE = "tests.bench.training.side"
TOLERANCE = 0.05  # relative difference of a gradient from float32 that bfloat16 explains in a shallow model
SLACK = 1.1  # in a deep one bfloat16's roundings add up, for every side: the best of the others is the measure
EPOCHS_BEFORE = 4  # that ragged rows are stepped over before they are timed
GRANULE = 512  # tokens to which the longest row is searched
WORTH_STARTING = 40.0  # seconds a group needs at least


class Bench:
    """The groups of one run, and what has been found so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, arguments.device
        self.ends = time.monotonic() + arguments.budget_seconds
        self.result = Result("step", "The training step")
        self.roofline: float | None = None
        self._scratch = tempfile.TemporaryDirectory()
        self.scratch = self._scratch.name

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.ends - time.monotonic()

    def run(self, groups: tuple[Group, ...]) -> Result:
        """All groups that there is time for; the file is written after each."""
        for group in groups:
            if self.left < WORTH_STARTING:
                self.result.notes.append(f"{group.title}: not run, the time was up.")
                continue
            self._measure_roofline(groups[0])
            say(f"\n{group.title} ({self.left:.0f} s left)")
            (self._find_longest if group.finds_longest else self._time)(group)
            self.result.goals = goals(self.result.rows)
            self.result.save(self.arguments.out)
        return self.result

    def _measure_roofline(self, group: Group) -> None:
        side = Side(MODULE, "roofline", **(group.settings("roofline", self.device, self.scratch) | {"shape": "tiny"}))
        ready = side.wait(120)
        found = side.ask(60, do="roofline") if ready else None
        side.end()
        if found is None:
            self.result.notes.append(f"The matrix product was not measured: {side.error}")
            return
        self.roofline = float(found["tflops"])
        rates = {"matmul_tflops": round(self.roofline, 1), "cold_matmul_tflops": round(found["cold_tflops"], 1)}
        self.result.machine |= {"accelerator": found["device"], **rates}
        say(f"bfloat16 matrix product: {self.roofline:.0f} TFLOP/s, cold {found['cold_tflops']:.0f}, {found['device']}")

    def _time(self, group: Group) -> None:
        sides = self._start(group, ("exact", *group.sides) if group.compares else group.sides)
        exact = ""
        if group.compares:
            oracle = sides.pop(0)
            exact = str((self._ask(oracle, do="gradients") or {}).get("file", ""))
            oracle.end()
            if not exact:
                self.result.notes.append(f"{group.title}: no gradients to compare with: {oracle.error}")
        rounds, count, warmup = self.arguments.rounds, self.arguments.steps, self.arguments.warmup
        if group.ragged:  # whole epochs, since rows differ, once those are over in which ours records graphs
            count = group.rows // group.batch
            warmup = EPOCHS_BEFORE * count
        checked: dict[int, Answer] = {}
        found: dict[int, list[Answer]] = {}
        for turn in range(rounds if group.together else 1):
            for index, side in enumerate(sides):
                if turn == 0:
                    checked[index] = self._check(side, exact)
                steps = count if group.together else 2 * count
                if (answer := self._ask(side, do="steps", count=steps, warmup=0 if turn else warmup)) is not None:
                    found.setdefault(index, []).append(answer)
                if not group.together:
                    side.end()
                    self._report(group, side, found.get(index, []), checked[index])
        for index, side in enumerate(sides if group.together else ()):
            side.end()
            self._report(group, side, found.get(index, []), checked.get(index, {}))
        judge([row for row in self.result.rows if row["group"] == group.name])

    def _check(self, side: Side, exact: str) -> Answer:
        """How far a side's gradients are from the exact ones; a side with a zero gradient fails here."""
        if side.label == "frozen":
            return {}
        found = self._ask(side, do="gradients") or {}
        if found.get("without_gradient"):
            side.fail(f"{found['without_gradient']} of {found['tensors']} tensors have no gradient")
        if exact and found and not side.error:
            from tests.bench.training.adapter import largest_difference

            found["difference"] = largest_difference(found["file"], exact)
        return found

    def _find_longest(self, group: Group) -> None:
        """Per side the longest row whose step fits: guessed from the slope of the peak, then tried around the guess."""
        for side in self._start(group, group.sides):
            peaks = [self._ask(side, do="fits", length=length) for length in (2048, 4096)]
            best = 0
            if all(peak and peak["fits"] for peak in peaks):
                small, large = (peak["peak_gib"] for peak in peaks if peak)
                slope = max(1e-9, (large - small) / 2048)
                guess = int((0.95 * (peaks[1] or {})["total_gib"] - small) / slope) + 2048
                best = self._search(side, 4096, max(GRANULE * 9, guess))
            side.end()
            row = {"group": group.name, "side": side.label, "longest_tokens": best or None}
            if best and side.error:
                self.result.notes.append(f"{group.title}, {side.label}: at least {best:,} tokens ({side.error}).")
            self._add(row if best else row | {"problem": side.error})

    def _search(self, side: Side, fits: int, guess: int) -> int:
        """Bracket the limit around a guess by steps of an eighth, then halve the bracket twice."""
        fails = 0
        while not fails or fails - fits > max(GRANULE, fits // 32):
            tried = guess if not fails and guess > fits else (fits + fits // 8 if not fails else (fits + fails) // 2)
            answer = self._ask(side, do="fits", length=tried // GRANULE * GRANULE)
            if answer is None or self.left < 15:
                return fits
            fits, fails = (tried, fails) if answer["fits"] else (fits, tried)
        return fits // GRANULE * GRANULE

    def _start(self, group: Group, labels: tuple[str, ...]) -> list[Side]:
        """Start the sides whose packages are there, all at once, and wait for their imports."""
        started = []
        for label in labels:
            if package := missing(label):
                self._add({"group": group.name, "side": label, "problem": f"{package} is not installed"})
            elif label not in self.arguments.leave_out:
                started.append(Side(MODULE, label, **group.settings(label, self.device, self.scratch)))
        for side in started:
            side.wait(min(180.0, max(1.0, self.left)))
        if labels[0] == "exact" and missing("exact"):
            started.insert(0, _absent("exact"))
        return started

    def _ask(self, side: Side, **request: Any) -> Answer | None:
        return side.ask(min(float(self.arguments.side_seconds), max(1.0, self.left)), **request)

    def _report(self, group: Group, side: Side, answers: list[Answer], checked: Answer) -> None:
        row: dict[str, Any] = {"group": group.name, "side": side.label}
        seconds = [value for answer in answers for value in answer["seconds"]]
        if seconds:
            # with ragged rows the steps differ, so that only their sum is comparable
            tokens = sum(value for answer in answers for value in answer["tokens"])
            typical = sum(seconds) / len(seconds) if group.ragged else median(seconds)
            row |= {"tokens_per_s": tokens / len(seconds) / typical, "ms": 1e3 * typical}
            if group.ragged:
                row["ms_of_first_epochs"] = 1e3 * answers[0]["warmup_seconds"]
            row |= {key: answers[0][key] for key in ("peak_gib", "reserved_gib")}
            if path := answers[0]["path"]:
                self.result.notes.append(f"{group.title}, {side.label}: {path}")
            if not group.ragged:
                flops = SHAPES[group.shape].useful_flops([group.length] * group.batch, group.r)
                row["useful_tflops"] = flops / typical / 1e12
                row["of_matmul"] = ratio(row["useful_tflops"], self.roofline)
        self._add(row | {"gradient_difference": checked.get("difference"), "problem": side.error})

    def _add(self, row: dict[str, Any]) -> None:
        self.result.rows.append(row)
        say("  " + ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items() if value not in (None, "")))  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> None:
    """Mark the sides of a group whose gradients are not as near to the exact ones as those of the best other side.

    A rival is held to the other rivals alone: that ours are nearer does not make its figures wrong.
    """
    for row in rows:
        difference = row.get("gradient_difference")
        sides = [other for other in rows if other is not row]
        rivals = [other for other in sides if not _is_ours(other)]
        others = [other.get("gradient_difference") for other in (sides if _is_ours(row) else rivals or sides)]
        allowed = max(TOLERANCE, SLACK * min((other for other in others if other), default=0.0))
        if difference and not difference <= allowed:
            row["problem"] = f"its gradients are {difference:.1%} off, where {allowed:.1%} were allowed"


def _is_ours(row: dict[str, Any]) -> bool:
    return str(row["side"]).startswith("ours")


def _absent(label: str) -> Side:
    side = Side.__new__(Side)
    side.label, side.error, side.end = label, "peft is not installed", lambda: None  # type: ignore[method-assign]
    return side


def chosen_groups(arguments: argparse.Namespace) -> tuple[Group, ...]:
    """The groups that are asked for, in the order of their worth."""
    groups = TINY_GROUPS if arguments.tiny else GROUPS
    names = arguments.groups.split(",") if arguments.groups else [group.name for group in groups]
    sides = tuple(arguments.sides.split(",")) if arguments.sides else ()
    return tuple(replace(group, sides=sides or group.sides) for group in groups if group.name in names)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step")
    parser.add_argument("--groups", default="", help=f"of {', '.join(group.name for group in GROUPS)}; all by default")
    parser.add_argument("--sides", default="", help="sides to run in place of each group's own, comma-separated")
    parser.add_argument("--leave-out", default="", help="sides not to run, comma-separated")
    parser.add_argument("--budget-seconds", type=float, default=460.0, help="start nothing that would take longer")
    parser.add_argument("--side-seconds", type=float, default=120.0, help="longest wait for one answer of a side")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a turn")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first timed one")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the machinery")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result's file")
    arguments = parser.parse_args(argv)
    arguments.leave_out = set(arguments.leave_out.split(","))
    return arguments


def main(argv: list[str] | None = None) -> Result:
    """Run the groups, print the tables and write the file."""
    arguments = parse(argv)
    result = Bench(arguments).run(chosen_groups(arguments))
    result.publish(arguments.out)
    return result


if __name__ == "__main__":
    main()
