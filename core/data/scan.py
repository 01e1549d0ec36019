"""Reading the files of a dataset row by row, once, in bounded memory. Torch-free.

Nothing of a row is kept but a few bytes that tell copies; so a file of any length is inspected, stored or cleaned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from core.data.detection import Detection, detect, match_share, other_columns, rule_of
from core.data.formats import Format, formats
from core.data.inspection import Inspector
from core.data.languages import UsualLanguages
from core.data.mapping import mapped
from core.data.problems import ERROR, FIX, KINDS, SKIP, Problem, RowError, excerpt
from core.data.ratings import rated_bad
from core.data.readers import Row, read_rows
from core.data.recipe import Recipe
from core.data.records import Record
from core.data.repairs import repaired_turns, written_out
from core.data.turns import check_turns
from core.errors import ConfigError, DatasetError

DETECT_ROWS = 1000  # rows by which the format is picked; the share is then counted over all of them
SHOWN_PROBLEMS = 200  # of each kind that are kept with their words; all are counted


@dataclass(frozen=True)
class Verdict:
    """A row, what became of it (None: it is left out), and what is wrong with it."""

    row: Row
    file: str
    record: Record | None
    problems: tuple[Problem, ...]


class Scan:
    """One reading of a dataset's files: iterate it to have its verdicts; its figures are complete at the end."""

    def __init__(self, paths: Sequence[Path], recipe: Recipe | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.recipe = recipe or Recipe()
        self.detections: list[Detection] = []  # one a file
        self.rows = self.kept = self.matched = 0
        self.counts: Counter[str] = Counter()  # kind of problem -> rows
        self.stopped = 0  # rows with an error for which nothing was chosen
        self.first_stop: Problem | None = None
        self._shown: dict[str, list[Problem]] = {}
        self._inspector: Inspector | None = None

    def __iter__(self) -> Iterator[Verdict]:
        """Read everything; DatasetError for what concerns a whole file."""
        for path in self.paths:
            yield from self._file(path, path.name if len(self.paths) > 1 else "")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The first problems of each kind, in the order of the rows."""
        order = {path.name: place for place, path in enumerate(self.paths)}
        found = (problem for problems in self._shown.values() for problem in problems)
        return tuple(sorted(found, key=lambda problem: (order.get(problem.file, 0), problem.row)))

    @property
    def format(self) -> str:
        """The format, or those of the files, where they differ."""
        return " + ".join(sorted({detection.format for detection in self.detections}))

    @property
    def rule(self) -> str:
        """In words: why this format."""
        rules = list(dict.fromkeys(detection.rule for detection in self.detections))
        return rules[0] if len(rules) == 1 else "; ".join(rules)

    @property
    def share(self) -> float:
        """Share of the rows that have the columns of the format; one that cannot be read has none."""
        return self.matched / self.rows if self.rows else 0.0

    def _file(self, path: Path, name: str) -> Iterator[Verdict]:
        rows = (_plain_row(row, self.recipe.columns) for row in read_rows(path, self.recipe.encoding))
        head = list(islice(rows, DETECT_ROWS))
        detection = _detection(head, path, self.recipe)
        self.detections.append(detection)
        if "preference" in self.format and "+" in self.format:
            raise DatasetError(
                f"Preference pairs cannot be mixed with other rows: the files hold {self.format}.", "Add them apart."
            )
        format = formats.get(detection.format)
        if self._inspector is None:
            self._inspector = Inspector(self.recipe, UsualLanguages(_records(head, format)))
        for row in chain(head, rows):
            verdict = self._judge(row, name, format, self._inspector)
            self._count(verdict)
            yield verdict

    def _judge(self, row: Row, name: str, format: Format, inspector: Inspector) -> Verdict:
        if row.problem:
            return Verdict(row, name, None, (replace(row.problem, file=name),))
        self.matched += format.matches(row.values)
        record, error = self._record(row, format)
        wrong = [_problem(row, error, name)] if error else []
        if record is None:
            return Verdict(row, name, None, tuple(wrong))
        rating = rated_bad(row.values, format, record)
        if rating:
            wrong.append(_problem(row, rating, name))
            if self.recipe.action(rating.kind) == SKIP:
                return Verdict(row, name, None, tuple(wrong))
        record, warnings = inspector.inspect(replace(record, file=name) if name else record)
        return Verdict(row, name, record, (*wrong, *warnings))

    def _record(self, row: Row, format: Format) -> tuple[Record | None, RowError | None]:
        """The row's record, mended where that is asked for, and the error that it has or had."""
        try:
            return _checked(format.record(row.number, row.values)), None
        except RowError as error:
            if self.recipe.action(error.kind) != FIX:
                return None, error
            try:
                return self._mended(row, format, error.kind), error
            except RowError as left:
                return None, left

    def _mended(self, row: Row, format: Format, kind: str) -> Record:
        values = written_out(row.values) if kind == "wrong_type" else row.values
        record = format.record(row.number, values)
        try:
            return _checked(record)
        except RowError as error:
            if error.kind not in ("role_order", "empty_answer") or self.recipe.action(error.kind) != FIX:
                raise
            return _checked(repaired_turns(record, error.kind))

    def _count(self, verdict: Verdict) -> None:
        self.rows += 1
        self.kept += verdict.record is not None
        for problem in verdict.problems:
            self.counts[problem.kind] += 1
            shown = self._shown.setdefault(problem.kind, [])
            if len(shown) < SHOWN_PROBLEMS:
                shown.append(problem)
            if verdict.record is None and problem.level == ERROR and self.recipe.action(problem.kind) == "stop":
                self.stopped += 1
                self.first_stop = self.first_stop or problem


def _detection(head: list[Row], path: Path, recipe: Recipe) -> Detection:
    readable = [row.values for row in head if row.problem is None]
    if not readable:
        first = next(row.problem for row in head if row.problem)
        raise DatasetError(
            f"None of the first {len(head):,} rows of {path.name} can be read. {place(path, first)}: {first.detail}",
            "Check that the file is what its suffix says.",
        )
    if recipe.format is None:
        return detect(readable)
    try:
        format = formats.get(recipe.format)
    except ConfigError as error:
        raise DatasetError(error.what, error.fix) from error
    share = match_share(readable, format)
    if not share:
        raise other_columns(readable, recipe.format, path.name)
    return Detection(recipe.format, f"chosen by you: {rule_of(recipe.format)}", share)


def _records(rows: Sequence[Row], format: Format) -> Iterator[Record]:
    """The rows that are records at once."""
    for row in rows:
        try:
            if row.problem is None:
                yield format.record(row.number, row.values)
        except RowError:
            continue


def _checked(record: Record) -> Record:
    if record.messages or not record.text:
        check_turns(record.messages)
    return record


def _plain_row(row: Row, columns: Mapping[str, str]) -> Row:
    return row if row.problem else replace(row, values=mapped(plain_names(row.values), columns))


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns in lower case, without spaces around them ('Text ' is 'text'); of two made equal, the first stays."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        plain.setdefault(str(name).strip().lower(), value)
    return plain


def _problem(row: Row, error: RowError, file: str) -> Problem:
    shown = "; ".join(f"{name}: {str(value)[:40]}" for name, value in islice(row.values.items(), 8))
    return Problem(row.number, error.kind, KINDS[error.kind].level, error.detail, excerpt(shown), file)


def in_rows(file_name: str) -> bool:
    """Whether a file of this name has numbered rows; any other has lines, as an editor shows them."""
    return Path(file_name).suffix.lower() in (".parquet", ".xlsx")


def place(path: Path, problem: Problem) -> str:
    """Where a problem is, as the user finds it."""
    unit = "Row" if in_rows(path.name) else "Line"
    return f"{unit} {problem.row:,} of {problem.file or path.name}"
