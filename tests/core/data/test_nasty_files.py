"""Files that break ordinary readers: each gets an error that names the line and a remedy, or is read."""

from __future__ import annotations

import gzip
import re
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from core.data.dataset import inspect_dataset, load_dataset
from core.data.readers import read_rows
from core.data.readers.lines import MAX_LINE_BYTES
from core.errors import DatasetError
from tests.scenarios.plugin import Say

ROW = b'{"text": "fine"}\n'


@dataclass(frozen=True)
class Nasty:
    """A file and what must come of it: an error of the whole file, bad rows as (line, kind), or so many good rows."""

    name: str
    content: bytes
    refused: str = ""
    bad: tuple[tuple[int, str], ...] = ()
    rows: int = 1
    format: str | None = None


def file(name: str, content: bytes, refused: str) -> Nasty:
    return Nasty(name, content, refused=refused)


def row(name: str, content: bytes, line: int, kind: str, rows: int = 1) -> Nasty:
    return Nasty(name, content, bad=((line, kind),), rows=rows)


NASTIES = {
    # JSON lines
    "broken line": row("a.jsonl", ROW + b'\n{"text": "x"\n', 3, "bad_json"),
    "two values on a line": row("a.jsonl", ROW + b'{"text": "x"} {"text": "y"}\n', 2, "bad_json"),
    "deep nesting": row("a.jsonl", ROW + b'{"text": ' + b"[" * 200_000 + b"\n", 2, "bad_json"),
    "deep closed nesting": row("a.jsonl", ROW + b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", 2, "bad_json"),
    "huge integer": row("a.jsonl", ROW + b'{"text": ' + b"9" * 5000 + b"}\n", 2, "bad_json"),
    "NaN": row("a.jsonl", ROW + b'{"text": NaN}\n', 2, "bad_json"),
    "Infinity": row("a.jsonl", ROW + b'{"text": -Infinity}\n', 2, "bad_json"),
    "number beyond float": row("a.jsonl", ROW + b'{"text": 1e999}\n', 2, "wrong_type"),
    "duplicate keys": row("a.jsonl", ROW + b'{"text": "a", "text": "b"}\n', 2, "bad_json"),
    "duplicate keys inside": row("a.jsonl", ROW + b'{"text": "a", "m": {"k": 1, "k": 1}}\n', 2, "bad_json"),
    "lone surrogate": row("a.jsonl", ROW + b'{"text": "\\ud800"}\n', 2, "bad_json"),
    "surrogate pair": Nasty("a.jsonl", b'{"text": "\\ud83d\\ude42"}\n'),
    "a number as a line": row("a.jsonl", ROW + b"42\n", 2, "wrong_type"),
    "a list as a line": row("a.jsonl", ROW + b"[1]\n", 2, "wrong_type"),
    "raw control character": row("a.jsonl", ROW + b'{"text": "\x01"}\n', 2, "bad_json"),
    "single quotes": row("a.jsonl", ROW + b"{'text': 'x'}\n", 2, "bad_json"),
    "line separators in a text": Nasty("a.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode() + ROW, rows=2),
    "JSON list as JSON lines": file("a.jsonl", b'[\n{"text": "x"}\n]', r"list.*rename it to end in \.json"),
    "CRLF": row("a.jsonl", b'{"text": "a"}\r\n\r\n{"text"}\r\n', 3, "bad_json"),
    "old Mac line ends": row("a.jsonl", b'{"text": "a"}\r\r{"text"}\r{"text": "b"}', 3, "bad_json", rows=2),
    "no line end at the end": Nasty("a.jsonl", ROW.strip()),
    "BOM": Nasty("a.jsonl", b"\xef\xbb\xbf" + ROW),
    "BOM twice": row("a.jsonl", b"\xef\xbb\xbf\xef\xbb\xbf" + ROW + ROW, 1, "bad_json"),
    # encodings and other kinds of file
    "empty": file("a.jsonl", b"", "is empty"),
    "BOM alone": file("a.jsonl", b"\xef\xbb\xbf", "has no rows"),
    "blank": file("a.csv", b"\n \n\r\n", "has no rows"),
    "header alone": file("a.csv", b"text,label\n", "has no rows"),
    "blank JSON": file("a.json", b"  \n ", "expecting a list"),
    "UTF-16": file("a.csv", "text\nx\n".encode("utf-16"), "encoded as UTF-16"),
    "UTF-16 without BOM": file("a.csv", "text\nx\n".encode("utf-16-le"), "encoded as UTF-16"),
    "UTF-32": file("a.txt", "text\nx\n".encode("utf-32-be"), "encoded as UTF-16 or UTF-32"),
    "Latin-1": file("a.csv", b"text\nok\ncaf\xe9\n", r"Line 3 of a\.csv is not UTF-8: byte 0xE9, 4 bytes into"),
    "Latin-1 after old Mac line ends": file("a.txt", b"ok\r\rcaf\xe9", r"Line 3 .*byte 0xE9, 4 bytes into"),
    "half a character": file("a.txt", "好".encode()[:2], "Line 1 .*not UTF-8"),
    "surrogate in UTF-8": file("a.txt", b"a\n\xed\xa0\x80", "Line 2 .*not UTF-8"),
    "NUL": file("a.txt", b"one\ntwo\rth\0ree", "Line 3 .*NUL"),
    "gzip": file("a.jsonl", gzip.compress(ROW), "gzip"),
    "zip": file("a.csv", b"PK\x03\x04rest", "ZIP"),
    "parquet as text": file("a.json", b"PAR1rest", "parquet"),
    "one long line": file("a.txt", b"ok\n" + b"x" * (MAX_LINE_BYTES + 5), r"Line 2 .*longer than 10,000,000"),
    "unknown suffix": file("a.docx", b"x", r"\.jsonl, \.json, \.csv"),
    "upper-case suffix": Nasty("A.JSONL", ROW),
    # JSON
    "JSON broken in the third row": file("a.json", b'[\n{"text": "a"},\n{"text": "b"},\n{"text" "c"}]', "Line 4 .*':'"),
    "JSON without a comma": file("a.json", b'[{"text": "a"}\n{"text": "b"}]', "Line 2 .*expecting ','"),
    "JSON lines as JSON": file("a.json", ROW + ROW, r"without a list under .*rename the file to end in \.jsonl"),
    "JSON that ends early": file("a.json", b'[{"text": "a"},\n', "Line 2 "),
    "JSON in a string that ends early": file("a.json", b'[{"text": "a', "Line 1 "),
    "JSON with a last comma": file("a.json", b'[{"text": "a"},\n]', "Line 2 .*comma after the last"),
    "JSON and more": file("a.json", b'[{"text": "a"}]\n[]', "Line 2 .*more after the end"),
    "JSON list in a list": row("a.json", b'[{"text": "a"},\n[1, 2]]', 2, "wrong_type"),
    "JSON row with NaN": row("a.json", b'[\n{"text": NaN},\n{"text": "a"}]', 2, "bad_json"),
    "JSON row with a key twice": row("a.json", b'[{"text": "a"},\n{"text": "a", "text": "b"}]', 2, "bad_json"),
    "JSON deep": file("a.json", b"[" * 200_000, "nested too deeply"),
    "JSON empty list": file("a.json", b"[]", "has no rows"),
    "JSON object without data": file("a.json", b'{"rows": [{"text": "a"}]}', 'without a list under "data"'),
    "JSON data is no list": file("a.json", b'{"data": {"text": "a"}}', 'without a list under "data"'),
    "JSON data twice": file("a.json", b'{"data": [{"text": "a"}],\n"data": [{"text": "b"}]}', "Line 2 .*twice"),
    "JSON number as key": file("a.json", b'{1: [{"text": "a"}]}', "name of a key"),
    "JSON a text": file("a.json", b'"hello"', "expecting a list"),
    # CSV and TSV
    "unclosed quote": file("a.csv", b'text,label\na,b\n"c,d\ne,f\n', r"line 3 of a\.csv.*quote"),
    "unclosed quote in a long file": file("a.csv", b'text\n"' + b"word\n" * 40_000, "Line 2 .*131,072 .*never closed"),
    "quote in a field": row("a.csv", b'text,label\na,b\n"c"d,e\nf,g\n', 3, "bad_csv", rows=2),
    "quotes around several lines": Nasty("a.csv", b'text,label\n"a\nb\n",c\nd,e\n', rows=2),
    "too many fields": row("a.csv", b"text,label\na,b\nc,d,e\n", 3, "ragged_row"),
    "too few fields": row("a.tsv", b"text\tlabel\na\tb\nc\n", 3, "ragged_row"),
    "a field too long": file("a.csv", b"text\n" + b"x" * 200_000 + b"\n", "Line 2 .*131,072"),
    "column without a name": file("a.csv", b"text,,label\na,b,c\n", "Line 1 .*no name"),
    "two columns of one name": file("a.tsv", b"text\ttext\na\tb\n", "Line 1 .*called 'text'"),
    "quotes as words in TSV": Nasty("a.tsv", b'text\tlabel\n"a" she said\t"\nb\t"c"\n', rows=2),
    "semicolons": Nasty("a.csv", b"text;label\na,b;c\n"),
    "CSV with CR": Nasty("a.csv", b"text,label\ra,b\rc,d", rows=2),
    "no header": file("a.csv", b"great film,positive\nbad,negative\n", "columns are not known.*'great film'"),
    # parquet
    "not parquet": file("a.parquet", b"hello there", "cannot be read as parquet"),
    "parquet cut short": file("a.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "cannot be read as parquet"),
}  # fmt: skip


@pytest.mark.scenario(38)
@pytest.mark.parametrize("case", NASTIES)
def test_nasty_files(tmp_path: Path, case: str, figure: Say) -> None:
    nasty = NASTIES[case]
    path = tmp_path / nasty.name
    path.write_bytes(nasty.content)
    started = time.monotonic()
    if nasty.refused:
        with pytest.raises(DatasetError) as caught:
            inspect_dataset(path)
        assert re.search(nasty.refused, str(caught.value), re.S), caught.value
        assert caught.value.fix and str(tmp_path) not in str(caught.value)
    else:
        dataset = inspect_dataset(path)
        errors = [problem for problem in dataset.problems if problem.level == "error"]
        assert tuple((problem.row, problem.kind) for problem in errors) == nasty.bad
        assert len(dataset) == nasty.rows
        if nasty.bad:
            with pytest.raises(DatasetError, match=f"Line {nasty.bad[0][0]} of "):
                load_dataset(path)
    assert time.monotonic() - started < 5
    figure("a nasty file: a named error with its line, or handled, within 5 s")


def test_texts_come_through_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'source\ttarget\n"a" she said\t"Oui"\n"x ""y"""\t" \n')
    read = [[turn.content for turn in record.messages] for record in load_dataset(path).records]
    assert read == [['"a" she said', "Oui"], ['x "y"', '" ']]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.csv", tmp_path / "folder.csv"):
        if path.stem == "folder":
            path.mkdir()
        with pytest.raises(DatasetError, match=f"There is no file {path.name}"):
            inspect_dataset(path)


def test_lines_swallowed_by_a_quote_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a,b\nc,d\n"e"x,f\ng,h\n')
    problem = inspect_dataset(path).problems[0]
    assert (problem.row, problem.kind) == (2, "bad_csv") and "Lines 2 to 4" in problem.detail


def test_parquet_with_repeated_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    arrays = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=["text", "text"]), path)
    with pytest.raises(DatasetError, match="called 'text'"):
        inspect_dataset(path)


def test_parquet_bomb_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.parquet"
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), ["x" * 100_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("core.data.readers.parquet.MAX_BYTES", 50_000_000)
    with pytest.raises(DatasetError, match="unpacks to too much"):
        inspect_dataset(path)


def test_rows_are_streamed(tmp_path: Path) -> None:
    """Memory stays far below the size of the file, for JSON lists too."""
    text = "word " * 200
    for name, start, row, end in (("a.jsonl", "", "%s\n", ""), ("a.json", "[", "%s,\n", '{"text": "x"}]')):
        path = tmp_path / name
        path.write_text(start + (row % f'{{"text": "{text}"}}') * 20_000 + end)
        assert path.stat().st_size > 20_000_000
        tracemalloc.start()
        count = sum(1 for _ in read_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= 20_000 and peak < 2_000_000


def test_a_huge_sparse_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(ROW)
        file.truncate(20 * 10**9)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"Line 2 of huge\.jsonl is longer"):
        inspect_dataset(path)
    assert time.monotonic() - started < 2
