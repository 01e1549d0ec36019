"""How the rows of a dataset are read: with the bytes of its files, a recipe gives the same records every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from core.data.problems import KINDS, SKIP, STOP
from core.data.readers.lines import ENCODINGS, UTF8
from core.errors import DatasetError


@dataclass(frozen=True)
class Recipe:
    """The user's choices; without any, the format is detected and a row with an error stops the reading."""

    format: str | None = None  # None: detected, file by file
    columns: Mapping[str, str] = field(default_factory=dict)  # a column of the format -> where it is in a row
    actions: Mapping[str, str] = field(default_factory=dict)  # kind of problem -> what to do with its rows
    encoding: str = UTF8  # of text files

    def __post_init__(self) -> None:
        """Raise DatasetError for an action that its kind of problem does not allow, and an unknown encoding."""
        if self.encoding not in ENCODINGS:
            raise DatasetError(f"There is no encoding {self.encoding!r}.", f"Known are: {', '.join(ENCODINGS)}.")
        for kind, action in self.actions.items():
            if kind not in KINDS:
                raise DatasetError(f"There is no kind of problem {kind!r}.", f"Known are: {', '.join(KINDS)}.")
            if action not in KINDS[kind].actions:
                allowed = ", ".join(KINDS[kind].actions)
                raise DatasetError(
                    f"Rows with the problem {kind} cannot be treated as {action!r}.", f"Pick: {allowed}."
                )

    def action(self, kind: str) -> str:
        """What to do with rows that have this problem: stop, skip, keep or fix."""
        return self.actions.get(kind, KINDS[kind].actions[0])

    def skipping_errors(self) -> Recipe:
        """The same, leaving out the rows with errors for which nothing else was chosen."""
        skips = {kind: SKIP for kind, about in KINDS.items() if about.actions[0] == STOP}
        return replace(self, actions={**skips, **self.actions})

    def as_dict(self) -> dict[str, Any]:
        """Itself as plain JSON."""
        return asdict(self)
