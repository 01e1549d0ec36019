"""The studio's side of the token view: rows as tokens, and lengths in tokens, as training will see them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.data.record_file import as_dict
from core.data.records import Record
from studio.chat_client import HelperClient
from studio.views import LengthsView, TokenRow


class TokenClient(HelperClient):
    """Asks the process that holds the tokenizers."""

    module = "studio.tokens"
    log_name = "tokens.log"

    def rows(
        self, model: Path, records: Sequence[Record], max_length: int = 0, completion_only: bool = True
    ) -> list[TokenRow]:
        """Records as tokens, each marked; StudioError when the model's tokenizer cannot be read."""
        fields = {"records": [as_dict(record) for record in records], "ask": "rows"}
        reply = _last(self.replies(_request(model, fields, max_length, completion_only)))
        return [
            TokenRow(row["row"], tuple(map(tuple, row["pieces"])), row["tokens"], row["trained"], *said)
            for row in reply["rows"]
            for said in [(*row["error"], row["answer"])]
        ]

    def lengths(
        self,
        model: Path,
        records: Sequence[Record],
        stored: Path | None,
        max_length: int = 0,
        completion_only: bool = True,
    ) -> LengthsView:
        """How long a dataset's rows are in tokens, and what of them is trained; `stored` is their file, if any."""
        given: Any = str(stored) if stored else [as_dict(record) for record in records]
        fields = {"records": given, "ask": "lengths", "cache": str(self.workspace.tokens)}
        reply = _last(self.replies(_request(model, fields, max_length, completion_only)))
        found = reply["lengths"]
        return LengthsView(
            **{**found, "edges": tuple(found["edges"]), "counts": tuple(found["counts"])},
            of=reply["of"],
            pairs=reply["pairs"],
        )


def _request(model: Path, fields: Mapping[str, Any], max_length: int, completion_only: bool) -> dict[str, Any]:
    return {"model": str(model), **fields, "max_length": max_length, "completion_only": completion_only}


def _last(replies: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    *_, last = replies
    return last
