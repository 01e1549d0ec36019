"""A small T5 or BART, briefly pretrained, since an adapter on a random base proves nothing.

    python -m tests.bench.tasks.pretrain --gather texts.json.gz            where packages can be fetched
    python -m tests.bench.tasks.pretrain t5 .cache/tiny-t5 --texts texts.json.gz --minutes 5      on a GPU

texts.py says what is read, and exercises.py what is practised. All minutes count, those of the preparation too: the
rates fall to nothing as they run out. Processes of their own draw, tokenise and pad the exercises, so that a GPU waits
for none; steps.py takes the steps. A few lines of what the model has come to say close the run.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tests.bench.record import say
from tests.bench.tasks.exercises import MASK, SENTINELS, TO_FRENCH, exercises
from tests.bench.tasks.steps import Batch, Steps
from tests.bench.tasks.texts import Texts, gather

VOCABULARY, WIDTH, INNER, HEADS = 8000, 384, 1024, 6
ENCODER, DECODER = 4, 3  # layers
LONGEST = 160  # tokens of a source or a target; longer exercises are passed over
WIDTHS = 32  # sources and targets are filled up to multiples of it, so that there are few shapes
POOL = 4096  # exercises that are drawn and tokenised together
TOKENS = 16_384  # of a batch, padding and both sides counted
REPORT = 20  # seconds
MINUTES = 5.0  # on a GPU; on two cores it would take a day
WORKERS = max(1, min(12, (os.cpu_count() or 2) // 2 - 1))
DROPOUT = {"t5": 0.15, "bart": 0.1}
WARMUP = {"t5": 0.04, "bart": 0.1}  # of the time; its norms come last, so that BART must begin more slowly
BART_RATE = 3e-4  # at twice that it never learnt to copy, and became NaN
T5_RATE = 2e-2  # of each weight's own size: T5's start out of sizes from 0.006 to 1 (after Adafactor, Shazeer 2018)
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", MASK, *SENTINELS]
LEARNT_FROM = 150_000  # texts that the vocabulary is learnt from


def make_tokenizer(texts: Texts, seed: int = 0) -> Any:
    """Byte-level BPE that ends every text with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    read = [*texts.english, *texts.french]
    read += [text for found in texts.groups.values() for group in found for side in group for text in side]
    random.Random(seed).shuffle(read)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        read[:LEARNT_FROM],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token=MASK,
        additional_special_tokens=list(SENTINELS),
    )  # fmt: skip


def make_model(kind: str, size: int) -> Any:
    """An untrained model of some fourteen million weights."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    ends = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": size, "d_model": WIDTH}
    if kind == "t5":
        shape = {"d_kv": WIDTH // HEADS, "d_ff": INNER, "num_heads": HEADS}
        layers = {"num_layers": ENCODER, "num_decoder_layers": DECODER}
        return T5ForConditionalGeneration(
            T5Config(**ends, **shape, **layers, dropout_rate=DROPOUT[kind], decoder_start_token_id=0)
        )
    shape = {f"{side}_{name}": value for side, layers in (("encoder", ENCODER), ("decoder", DECODER))
             for name, value in (("layers", layers), ("attention_heads", HEADS), ("ffn_dim", INNER))}  # fmt: skip
    return BartForConditionalGeneration(BartConfig(
        **ends, **shape, dropout=DROPOUT[kind], max_position_embeddings=256, bos_token_id=2, decoder_start_token_id=1,
        forced_eos_token_id=None,
    ))  # fmt: skip


class Batches(IterableDataset[Batch]):
    """Endless batches of sources (B, S) and targets (B, T) as int16, zeros behind their ends; one seed a process."""

    def __init__(self, kind: str, texts: Texts, backend: Any, seed: int) -> None:
        self.kind, self.texts, self.backend, self.seed = kind, texts, backend, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        draw = random.Random(1000 * self.seed + (0 if worker is None else worker.id))
        drawn = exercises(self.kind, self.texts, draw)
        waiting: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
        while True:
            encoded = [self.backend.encode_batch(side) for side in zip(*islice(drawn, POOL), strict=True)]
            for source, target in zip(*encoded, strict=True):
                shape = _filled(source.ids), _filled(target.ids)
                if max(shape) > LONGEST:
                    continue
                alike = waiting.setdefault(shape, [])
                alike.append((source.ids, target.ids))
                if len(alike) == TOKENS // sum(shape):
                    sources, targets = zip(*waiting.pop(shape), strict=True)
                    yield _padded(sources, shape[0]), _padded(targets, shape[1])


def _filled(ids: Sequence[int]) -> int:
    return -(-len(ids) // WIDTHS) * WIDTHS


def _padded(rows: Sequence[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int16)


def pretrain(kind: str, folder: Path, minutes: float, texts: Texts, workers: int, seed: int = 0) -> Path:
    """Train from nothing for some minutes, on a GPU where there is one, and save it all in half precision."""
    started = time.monotonic()
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = make_tokenizer(texts, seed)
    loader = DataLoader(
        Batches(kind, texts, tokenizer.backend_tokenizer, seed), batch_size=None, num_workers=workers,
        prefetch_factor=8, persistent_workers=True,
    )  # fmt: skip
    batches = iter(loader)  # the processes start before there is a GPU in this one
    model = make_model(kind, len(tokenizer)).train().to(device)
    groups, rates = _groups(kind, model)
    take_step = Steps(model, groups)
    say(f"{kind} on {device}, {workers} processes: {texts}; {model.num_parameters():,} weights")
    step, tokens, told, losses = 0, 0, time.monotonic(), list[torch.Tensor]()
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        if step % 100 == 0:
            rates()
        take_step.follow(min(1.0, share / WARMUP[kind]) * (1 - share))
        batch = next(batches)
        losses.append(take_step(batch))
        step, tokens = step + 1, tokens + batch[0].numel() + batch[1].numel()
        if time.monotonic() - told > REPORT:
            loss, speed = float(torch.stack(losses).mean()), tokens / (time.monotonic() - told) / 1000
            say(f"{share:4.0%}  step {step}  loss {loss:.3f}  {speed:,.0f}k tokens/s")
            tokens, told, losses = 0, time.monotonic(), []
    model.eval()
    _show(model, tokenizer, device)
    model.cpu().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _groups(kind: str, model: Any) -> tuple[list[dict[str, Any]], Callable[[], None]]:
    """Parameters with their rates, and what brings the rates up to date; T5's follow the sizes of the weights."""
    if kind == "bart":
        return [{"params": list(model.parameters()), "rate": BART_RATE}], lambda: None
    parts: dict[str, list[torch.Tensor]] = {}  # queries, keys, ... of all layers, whose sizes are alike
    for name, weight in model.named_parameters():
        parts.setdefault(name.split(".")[-2], []).append(weight)
    groups: list[dict[str, Any]] = [{"params": weights, "rate": 0.0} for weights in parts.values()]

    def follow() -> None:
        for group in groups:
            sizes = [weight.detach().float().square().mean().sqrt() for weight in group["params"]]
            group["rate"] = T5_RATE * max(1e-3, float(torch.stack(sizes).mean()))

    return groups, follow


def _show(model: Any, tokenizer: Any, device: str) -> None:
    """What the model makes of a sentence with the words that ask for a translation, without them, and of a question."""
    sentence = "The children waited in front of the house until their father came home."
    asked = f"question: Where did the children wait? context: {sentence}"
    for text in (TO_FRENCH + sentence, sentence, asked):
        ids = tokenizer(text, return_token_type_ids=False, return_tensors="pt").to(device)
        written = model.generate(**ids, max_new_tokens=40, do_sample=False)
        say(f"{text} -> {tokenizer.decode(written[0], skip_special_tokens=False)}")


def main() -> None:
    """Gather the texts, or pretrain one model."""
    parser = argparse.ArgumentParser(prog="tests.bench.tasks.pretrain")
    parser.add_argument("kind", choices=("t5", "bart"), nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--gather", type=Path, help="fetch the texts, write them into this file, and do nothing else")
    parser.add_argument("--texts", type=Path, help="what --gather wrote; left out, they are fetched now")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args()
    if given.gather is not None:
        texts = gather()
        texts.save(given.gather)
        say(str(texts))
    elif given.kind is None or given.folder is None:
        parser.error("say which kind, t5 or bart, and the folder to save it in")
    else:
        texts = Texts.load(given.texts) if given.texts else gather()
        pretrain(given.kind, given.folder, given.minutes, texts, given.workers)


if __name__ == "__main__":
    main()
