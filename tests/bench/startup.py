"""Starting: what importing core costs on top of torch, and process start to the first optimizer step.

    python -m tests.bench.startup [--rounds 3]

Every measurement is a process of its own, timed until its last statement is done; the sides alternate. Both train the
same rows of the ticket data with rank 16 on all linear layers of the same model folder; peft's side tokenises them with
the same chat template. The imports that load a model, which both need, say how early a first step can be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.merge import STARTER
from tests.bench.record import FOLDER, ROOT, Goal, Result, median, ratio

TICKETS = ROOT / "assets" / "datasets" / "support_tickets.jsonl"
PROGRAMS = {
    "import torch": "import torch",
    "import core": "import core; core.Trainer; core.load_model; core.inject; core.save_adapter",
    "import peft and Trainer": "import peft; from transformers import Trainer",
    "import what loads a Llama": """
import gc
gc.disable()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
""",
    "ours to the first step": """
from core import AdapterConfig, TrainConfig, Trainer, load_model
from core.data.dataset import load_dataset
model, tokenizer = load_model({model!r}, dtype="float32", device="cpu")
config = TrainConfig(adapter=AdapterConfig(r=16), batch_size=8)
next(Trainer(model, tokenizer, load_dataset({data!r}), config).steps())
""",
    "peft and Trainer to the first step": """
import json, os, torch
from peft import LoraConfig, get_peft_model
from transformers import (AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback,
                          TrainingArguments)
model = AutoModelForCausalLM.from_pretrained({model!r}, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained({model!r})
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
def example(row):
    ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
    start = len(tokenizer.apply_chat_template(row["messages"][:-1], tokenize=True, return_dict=True,
                                              add_generation_prompt=True)["input_ids"])
    return dict(input_ids=ids, attention_mask=[1] * len(ids), labels=[-100] * start + ids[start:])
rows = [example(json.loads(line)) for line in open({data!r}, encoding="utf-8")]
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **unused):
        control.should_training_stop = True
import tempfile
arguments = TrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=8, max_steps=1, report_to=[],
                              save_strategy="no", use_cpu=True, disable_tqdm=True)
Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Stop()]).train()
""",
}

LAST_WORDS = "\nimport time; print(time.time(), time.process_time(), flush=True)"


def main(argv: list[str] | None = None) -> Result:
    """Run every program in turn, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.startup")
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("startup", "Process start")
    values = {"model": str(arguments.model), "data": str(TICKETS)}
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in PROGRAMS}
    for _ in range(arguments.rounds):
        for name, program in PROGRAMS.items():
            found[name].append(_seconds(program.format(**values) if "{model" in program else program))
    for name, runs in found.items():
        problem = next((run[2] for run in runs if run[2]), "")
        wall, cpu = (None, None) if problem else (median([run[0] for run in runs]), median([run[1] for run in runs]))
        result.rows.append({"program": name, "seconds": wall, "cpu_seconds": cpu, "problem": problem})
    result.goals = _goals({row["program"]: row for row in result.rows})
    result.publish(arguments.out)
    return result


def _goals(rows: dict[str, dict[str, float | None]]) -> list[Goal]:
    goals = []
    for key, words in (("seconds", ""), ("cpu_seconds", ", processor time")):
        core, torch = rows["import core"][key], rows["import torch"][key]
        first = [rows[f"{side} to the first step"][key] for side in ("ours", "peft and Trainer")]
        more = core - torch if core is not None and torch is not None else None
        goals.append(Goal(f"8: import of core beyond torch, s{words}", 0.3, more, at_least=False))
        goals.append(Goal(f"8: first step in peft + Trainer's{words}", 0.5, ratio(*first), at_least=False))
    return goals


def _seconds(program: str) -> tuple[float, float, str]:
    """Wall and processor seconds of a program in a fresh process, and its last words if it failed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    command, start = [sys.executable, "-c", program + LAST_WORDS], time.time()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        return 0.0, 0.0, done.stderr.strip()[-300:]
    end, cpu = map(float, done.stdout.split()[-2:])  # leaving takes another second, which nobody waits for
    return end - start, cpu, ""


if __name__ == "__main__":
    main()
