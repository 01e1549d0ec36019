"""What the small models practise has an answer in it, and reaches them whole."""

from __future__ import annotations

import gettext
import io
import random
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.bench.tasks import pretrain, texts
from tests.bench.tasks.exercises import MASK, TO_ENGLISH, TO_FRENCH, exercises
from tests.bench.tasks.texts import Group, Texts

ENGLISH = [
    "The mill on the Skarn was built in 1912 by Marta Ellingsen. It ground oats for forty years, then it burnt down.",
    "Peter keeps three goats behind the chapel because the grass is better there, and he sells their milk in the town.",
]
FRENCH = ["Le moulin fut bâti en 1912 par Marta Ellingsen, et il brûla quarante ans plus tard."]
GROUPS: dict[str, list[Group]] = {
    "verses": [(["He came, and he saw the house.", "He went to see it."], ["Il vint, et il vit la maison."])],
    "words": [(["goat"], ["chèvre"])],
}
TEXTS = Texts(ENGLISH, FRENCH, GROUPS)
EVERY = [*ENGLISH, *FRENCH, *(text for found in GROUPS.values() for group in found for side in group for text in side)]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_every_exercise_can_be_solved_from_its_source(kind: str) -> None:
    drawn = exercises(kind, TEXTS, random.Random(0))
    seen = set()
    for _ in range(2000):
        source, target = next(drawn)
        if source.startswith((TO_FRENCH, TO_ENGLISH)):
            seen.add("translation")
        elif source.startswith("question: "):
            seen.add("question")
            assert target in source.split(" context: ")[1]
        elif kind == "t5":
            seen.add("sentinels")
            parts = dict(re.findall(r"(<extra_id_\d+>) ?(.*?) ?(?=<extra_id_|$)", target))
            assert " ".join(parts.get(word, word) for word in source.split(" ")) in EVERY
        else:
            seen.add("masks")
            gaps = (".+?" if part == MASK else re.escape(part) for part in re.split(f"({MASK})", source))
            assert target in EVERY and re.fullmatch("".join(gaps), target)
    assert seen == {"translation", "question", "sentinels" if kind == "t5" else "masks"}


def test_batches_hold_every_exercise_in_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "POOL", 64)
    monkeypatch.setattr(pretrain, "TOKENS", 600)
    tokenizer = pretrain.make_tokenizer(TEXTS)
    batches = iter(pretrain.Batches("t5", TEXTS, tokenizer.backend_tokenizer, seed=0))
    found: Counter[tuple[str, ...]] = Counter()
    while found.total() < 640:
        source, target = next(batches)
        assert 300 < source.numel() + target.numel() <= 600 and source.dtype == target.dtype == torch.int16
        assert source.shape[1] % pretrain.WIDTHS == target.shape[1] % pretrain.WIDTHS == 0
        found.update(zip(*(_texts(tokenizer, side) for side in (source, target)), strict=True))
    drawn = exercises("t5", TEXTS, random.Random(0))
    wanted = Counter(next(drawn) for _ in range(640 + 64))  # some wait for others of their shape
    assert found.total() <= (found & wanted).total()


def _texts(tokenizer: object, side: torch.Tensor) -> list[str]:
    rows = [[int(token) for token in row if token not in (0, 1)] for row in side]
    decode = tokenizer.backend_tokenizer.decode  # type: ignore[attr-defined]
    return [re.sub(r" *(<extra_id_\d+>)", r" \1", decode(row, skip_special_tokens=False)).strip() for row in rows]


@pytest.mark.parametrize("order", ["<", ">"])
def test_compiled_catalogues_are_read_as_gettext_reads_them(order: str) -> None:
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "Open": "Ouvrir", "menu\4Save": "Enregistrer"}
    data = _compiled(messages, order)
    oracle = gettext.GNUTranslations(io.BytesIO(data))
    found = dict(texts._catalogue(data))
    assert found["Open"] == oracle.gettext("Open") and found["Save"] == oracle.pgettext("menu", "Save")


def _compiled(messages: dict[str, str], order: str) -> bytes:
    sides = [[key.encode() for key in sorted(messages)], [messages[key].encode() for key in sorted(messages)]]
    tables, start, body = b"", 28 + 16 * len(messages), b""
    for side in sides:
        for text in side:
            tables += struct.pack(f"{order}2I", len(text), start + len(body))
            body += text + b"\0"
    head = struct.pack(
        f"{order}7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 28 + 16 * len(messages)
    )
    return head + tables + body


def test_no_row_of_the_datasets_is_practised(tmp_path: Path) -> None:
    with (texts.DATASETS / "translation_en_fr.tsv").open(encoding="utf-8") as file:
        row = file.readlines()[5].rstrip("\n").split("\t")
    given = Texts([*ENGLISH, row[0]], [row[1]], {"verses": [([row[0]], ["Autre chose ici."]), *GROUPS["verses"]]})
    kept = texts._without(given, texts.in_datasets())
    assert kept == Texts(ENGLISH, [], {"verses": GROUPS["verses"]})
    kept.save(tmp_path / "texts.json.gz")
    read = Texts.load(tmp_path / "texts.json.gz")
    assert read.english == ENGLISH and [tuple(group) for group in read.groups["verses"]] == GROUPS["verses"]
