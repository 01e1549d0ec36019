"""The process that shows a dataset as tokens: `python -P -m studio.tokens --workspace DIR`, JSON lines in and out.

    in   {"id": 1, "model": folder, "records": file or [record], "ask": "rows", "max_length": 0}
         {"id": 2, ..., "ask": "lengths", "max_length": 0, "completion_only": true, "cache": folder}
    out  {"id": 1, "rows": [{"row": 7, "pieces": [[text, state]], ...}], "done": true}
         {"id": 2, "message": "...", "done": false}   then   {"id": 2, "lengths": {...}, "of": 320, "done": true}

It loads the model's tokenizer as training does, and no weights; what is shown is what will be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.record_file import RecordFile, from_dict
from core.data.records import Record
from core.data.token_cache import TokenCache
from core.errors import DatasetError
from studio.chat import Reply, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from core.data.token_view import LengthMeter

MEASURED_ROWS = 20_000  # evenly spread; as exact as a picture needs
PART_ROWS = 1024  # tokenised between two reports


class TokenEngine:
    """Tokenizers, and the lengths of the datasets that were measured last."""

    def __init__(self) -> None:
        self._tokenizer = lru_cache(maxsize=4)(_load_tokenizer)
        self._meters: dict[str, LengthMeter] = {}

    def answer(self, request: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Reply]:
        """The replies to one request; StudioError when the model or the dataset cannot be read."""
        tokenizer, context_length = self._tokenizer(request["model"])
        records = _records(request["records"])
        if request["ask"] == "rows":
            asked = request["max_length"], request["completion_only"]
            rows = [_row(record, side, tokenizer, *asked) for record in records for side in record.sides]
            yield {"rows": rows, "done": True}
            return
        key = f"{request['model']}\0{request['records']}\0{request['completion_only']}"
        if key not in self._meters:
            yield {"message": "Counting tokens", "done": False}
            cache = TokenCache(Path(request["cache"])) if request.get("cache") else None
            self._meters = {key: _meter(records, tokenizer, request["completion_only"], stop, cache)}
        measured, pairs = self._meters[key].measure(request["max_length"], context_length), _are_pairs(records)
        yield {"lengths": asdict(measured), "of": len(records) * (1 + pairs), "pairs": pairs, "done": True}

    def drop(self) -> None:
        """Free the memory."""
        self._meters.clear()
        self._tokenizer.cache_clear()


def _meter(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
    stop: Callable[[], bool],
    cache: TokenCache | None,
) -> LengthMeter:
    from core.data.token_view import LengthMeter

    def go_on(done: int, total: int) -> None:
        if stop():
            raise DatasetError("The counting was stopped.", "Ask again.")

    if len(records) > MEASURED_ROWS:
        records, cache = records[:: -(-len(records) // MEASURED_ROWS)], None
    if _are_pairs(records):
        records = [side for record in records for side in record.sides]
    return LengthMeter(records, tokenizer, completion_only, go_on, cache)


def _are_pairs(records: Sequence[Record]) -> bool:
    """Whether the rows are preference pairs, which are never mixed with others."""
    return len(records) > 0 and bool(records[0].rejected)


def _row(
    record: Record, side: Record, tokenizer: PreTrainedTokenizerBase, max_length: int, completion_only: bool
) -> dict[str, Any]:
    from core.data.template import tokenize_all
    from core.data.token_view import pieces

    answer = "" if not record.rejected else "chosen" if side is record else "rejected"
    about = {"row": record.row, "answer": answer}
    try:
        example = tokenize_all([side], tokenizer, completion_only)[0]
    except DatasetError as error:
        return {**about, "pieces": [], "tokens": 0, "trained": 0, "error": [error.what, error.fix]}
    return {
        **about,
        "pieces": pieces(example, tokenizer, max_length),
        "tokens": len(example.input_ids),
        "trained": example.cut(max_length).n_trained,
        "error": ["", ""],
    }


def _records(given: str | Sequence[Mapping[str, Any]]) -> Sequence[Record]:
    return RecordFile(Path(given)) if isinstance(given, str) else [from_dict(record) for record in given]


def _load_tokenizer(folder: str) -> tuple[PreTrainedTokenizerBase, int]:
    from core.models import inspect_model, load_tokenizer

    return load_tokenizer(Path(folder)), inspect_model(Path(folder)).context_length


if __name__ == "__main__":
    run("studio.tokens", TokenEngine())
