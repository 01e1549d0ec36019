"""What a base model is, read from its files without loading a weight, and loading it safely.

Module level is torch-free: `inspect_model` reads `config.json` and the safetensors headers, which takes milliseconds.
A model is refused when it has only pickle weights, needs its own Python code, or is already quantised.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.collector import collection_put_off
from core.errors import ModelError
from core.family import CAUSAL, SEQ2SEQ, family_of
from core.model_card import has_chat_template, licence
from core.model_config import architecture, caps_scores, drops_scores, read_config, refuse_absurd
from core.quantize.size import NONE
from core.selection import MAMBA_MARK, MAMBA_STEP, SHARED_EMBEDDING, is_router
from core.weight_files import StoredTensor, read_header, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPARE_PARAMETERS = 10_000_000  # that a model may have beyond its files, such as an untied output layer
_CONV1D_MODELS = {"gpt2", "openai-gpt"}  # their projections store the weight as (in, out)
_EMBEDDING_NAMES = ("embed", "wte", "wpe", "shared", "relative_attention_bias")
OUTPUT_NAMES = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")
_ATTENTION_PARTS = ("attn", "attention")
_MLP_PARTS = ("mlp", "feed_forward", "ffn", "densereludense", "intermediate", "output")


@dataclass(frozen=True)
class Target:
    """All layers of a model that share a name, such as its 30 `q_proj`."""

    name: str
    group: str  # attention, mlp, router, embedding, output or other
    shapes: tuple[tuple[int, int], ...]  # (in, out) of every one of them, in the order of the layers
    paths: tuple[str, ...] = ()  # their full names, in the same order

    @property
    def count(self) -> int:
        """How many layers have this name."""
        return len(self.shapes)

    @property
    def parameters(self) -> int:
        """Weights in all of them together, without biases."""
        return sum(d_in * d_out for d_in, d_out in self.shapes)

    @property
    def is_linear(self) -> bool:
        """True when 'all-linear' selects it: a projection that is no embedding, output layer or router of a mixture."""
        return self.group not in ("embedding", "output", "router")

    def lora_parameters(self, r: int) -> int:
        """Trainable parameters of a rank-r LoRA on all of them: sum of r * (in + out) (Hu et al. 2021, section 4.2)."""
        return sum(r * (d_in + d_out) for d_in, d_out in self.shapes)


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a base model that a form, a plan and a memory estimate need."""

    folder: Path
    architecture: str
    model_type: str
    parameters: int
    dtype: str  # of most weights: bfloat16, float16, float32
    context_length: int  # tokens; 0 when the config does not say
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vocab_size: int
    has_chat_template: bool
    tied_embeddings: bool
    licence: str
    size_bytes: int
    targets: tuple[Target, ...]
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False, repr=False)  # shapes by name
    family: str = CAUSAL  # causal, encoder or seq2seq (`core.family`)
    drops_scores: bool = False  # dropout inside its attention is on
    caps_scores: bool = False  # its attention's scores are bounded

    def linear_targets(self) -> tuple[Target, ...]:
        """The targets that 'all-linear' means."""
        return tuple(target for target in self.targets if target.is_linear)


def inspect_model(folder: Path) -> ModelInfo:
    """Read what a model is from its folder; ModelError says why it cannot be used."""
    config = read_config(folder)
    inner = config.get("text_config")  # of a model that also sees pictures
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    tensors = _tensors(folder, config)
    model_type = str(config.get("model_type", ""))
    return ModelInfo(
        folder=folder,
        architecture=architecture(config) or model_type or "unknown",
        model_type=model_type,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        dtype=_main_dtype(tensors),
        context_length=_first_int(text, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        hidden_size=_first_int(text, "hidden_size", "n_embd", "d_model"),
        intermediate_size=_first_int(text, "intermediate_size", "n_inner", "d_ff", "ffn_dim"),
        layers=_first_int(text, "num_hidden_layers", "n_layer", "num_layers"),
        heads=_first_int(text, "num_attention_heads", "n_head", "num_heads"),
        vocab_size=_first_int(text, "vocab_size"),
        has_chat_template=has_chat_template(folder),
        tied_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        licence=licence(folder),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        targets=_targets(tensors, is_conv1d=model_type in _CONV1D_MODELS),
        tensors={name: tensors[name].shape for name in sorted(tensors, key=_natural)},
        family=family_of(config),
        drops_scores=drops_scores(text),
        caps_scores=caps_scores(text),
    )


def _tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight, from the headers alone; ModelError when the config claims more modules than they could fill."""
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        tensors |= read_header(path)
    refuse_absurd(folder, config, [tensor.shape for tensor in tensors.values()])
    return tensors


_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    if not sizes:
        raise ModelError("The model has no weights.", "Download the model again.")
    most = sizes.most_common(1)[0][0]
    return _DTYPE_NAMES.get(most, most.lower())


def _targets(tensors: Mapping[str, StoredTensor], is_conv1d: bool) -> tuple[Target, ...]:
    shapes: dict[str, list[tuple[int, int]]] = {}
    paths: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    for tensor, stored in sorted(tensors.items(), key=lambda item: _natural(item[0])):
        path, _, kind = tensor.rpartition(".")
        shape = stored.shape
        if kind != "weight" or len(shape) != 2 or ".experts." in path:
            continue  # norms, biases, and experts, which transformers stores as one 3-D parameter
        for own in _run_paths(path, tensors):
            name = own.rpartition(".")[2]
            group = _group(own, name)
            is_transposed = group == "embedding" or (is_conv1d and group != "output")  # stored as (in, out)
            shapes.setdefault(name, []).append((shape[0], shape[1]) if is_transposed else (shape[1], shape[0]))
            paths.setdefault(name, []).append(own)
            groups.setdefault(name, group)
    return tuple(Target(name, groups[name], tuple(shapes[name]), tuple(paths[name])) for name in shapes)


def _run_paths(path: str, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The layers that run with a weight: for the table that an encoder-decoder shares, the embeddings tied to it."""
    parent, _, name = path.rpartition(".")
    if name == MAMBA_STEP and f"{parent}.{MAMBA_MARK}" in tensors:
        return []
    if name != SHARED_EMBEDDING:
        return [path]
    tied = (f"{parent}.{side}.embed_tokens".removeprefix(".") for side in ("encoder", "decoder"))
    return [own for own in tied if f"{own}.weight" not in tensors]


def _natural(name: str) -> list[tuple[int, str]]:
    is_index = re.compile(r"[0-9]{1,9}").fullmatch
    return [(int(part), "") if is_index(part) else (-1, part) for part in name.split(".")]


def _group(path: str, name: str) -> str:
    if name in OUTPUT_NAMES:
        return "output"
    if any(part in name for part in _EMBEDDING_NAMES):
        return "embedding"
    if is_router(path):
        return "router"
    parents = path.lower().rsplit(".", 1)[0]
    if any(part in parents for part in _ATTENTION_PARTS):
        return "attention"
    return "mlp" if any(part in parents for part in _MLP_PARTS) else "other"


def _first_int(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    return 0


@collection_put_off()
def load_model(
    source: str | Path,
    dtype: str = "auto",
    device: str | None = None,
    quantization: str = NONE,
    kind: str = "",
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model, frozen and in eval mode, with its tokenizer.

    `source` is a folder, or a hub id, which is fetched first (safetensors only, no code of its own).
    `dtype` "auto" is bfloat16 on a GPU that computes in it and float32 elsewhere; `device` None picks CUDA, MPS or CPU.
    `quantization` "nf4" or "int8" keeps the weights of all linear layers but the output layer in 4 or 8 bits, and
    `dtype` is what they compute in; while it loads, the host needs memory for the weights as they are in the files.
    `kind` is transformers' auto class, left out the one that writes text: AutoModelForCausalLM, or for T5, BART and
    their kin AutoModelForSeq2SeqLM; `options` go to its from_pretrained.
    Raises ModelError when the model is missing, unsafe, or not of that kind.
    """
    import torch
    import transformers

    folder = Path(source)
    if not folder.is_dir():
        from core.hub import download_model

        folder = download_model(str(source))
    config = read_config(folder)
    refuse_unfilled(folder, config)
    kind = kind or ("AutoModelForSeq2SeqLM" if family_of(config) == SEQ2SEQ else "AutoModelForCausalLM")
    device = device or best_device()
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    read_as = dtype if quantization == NONE else stored_dtype(folder)
    try:
        model = getattr(transformers, kind).from_pretrained(
            folder, dtype=getattr(torch, read_as), local_files_only=True, use_safetensors=True,
            trust_remote_code=False, **options,
        )  # fmt: skip
    except Exception as error:  # a damaged or hostile folder makes transformers raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{folder.name!r} cannot be loaded: {reason}", "Pick a model that fits the task.") from error
    module: Any = model  # transformers' own annotation of `to` is wrong
    module.requires_grad_(False)
    if quantization != NONE:
        from core.quantize.model import cast_model, quantize_model

        quantize_model(module, quantization, device)
        cast_model(module, getattr(torch, dtype))
    return module.to(device).eval(), load_tokenizer(folder)


def refuse_unfilled(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError for a config that makes a far larger model than its files can fill.

    transformers would allocate and initialise whatever the files lack.
    """
    from core.skeleton import make_skeleton

    stored = sum(math.prod(tensor.shape) for tensor in _tensors(folder, config).values())
    wanted = sum(parameter.numel() for parameter in make_skeleton(config, folder).parameters())
    if wanted > 2 * stored + SPARE_PARAMETERS:
        raise ModelError(
            f"config.json of {folder.name!r} describes {wanted:,} parameters, but its files hold {stored:,}.",
            "Download the model again.",
        )


def stored_dtype(folder: Path) -> str:
    """The number format that holds every weight of a model's files exactly: theirs, or float32 when they differ."""
    stored = (tensor for path in weight_files(folder) for tensor in read_header(path).values())
    found = {_DTYPE_NAMES.get(tensor.dtype, "float32") for tensor in stored}
    return found.pop() if len(found) == 1 else "float32"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, with a padding token set."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise nothing narrower
        raise ModelError(f"The tokenizer of {folder.name!r} cannot be loaded.", "Download the model again.") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by token id
    return tokenizer


def best_device() -> str:
    """The fastest device of this machine: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
