"""Answers that a row itself calls bad, as files of feedback (KTO) hold them. Torch-free."""

from __future__ import annotations

from core.data.formats import Format
from core.data.problems import RowError
from core.data.records import Record
from core.data.text_values import Values

COLUMNS = ("label", "kto_tag")  # TRL's name and LLaMA-Factory's; true: a good answer


def rated_bad(values: Values, format: Format, record: Record) -> RowError | None:
    """The problem of a row whose one answer is marked with false; a label that is itself the answer is no mark."""
    if not record.messages or record.rejected:
        return None
    own = {name for names in format.columns for name in names}
    for column in COLUMNS:
        if column not in own and str(values.get(column)).strip().lower() == "false":
            return RowError("rated_bad", f"The column '{column}' says false: this answer is a bad example.")
    return None
