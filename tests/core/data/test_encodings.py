"""Text files that are not UTF-8: read strictly in the encoding that is named, or refused with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.dataset import load_dataset
from core.data.readers import ENCODINGS, UTF8, EncodingError, read_rows
from core.data.recipe import Recipe
from core.errors import DatasetError

TEXTS = {  # with characters whose second byte is that of ASCII's quotes, commas' neighbours and backslashes
    UTF8: "你好，世界。",
    "gb18030": "你好，世界。乗乗㐀",
    "big5hkscs": "許功蓋，今天好。",
    "cp1252": "café, “quoted” – €5",
    "cp1251": "Привет, мир",
}
FILES = {
    ".jsonl": '{{"text": "{0}"}}\r\n{{"text": "b"}}\n',
    ".json": '[\n{{"text": "{0}"}},\n{{"text": "b"}}\n]',
    ".csv": 'text,n\n"{0}",1\nb,2\n',
    ".tsv": "text\tn\n{0}\t1\nb\t2\n",
    ".txt": "{0}\nb\n",
}


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_text_file_is_read_in_the_encoding_that_is_named(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FILES[suffix].format(TEXTS[encoding]).encode(encoding))
    assert [row.values["text"] for row in read_rows(path, encoding)] == [TEXTS[encoding], "b"]
    if encoding == UTF8:
        return
    with pytest.raises(EncodingError, match=r"Line \d of .* is not UTF-8: byte 0x"):
        list(read_rows(path))


def test_what_is_not_in_that_encoding_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("好\n".encode("gb18030") + b"ok\xff\n")
    with pytest.raises(EncodingError, match=r"Line 2 .* not in the encoding GBK, GB18030: byte 0xFF, 3 bytes"):
        list(read_rows(path, "gb18030"))


def test_a_recipe_names_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,completion\n问,答\n".encode("gbk"))
    recipe = Recipe(encoding="gb18030")
    (record,) = load_dataset(path, recipe=recipe).records
    assert [message.content for message in record.messages] == ["问", "答"]
    assert Recipe(**recipe.as_dict()) == recipe and recipe.skipping_errors().encoding == "gb18030"
    with pytest.raises(DatasetError, match="no encoding 'utf-7'"):
        Recipe(encoding="utf-7")
