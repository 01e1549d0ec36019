"""Tiny models of every family that the fast path knows, and the gradients of a step on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from core.adapters import inject
from core.config import AdapterConfig
from core.loss import find_head, loss_sum
from core.ops.fast_path import FastPath
from core.ops.rms_norm import Norm, rms_norm_reference

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Phi3": {"partial_rotary_factor": 0.5},
}


def tiny(family: str, **changes: Any) -> Any:
    """A frozen model of a family with random weights, norms included."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **OWN[family], **changes})
    kind = {"Gemma3Text": "Gemma3"}.get(family, family)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.0 if "Gemma" in family else 1.0, std=0.2)
    return model.requires_grad_(False).eval()


def adapted(model: nn.Module, **settings: Any) -> nn.Module:
    """The model with an adapter whose every tensor gets a gradient at once."""
    inject(model, AdapterConfig(**{"r": 4, "lora_alpha": 8, **settings}), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
        if "lora_E" in name:
            nn.init.normal_(parameter)
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
    return model


def exact(model: nn.Module) -> nn.Module:
    """The model in float64 with norms that stay there, which transformers computes in float32."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
            norm = Norm(module.weight, eps, float("Gemma" in type(module).__name__))
            module.forward = _forward(norm)
    return model


def _forward(norm: Norm) -> Callable[[Tensor], Tensor]:
    return lambda x: rms_norm_reference(x, norm)


def step(model: Any, path: FastPath | None, rows: int = 2, length: int = 20) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch, and the gradient of everything that trains, with a fast path or without."""
    model.train()
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 64, (rows, length), generator=generator).to(next(model.parameters()).device)
    labels = tokens.cpu().clone()
    labels[:, : length // 3] = -100
    torch.manual_seed(5)
    with path.running() if path else contextlib.nullcontext():
        loss = loss_sum(model, find_head(model), tokens, labels)
        torch.autograd.backward(loss)
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.detach(), found


def worst_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, in lengths of that gradient."""
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)
