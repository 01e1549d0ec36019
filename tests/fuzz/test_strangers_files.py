"""Files of models and adapters, broken at random: an error with advice, or what an independent reader reads."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from core.config import AdapterConfig, to_dict
from core.errors import AdapterError, ModelError, StudioError
from core.export.method_file import read_method
from core.export.peft_config import peft_values, read_adapter_config
from core.export.task_file import read_labels
from core.gguf_header import read_gguf_header
from core.model_config import read_config, refuse_absurd
from core.weight_files import read_header, weight_files
from studio.stored_zip import StoredZip
from tests.scenarios.plugin import Say

COUNTS = [60, pytest.param(2500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]

# -- what is changed: bytes anywhere, or a value of a JSON file

PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**62), b'"', b"{", b"[" * 3000, b"9" * 5000, b"-1"]
    ),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES), min_size=1, max_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=20), st.integers(-(2**70), 2**70),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "(a+)+$", "q_proj", "", "NaN", "lora"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.sampled_from(["auto_map", "num_hidden_layers", "dtype"])),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)
CHANGES = st.lists(st.tuples(st.integers(0, 200), VALUES), min_size=1, max_size=3)


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for where, length, piece in edits:
        at = int(where * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


def changed(values: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """A copy with some values, at any depth, replaced by others."""
    values = copy.deepcopy(values)
    for index, value in changes:
        places = list(_places(values))
        if places:
            holder, key = places[index % len(places)]
            holder[key] = value
    return values


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(items):
        yield value, key
        yield from _places(entry)


# -- sound files, and how each is read

TENSORS = {"a.weight": numpy.ones((4, 8), numpy.float32), "b": numpy.zeros(3, numpy.float16)}
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1, "text_config": {"n_head": 2}}
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a.weight": "model.safetensors", "b": "model.safetensors"}}


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "好"])
    writer.add_array("lengths", [1, 2, 3])
    writer.add_tensor("token_embd.weight", numpy.ones((3, 8), numpy.float32))
    writer.add_tensor("norm.weight", numpy.ones(8, numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def weights(path: Path) -> None:
    """Whatever our reader accepts, the library's own accepts with the same names and shapes."""
    found = read_header(path)
    with safe_open(path, framework="numpy") as file:
        names: list[str] = file.keys()
        assert {name: tuple(file.get_slice(name).get_shape()) for name in names} == {
            name: tensor.shape for name, tensor in found.items()
        }


def gguf_file(path: Path) -> None:
    found = read_gguf_header(path)
    read = gguf.GGUFReader(path)
    assert {tensor.name: tuple(map(int, tensor.shape)) for tensor in read.tensors} == found.tensors


def model_config(path: Path) -> None:
    refuse_absurd(path.parent, read_config(path.parent), [(4, 8), (3,)])


def model_index(path: Path) -> None:
    assert all(found.parent == path.parent for found in weight_files(path.parent))


def adapter_config(path: Path) -> None:
    assert isinstance(read_adapter_config(path.parent), AdapterConfig)


def method(path: Path) -> None:
    read_method(path.parent)


def task(path: Path) -> None:
    read_labels(path.parent)


Read = Callable[[Path], None]
PLAIN_ADAPTER = peft_values(AdapterConfig(), ["q_proj"], peft_type="LORA")
JSON_FILES: dict[str, tuple[str, dict[str, Any], Read]] = {
    "config.json": ("config.json", CONFIG, model_config),
    "index": ("model.safetensors.index.json", INDEX, model_index),
    "adapter_config.json": ("adapter_config.json", PLAIN_ADAPTER, adapter_config),
    "method.json": ("method.json", {"adapter": to_dict(AdapterConfig(method="rslora", rank_pattern={"q": 4}))}, method),
    "task.json": ("task.json", {"labels": ["good", "bad"], "multi_label": False}, task),
}


class Tried:
    """How many files were read, and how many of those accepted."""

    def __init__(self) -> None:
        self.files = self.accepted = 0

    def read(self, path: Path, content: bytes, reader: Read) -> None:
        path.write_bytes(content)
        self.files += 1
        try:
            reader(path)
        except (ModelError, AdapterError) as error:
            assert error.what and error.fix
            str(error).encode()  # a page can show it
        else:
            self.accepted += 1


def fuzzed(count: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=5000, suppress_health_check=checks)


@pytest.mark.scenario(37)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", JSON_FILES)
def test_broken_json_of_models_and_adapters(kind: str, count: int, tmp_path: Path, figure: Say) -> None:
    name, sound, reader = JSON_FILES[kind]
    (tmp_path / "model.safetensors").write_bytes(save(TENSORS))
    if kind == "method.json":
        (tmp_path / "adapter_config.json").write_text("{}")
    tried = Tried()

    @fuzzed(count)
    @given(changes=CHANGES, edits=st.one_of(st.just([]), EDITS))
    def attempt(changes: list[tuple[int, Any]], edits: list[tuple[float, int, bytes]]) -> None:
        tried.read(tmp_path / name, edited(json.dumps(changed(sound, changes)).encode(), edits), reader)

    tried.read(tmp_path / name, json.dumps(sound).encode(), reader)
    assert tried.accepted == 1, "the sound file is accepted"
    attempt()
    figure(f"{name}: {tried.files:,} files, only errors with advice ({tried.accepted:,} accepted)")


@pytest.mark.scenario(37)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_broken_weights(kind: str, count: int, tmp_path: Path, sound_gguf: bytes, figure: Say) -> None:
    sound, reader = {"safetensors": (save(TENSORS), weights), "gguf": (sound_gguf, gguf_file)}[kind]
    tried = Tried()

    @fuzzed(count)
    @given(edits=EDITS)
    def attempt(edits: list[tuple[float, int, bytes]]) -> None:
        tried.read(tmp_path / f"broken.{kind}", edited(sound, edits), reader)

    tried.read(tmp_path / f"sound.{kind}", sound, reader)
    assert tried.accepted == 1, "the sound file is accepted"
    attempt()
    figure(f"{kind}: {tried.files:,} files, only errors with advice ({tried.accepted:,} accepted, by the oracle too)")


# Any name that a file system takes, also no UTF-8 at all, and some that unpackers have fallen for.
ODD_NAMES = [b"..\\..\\evil", b"C:evil", b"~root", b"-rf", b"a\nb", b"con", b" ", b"e\xcc\x81", b"\xe2\x80\xaeexe"]
ANY_NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.encode),
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).map(str.encode),
    st.sampled_from(ODD_NAMES),
)
NAMES = ANY_NAMES.map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")).filter(lambda raw: raw.strip(b"."))


@pytest.mark.scenario(37)
@pytest.mark.parametrize("count", COUNTS)
def test_downloads_of_oddly_named_files(count: int, tmp_path: Path, figure: Say) -> None:
    tried = Tried()

    @fuzzed(count)
    @given(files=st.dictionaries(NAMES, st.binary(max_size=50), max_size=4), top=st.sampled_from(["model", "模型"]))
    def attempt(files: dict[bytes, bytes], top: str) -> None:
        folder = tmp_path / f"{tried.files}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name.decode("utf-8", "surrogateescape")).write_bytes(content)
        tried.files += 1
        try:
            archive = StoredZip(folder, top)
            data = b"".join(archive.chunks())
        except StudioError as error:
            assert error.what and error.fix and str(error).encode()
            return
        tried.accepted += 1
        assert len(data) == archive.size
        with zipfile.ZipFile(io.BytesIO(data)) as read:
            assert read.testzip() is None
            inside = {name: read.read(name) for name in read.namelist()}
        wanted = {name.decode(): content for name, content in files.items() if not name.startswith(b".")}
        assert inside == {f"{top}/{name}": content for name, content in wanted.items()}
        assert not any("\\" in name or ".." in name.split("/") for name in inside)

    attempt()
    figure(f"zip downloads: {tried.files:,} folders, {tried.accepted:,} packed as zipfile reads them, the rest refused")
