"""The calls of the articles that many learn LoRA from, by their own names, on this library's adapters.

    layer = LinearLoRA(64, 64, rank=4, alpha=8)             # one layer: frozen weight, trained A and B
    model = LoRAModel(base, r=8)                            # every linear layer of a model
    weights = get_lora_state_dict(model)                    # copies, A and B only
    inject_lora(model, weights, name="task_b")              # a second adapter beside the first, and switch to it
    classifier = TextClassificationLoRA("path/or/hub-id", num_labels=2, r=8)
    chat = ChatLoRA("path/or/hub-id", r=8)

They do what the articles mean. Where the articles' code does something else (a scale that grows with the rank, a base
that is not frozen, a loss on the prompt), the docstrings say what is done here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.adapters import (
    adapter_names,
    adapter_state_dict,
    inject,
    load_adapter_state_dict,
    remove_adapter,
    set_adapter,
)
from core.classifier import head_of, load_classifier
from core.config import AdapterConfig, DataConfig, GenerationConfig, OptimConfig, TrainConfig
from core.data.records import Message, Record
from core.errors import AdapterError, ConfigError
from core.export.peft import load_adapter, save_adapter
from core.generate import generate
from core.models import load_model
from core.selection import ALL_LINEAR
from core.tasks.classification import Classification
from core.train import Trainer

Scores = dict[str, float]


class LoraConfig:
    """The settings an article's `LoraConfig(r=16, lora_alpha=32, target_modules=[...], lora_dropout=0.1)` names."""

    def __new__(  # type: ignore[misc]  # the articles' name for what is AdapterConfig here
        cls,
        r: int = 8,
        lora_alpha: float = 16.0,
        target_modules: str | Sequence[str] = ALL_LINEAR,
        lora_dropout: float = 0.0,
        **more: Any,
    ) -> AdapterConfig:
        """The AdapterConfig that says the same."""
        targets = target_modules if isinstance(target_modules, str) else tuple(target_modules)
        return AdapterConfig(
            r=r, lora_alpha=float(lora_alpha), target_modules=targets, lora_dropout=lora_dropout, **more
        )


class LinearLoRA(nn.Module):
    """A linear layer with a frozen weight and a trained low-rank update: y = W x + b + alpha / rank * B A x.

    A starts uniform and B at zero, so that a fresh layer is the linear layer. Input (..., in), output (..., out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 4,
        alpha: float = 8.0,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        settings = LoraConfig(rank, alpha, ("linear",), dropout)
        inject(self, settings)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x (..., in)."""
        out: Tensor = self.linear(x)
        return out


class LoRALayer(LinearLoRA):
    """`LinearLoRA` with the argument names of the practice article; the base's own bias is kept and frozen."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, r, lora_alpha, lora_dropout, bias)


class LoRAAttention(nn.Module):
    """Self-attention whose query, key and value projections carry LoRA; x (B, T, D) to (B, T, D)."""

    def __init__(self, dim: int, num_heads: int = 8, r: int = 8, lora_alpha: float = 16.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{dim} does not divide into {num_heads} heads.", "Pick a divisor of the width.")
        self.heads = num_heads
        self.q, self.k, self.v = (LoRALayer(dim, dim, r, lora_alpha) for _ in range(3))
        self.out = nn.Linear(dim, dim).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over all positions."""
        B, T, D = x.shape
        q, k, v = (part(x).view(B, T, self.heads, D // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed: Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return out


class LoRAModel(nn.Module):
    """A transformers model with LoRA on its linear layers and everything else frozen; calls go to the model.

    The articles' version leaves the embeddings and norms trainable without saying so; here only A and B train.
    """

    def __init__(self, base_model: nn.Module, r: int = 8, lora_alpha: float = 16.0, lora_dropout: float = 0.0) -> None:
        super().__init__()
        self.model = base_model
        inject(base_model, LoraConfig(r, lora_alpha, lora_dropout=lora_dropout))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`."""
        own: Any = self.model
        return own.generate(*args, **kwargs)

    def inject_lora(self, weights: Mapping[str, Tensor] | str | Path, name: str = "task") -> None:
        """See `core.articles.inject_lora`."""
        inject_lora(self.model, weights, name)

    def add_adapter(
        self, adapter: AdapterConfig | str, adapter_name: str | AdapterConfig | None = None, config: Any = None
    ) -> None:
        """Add a fresh adapter and switch to it, as add_adapter(config, name) or add_adapter(name, config=...)."""
        parts = (adapter, adapter_name, config)
        settings = next((part for part in parts if isinstance(part, AdapterConfig)), None)
        if settings is None:
            raise ConfigError("add_adapter got no config.", "Give a LoraConfig(...) or AdapterConfig(...).")
        inject(self.model, settings, next((part for part in parts if isinstance(part, str)), "default"))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the active adapter as a PEFT folder: A and B, not the model."""
        return save_adapter(self.model, folder, _active(self.model))


def _model_of(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, LoRAModel) else model


def _active(model: nn.Module) -> str:
    from core.adapters.inject import adapters_of

    active = adapters_of(model).active
    if len(active) != 1:
        raise AdapterError(f"{len(active)} adapters are active.", "Call set_adapter(model, name) with one.")
    return active[0]


def get_lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the active adapter's tensors, by name; training on does not change them."""
    return adapter_state_dict(_model_of(model), _active(_model_of(model)))


def set_lora_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the active adapter; AdapterError lists the names and shapes that do not fit."""
    load_adapter_state_dict(_model_of(model), state, _active(_model_of(model)))


def inject_lora(model: nn.Module, weights: Mapping[str, Tensor] | str | Path, name: str = "task") -> None:
    """Add trained LoRA weights under a name and switch to them; earlier adapters stay, and are not added to them.

    `weights` is what `get_lora_state_dict` gave (then the model must already carry an adapter of the same settings) or
    an adapter's folder. A name that is taken is replaced.
    """
    inner = _model_of(model)
    is_folder = isinstance(weights, (str, Path))
    config = None if is_folder else _config_for(inner, name)
    if name in adapter_names(inner):
        remove_adapter(inner, name)
    if isinstance(weights, (str, Path)):
        load_adapter(inner, weights, name)
        return
    assert config is not None  # for the type checker
    inject(inner, config, name)
    try:
        load_adapter_state_dict(inner, weights, name)
    except AdapterError:
        remove_adapter(inner, name)
        raise
    set_adapter(inner, name)


def _config_for(model: nn.Module, name: str) -> AdapterConfig:
    from core.adapters.inject import adapters_of

    configs = adapters_of(model).configs
    if not configs:
        raise AdapterError("The model has no adapter whose settings these weights could have.", "Use LoRAModel first.")
    return configs.get(name) or next(iter(configs.values()))


class TextClassificationLoRA:
    """A text classifier: a pretrained encoder, LoRA on its attention, and a new head that trains whole."""

    def __init__(self, model_name: str | Path, num_labels: int = 2, r: int = 8, device: str | None = None) -> None:
        self.names = tuple(str(number) for number in range(num_labels))
        self.task = Classification(self.names)
        self.model, self.tokenizer = load_classifier(model_name, self.names, device=device)
        targets = ("query", "value") if _has(self.model, "query") else ALL_LINEAR
        self.config = AdapterConfig(
            r=r, lora_alpha=2.0 * r, target_modules=targets, modules_to_save=head_of(self.model)
        )
        self.records: tuple[Record, ...] = ()

    def prepare_data(self, texts: Sequence[str], labels: Sequence[int]) -> tuple[Record, ...]:
        """Keep texts and their label numbers, 0 to num_labels - 1, to train on; returns them as records."""
        self.records = _labelled(texts, labels)
        return self.records

    def train(self, epochs: float = 3, batch_size: int = 16, learning_rate: float = 2e-4, seed: int = 42) -> Scores:
        """Train on the prepared data; returns the loss before and after."""
        config = _config(self.config, epochs, batch_size, learning_rate, seed)
        name = "default"
        if name in adapter_names(self.model):
            remove_adapter(self.model, name)
        return _trained(Trainer(self.model, self.tokenizer, self.records, config, name, task=self.task))

    def evaluate(self, texts: Sequence[str], labels: Sequence[int]) -> Scores:
        """Accuracy on texts with their label numbers."""
        found = self.predict(texts)
        return {"accuracy": sum(a == b for a, b in zip(found, labels, strict=True)) / max(1, len(found))}

    def predict(self, texts: Sequence[str]) -> list[int]:
        """The likeliest label number of each text."""
        examples = [self.task.example(record, self.tokenizer) for record in _labelled(texts, [0] * len(texts))]
        return self.task.predict(self.model, examples, int(self.tokenizer.pad_token_id or 0))


class ChatLoRA:
    """A chat model with LoRA on its linear layers; only the answers and their end are trained."""

    def __init__(self, model_name: str | Path, r: int = 8, device: str | None = None) -> None:
        self.model, self.tokenizer = load_model(model_name, device=device)
        self.config = AdapterConfig(r=r, lora_alpha=2.0 * r)
        self.records: tuple[Record, ...] = ()

    def create_conversation_dataset(self, conversations: Sequence[Sequence[str]]) -> tuple[Record, ...]:
        """Keep conversations, each a list of turns that begins with the user, to train on; returns them as records."""
        self.records = tuple(
            Record(row, tuple(Message(("user", "assistant")[turn % 2], text) for turn, text in enumerate(turns)))
            for row, turns in enumerate(conversations, start=1)
        )
        return self.records

    def fine_tune(self, epochs: float = 5, batch_size: int = 4, learning_rate: float = 2e-4, seed: int = 42) -> Scores:
        """Train on the conversations; returns the loss before and after."""
        config = _config(self.config, epochs, batch_size, learning_rate, seed)
        if "default" in adapter_names(self.model):
            remove_adapter(self.model, "default")
        return _trained(Trainer(self.model, self.tokenizer, self.records, config))

    def generate_response(self, prompt: str, max_new_tokens: int = 100, temperature: float = 0.7, seed: int = 0) -> str:
        """The model's answer to one message."""
        config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return generate(self.model, self.tokenizer, [[Message("user", prompt)]], config=config)[0]


def _has(model: nn.Module, ending: str) -> bool:
    return any(name.rpartition(".")[2] == ending for name, _ in model.named_modules())


def _labelled(texts: Sequence[str], labels: Sequence[int]) -> tuple[Record, ...]:
    if len(texts) != len(labels):
        raise ConfigError(f"{len(texts)} texts have {len(labels)} labels.", "Give one label to each text.")
    return tuple(
        Record(row, (Message("user", text), Message("assistant", str(int(label)))))
        for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1)
    )


def _config(adapter: AdapterConfig, epochs: float, batch_size: int, rate: float, seed: int) -> TrainConfig:
    data, optim = DataConfig(validation_share=0.0), OptimConfig(learning_rate=rate)
    return TrainConfig(adapter=adapter, data=data, optim=optim, epochs=epochs, batch_size=batch_size, seed=seed)


def _trained(trainer: Trainer) -> Scores:
    losses = [metrics.loss for metrics in trainer.steps()]
    return {"first_loss": losses[0], "last_loss": losses[-1], "steps": float(len(losses))}
