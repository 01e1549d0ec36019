"""JSON lines of chats to packed batches, against TRL's dataset preparation.

    python -m tests.bench.data [--chats 100000] [--rounds 2]      TRL: pip install --no-deps trl

Both sides read one file, render the same ChatML template with the tokenizer of the starter model, find the trained
tokens of the answers and pack. TRL gets two processes. Our reading checks every row as well (duplicates, languages,
secrets), which the studio does once, when a dataset is added; so a run's own share, from the stored rows on, is
shown beside the whole. It keeps the tokens for the next run, whose share is shown too. `grown_gib`: how much the
largest process of a side, its peak before the first chat taken off, held at the same time at most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.bench.merge import STARTER
from tests.bench.record import FOLDER, Goal, Result, ratio
from tests.bench.sides import Answer, Side, serve, take_turns

PACKED = 2048  # positions of a packed row
WINDOW = 512  # examples that are packed together
PROCESSES = 2
T = TypeVar("T")
CHATML = """{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def write_chats(path: Path, count: int) -> None:
    """Chats of one to three turns a side, out of the sentences of Python's documentation."""
    sentences, draw = documented(), random.Random(0)

    def words(most: int) -> str:
        return " ".join(draw.choice(sentences) for _ in range(draw.randint(1, most)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            turns = [{"role": "system", "content": "You are a helpful assistant."}]
            for _ in range(draw.choice((1, 1, 2, 3))):
                turns += [{"role": "user", "content": words(3)}, {"role": "assistant", "content": words(4)}]
            file.write(json.dumps({"messages": turns}) + "\n")


def documented() -> list[str]:
    """Sentences of Python's documentation topics and of its standard library's docstrings."""
    import pydoc_data.topics as topics

    texts = list(topics.topics.values())
    library = Path(topics.__file__).parents[1]
    for path in sorted(library.glob("*.py")):
        texts += re.findall(r'"""(.+?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.S)
    plain = [re.sub(r"\s+", " ", part) for text in texts for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)]
    wordy = [part.strip() for part in plain if 30 <= len(part) <= 160 and len(re.findall(r"[a-z]{2,}", part)) >= 6]
    return [part for part in dict.fromkeys(wordy) if sum(map(str.isalpha, part)) > 0.7 * len(part)]


def main(argv: list[str] | None = None) -> Result:
    """Let both sides prepare the same file in turn, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data")
    parser.add_argument("--chats", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    result = Result("data", "JSON lines to packed batches")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "chats.jsonl"
        write_chats(file, arguments.chats)
        sides = [Side("tests.bench.data", name, side=name, file=str(file)) for name in ("ours", "trl")]
        ready = [side for side in sides if side.wait()]
        found = take_turns(ready, arguments.rounds, lambda side: side.ask(7200))
        for side in sides:
            side.end()
            result.rows.append(_row(side, found.get(side.label, []), arguments.chats))
    ours, trl = result.rows
    result.goals = [
        Goal("6: a run's own share, chats per second against TRL", 3.0, _times(ours, trl, "chats_per_s")),
        Goal("6: the same in seconds of the processor", 3.0, _times(trl, ours, "cpu_s_of_1000")),
        Goal("6: tokens that are kept from an earlier run", 3.0, _times(ours, trl, "chats_per_s_kept")),
        Goal("6: with all checks of the rows", 3.0, _times(ours, trl, "chats_per_s_with_checks")),
        Goal("6: trained tokens in those of TRL", 1.0, _times(ours, trl, "trained_tokens")),
    ]
    result.notes.append(f"Each side's fastest of {arguments.rounds} rounds, by turns.")
    if alone := ours.pop("tokenizer_cpu_s_of_1000", None):
        result.notes.append(
            f"The tokenizer alone, given whole texts, takes {alone:.2f} s of the processor for 1,000 chats. Ours looks "
            "words up that came before. The chats come from a stock of sentences: where words are rarer, it gains less."
        )
    result.publish(arguments.out)
    return result


def _times(ours: dict[str, Any], trl: dict[str, Any], key: str) -> float | None:
    return ratio(ours.get(key), trl.get(key, trl.get("chats_per_s")))


def _row(side: Side, answers: list[Answer], chats: int) -> dict[str, Any]:
    if not answers:
        return {"side": side.label, "problem": side.error}
    fastest = dict(min(answers, key=lambda answer: float(answer["seconds"])))  # other work only ever adds to it
    seconds, checks, again = (fastest.pop(name, None) for name in ("seconds", "checks_seconds", "again_seconds"))
    row = {"side": side.label, "chats": chats, "chats_per_s": chats / seconds}
    row["cpu_s_of_1000"] = 1000 * fastest.pop("cpu_seconds") / chats
    row |= {} if checks is None else {"chats_per_s_with_checks": chats / (seconds + checks)}
    row |= {} if again is None else {"chats_per_s_kept": chats / again}
    return row | fastest | {"grown_gib": max(answer["grown_gib"] for answer in answers)}  # the first round's, mostly


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = CHATML
    return tokenizer


def _ours(file: Path) -> Callable[[], Answer]:
    from core.data.packing import divide, pack
    from core.data.record_file import RecordFile, RecordWriter
    from core.data.records import Record
    from core.data.scan import Scan
    from core.data.template import tokenize_all
    from core.data.token_cache import TokenCache
    from core.data.tokenized import TokenTable

    tokenizer = _tokenizer()
    stored = file.with_name("records.jsonl")

    def check() -> None:
        with RecordWriter(stored) as writer:
            for verdict in Scan([file]):
                if verdict.record is not None:
                    writer.add(verdict.record)

    def packed(folder: Path) -> tuple[TokenTable, int]:
        examples = tokenize_all(RecordFile(stored), tokenizer, cache=TokenCache(folder))
        lengths, rows = examples.lengths.tolist(), 0
        for first in range(0, len(examples), WINDOW):
            for chosen in divide(range(first, min(first + WINDOW, len(examples))), lengths, PACKED):
                pack([examples[row] for row in chosen], 0)
                rows += 1
        return examples, rows

    def alone() -> float:
        """Seconds of the processor that the tokenizer takes for 1,000 chats that are rendered already."""
        records = RecordFile(stored)[:1000]
        texts = [tokenizer.apply_chat_template(chat(record), tokenize=False) for record in records]
        return min(_timed(lambda: tokenizer(texts, add_special_tokens=False))[1] for _ in range(3)) * 1000 / len(texts)

    def chat(record: Record) -> list[dict[str, str]]:
        return [{"role": turn.role, "content": turn.content} for turn in record.messages]

    def prepare() -> Answer:
        before = _peak_gib()
        with tempfile.TemporaryDirectory() as folder:
            checks_seconds, _, _ = _timed(check)
            seconds, cpu_seconds, (examples, rows) = _timed(lambda: packed(Path(folder)))
            again_seconds, _, _ = _timed(lambda: packed(Path(folder)))
            return {
                "seconds": seconds, "cpu_seconds": cpu_seconds, "checks_seconds": checks_seconds,
                "again_seconds": again_seconds, "packed_rows": rows, "trained_tokens": int(examples.trained.sum()),
                "peak_gib": _peak_gib(), "grown_gib": _peak_gib() - before, "tokenizer_cpu_s_of_1000": alone(),
            }  # fmt: skip

    return prepare


def _timed(work: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds by the clock, seconds of the processor with those of processes that ended, and what was made."""
    start, used = time.perf_counter(), _cpu_seconds()
    made = work()
    return time.perf_counter() - start, _cpu_seconds() - used, made


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _trl(file: Path) -> Callable[[], Answer]:
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    tokenizer = _tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **width))

    def trained_on(out: str) -> Any:
        rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=out)
        config = SFTConfig(
            output_dir=out, use_cpu=True, packing=True, max_length=PACKED, assistant_only_loss=True,
            dataset_num_proc=PROCESSES, report_to=[],
        )  # fmt: skip
        return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer).train_dataset

    def prepare() -> Answer:
        before = _peak_gib()
        with tempfile.TemporaryDirectory() as out:
            seconds, cpu_seconds, made = _timed(lambda: trained_on(out))
            trained = sum(label != -100 for row in made for label in row["labels"])
            return {"seconds": seconds, "cpu_seconds": cpu_seconds, "packed_rows": len(made),
                    "trained_tokens": trained, "peak_gib": _peak_gib(), "grown_gib": _peak_gib() - before}  # fmt: skip

    return prepare


def _peak_gib() -> float:
    """Of this process and the largest of its children."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) / 2**20


def _side(side: str, file: str) -> Callable[[], Answer]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # we have threads and TRL has processes instead
    return (_ours if side == "ours" else _trl)(Path(file))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        serve(lambda settings: _side(**settings))
    else:
        main()
