"""Model folders built to do harm: what each is called, how it is made, and the word its refusal must hold."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "canary"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}
SHAPES = {
    "model.embed_tokens.weight": (64, 16),
    "model.norm.weight": (16,),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj.weight": (32, 16) for name in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": (16, 32),
}


def sound_model(folder: Path) -> Path:
    """A Llama of one layer, written by hand: nothing here needs torch."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "config.json", CONFIG)
    entries, end = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    write_weights(folder, entries, b"\0" * end)
    return folder


def write(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def write_weights(folder: Path, header: Any, data: bytes = b"", claimed: int | None = None) -> None:
    text = json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + data)


class Bomb:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, "config.json", CONFIG | changes)


def _entry(**changes: Any) -> Callable[[Path], None]:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    return lambda folder: write_weights(folder, {"w": entry}, b"\0" * 16)


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder.parent / CANARY)))


def _own_code(folder: Path) -> None:
    write(
        folder, "config.json", CONFIG | {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}}
    )
    (folder / "evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\nclass Evil: pass\n")


def _own_tokenizer(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "E"})
    (folder / "evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\nclass Evil: pass\n")


def _shards_elsewhere(folder: Path) -> None:
    write(folder, "model.safetensors.index.json", {"weight_map": {"w": "../../secret.safetensors"}})


def _odd_index(folder: Path) -> None:
    write(folder, "model.safetensors.index.json", {"weight_map": {"w": ["model.safetensors"]}})


def _deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def _huge_config(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.write(b"{}")
        file.truncate(10**9)


def _huge_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{" + b" " * 99_000_000)


# Found by reading headers and JSON alone.
READ: dict[str, tuple[Callable[[Path], None], str]] = {
    "only pickles": (_pickle_only, "pickle"),
    "its own code": (_own_code, "own Python code"),
    "its own code, deep inside": (_config(a=[{"b": [{"auto_map": {}}]}]), "own Python code"),
    "a kernel from the hub": (_config(_attn_implementation_internal="evil/kernel"), "own Python code"),
    "a text config with code": (_config(text_config={"trust_remote_code": True}), "own Python code"),
    "a billion layers": (_config(num_hidden_layers=10**9), "num_hidden_layers"),
    "a billion experts": (_config(num_local_experts=10**9), "num_local_experts"),
    "infinite layers": (_config(num_hidden_layers=float("inf")), "num_hidden_layers"),
    "quantised by a list": (_config(quantization_config=[1]), "already quantised"),
    "nested a hundred thousand times": (_deep_config, "cannot be read"),
    "a config of 1 GB": (_huge_config, "larger than"),
    "a header of 99 MB": (_huge_header, "99,000,000 bytes"),
    "a header beyond the file": (lambda folder: write_weights(folder, {}, claimed=2**63), "claims"),
    "a header of nothing but a list": (lambda folder: write_weights(folder, []), "not an object"),
    "a tensor without a type": (_entry(dtype=None), "unknown type"),
    "a tensor of an unknown type": (_entry(dtype="PICKLE"), "unknown type"),
    "a tensor of 2^62 numbers": (_entry(shape=[2**31, 2**31]), "another size"),
    "a tensor of negative size": (_entry(shape=[-2, -2]), "no proper shape"),
    "a tensor of half a number": (_entry(shape=[2.5, 2]), "no proper shape"),
    "a tensor before the file": (_entry(data_offsets=[-16, 0]), "no proper shape"),
    "a tensor beyond the file": (_entry(data_offsets=[16, 32]), "gap or an overlap"),
    "shards elsewhere": (_shards_elsewhere, "lacks the weight file"),
    "an index of lists": (_odd_index, "damaged"),
}  # fmt: skip

# Found by those that would load the model.
LOADED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a layer a million wide": (_config(intermediate_size=10**6, hidden_size=10**6), "describes"),
    "text where numbers belong": (_config(hidden_size="16"), ""),
    "a rotary trap": (_config(rope_parameters={"rope_type": "evil"}), ""),
    "an unknown class": (_config(architectures=["os.system"], model_type="evil"), ""),
    "a tokenizer with its own code": (_own_tokenizer, "tokenizer"),
}  # fmt: skip
