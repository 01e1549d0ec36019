"""The process that shows datasets as tokens: real rows of a real model's tokenizer, errors as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.data.records import Message, Record
from core.errors import StudioError
from studio.shelf import preview_row
from studio.token_client import TokenClient
from studio.token_counts import token_lengths
from studio.workspace import Workspace


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenClient]:
    made = TokenClient(Workspace.open(tmp_path_factory.mktemp("tokens") / "workspace"))
    yield made
    made.close()


def test_rows_and_lengths_of_a_sample(client: TokenClient, starter_folder: Path, samples: Path) -> None:
    from core.data.dataset import load_dataset
    from core.data.template import tokenize_all
    from core.models import load_tokenizer

    records = load_dataset(samples / "support_tickets.jsonl").records[:40]
    examples = tokenize_all(records, load_tokenizer(starter_folder))
    rows = client.rows(starter_folder, records)
    assert [(row.row, row.tokens, row.trained) for row in rows] == [
        (example.row, len(example.input_ids), example.n_trained) for example in examples
    ]
    trained = "".join(text for text, state in rows[0].pieces if state == "trained")
    assert trained == records[0].messages[-1].content + "<|im_end|>"
    lengths = client.lengths(starter_folder, records, None, max_length=60)
    assert (lengths.rows, lengths.of, lengths.refused) == (40, 40, 0)
    assert lengths.trained == sum(example.cut(60).n_trained for example in examples)


def test_both_texts_of_a_preference_pair_are_shown_and_counted(client: TokenClient, starter_folder: Path) -> None:
    system, asked = Message("system", "Be brief."), Message("user", "Well?")
    better, worse = (Message("assistant", text) for text in ("Yes.", "No, not at all, and never again. " * 9))
    pair = Record(3, messages=(system, asked, better), rejected=(system, asked, worse))
    chosen, rejected = client.rows(starter_folder, [pair])
    assert (chosen.row, chosen.answer, rejected.row, rejected.answer) == (3, "chosen", 3, "rejected")
    texts = ["".join(text for text, _ in row.pieces) for row in (chosen, rejected)]
    assert all("Be brief." in text for text in texts)
    assert better.content in texts[0] and worse.content in texts[1]
    lengths = client.lengths(starter_folder, [pair], None)
    assert (lengths.tokens, lengths.rows, lengths.of) == (chosen.tokens + rejected.tokens, 2, 2) and lengths.pairs
    assert lengths.percentiles["100"] == rejected.tokens
    planned = token_lengths(starter_folder, [pair])
    assert [abs(planned[0] - chosen.tokens) < 5, abs(planned[1] - rejected.tokens) < 5] == [True, True]
    said = [role for role, _ in preview_row(pair).turns]
    assert said == ["system", "user", "chosen", "rejected"]


def test_a_model_that_is_gone_is_a_sentence_and_the_process_lives_on(client: TokenClient, starter_folder: Path) -> None:
    with pytest.raises(StudioError) as caught:
        client.rows(starter_folder / "gone", [Record(1, text="x")])
    assert caught.value.what and caught.value.fix
    assert client.rows(starter_folder, [Record(1, text="Hello.")])[0].trained > 0
