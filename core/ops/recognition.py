"""Reading a transformers decoder layer, with the adapters on it, into its fused form; or saying why that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from core.adapters.base import Adapter
from core.adapters.host import AdaptedModule
from core.adapters.lora import LoRA
from core.mode import all_modules
from core.ops.decoder_layer import Attention, FusedLayer
from core.ops.gated_mlp import GatedMLP
from core.ops.gating import ACTIVATIONS, Activation
from core.ops.group import Group
from core.ops.projection import LowRank, Projection
from core.ops.rms_norm import Norm
from core.quantize.linear import Int8Linear, NF4Linear

LINEARS = (nn.Linear, NF4Linear, Int8Linear)
GAINS = "_gains"  # attribute of a norm: what it multiplies by, in the formats that were asked for
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnfitError(Exception):
    """Why a layer runs as the model has it; the end of the sentence "... because ..."."""


def read_layer(layer: Any) -> FusedLayer:
    """The fused form of a decoder layer as it is now; UnfitError says why there is none."""
    _without_hooks(layer)
    return FAMILIES[type(layer).__name__].read(layer)


def read_last_norm(norm: Any, layer: Any) -> Norm:
    """The norm behind the last layer; UnfitError where it is of another kind than those of the layers, or trained."""
    if type(norm) is not type(layer.input_layernorm):
        raise UnfitError("the norm behind the layers is of another kind")
    return FAMILIES[type(layer).__name__].norm(norm)


def read_projection(module: nn.Module) -> Projection:
    """A linear layer with its active adapter; UnfitError where it is more than that."""
    if not isinstance(module, AdaptedModule):
        return Projection(_frozen(module))
    if module.originals:
        raise UnfitError("an adapter is merged into the weights")
    if module.rows is not None:
        raise UnfitError("every row of the batch has its own adapter")
    if any(module.replacement(name) is not None for name in module.active):
        raise UnfitError("weights or biases of the base itself are trained")
    found = [adapter for name in module.active if (adapter := module.adapter(name)) is not None]
    if len(found) > 1:
        raise UnfitError("several adapters are active")
    return Projection(_frozen(module.base_layer), _known(found[0]) if found else None)


def _known(adapter: Adapter) -> LowRank:
    if adapter.live_factors() is None:
        has_one_at_times = type(adapter).live_factors not in (Adapter.live_factors, LoRA.live_factors)
        raise UnfitError(f"{type(adapter).__name__} has no fused form{' as it is set' if has_one_at_times else ''}")
    return cast("LowRank", adapter)


def _frozen(base: nn.Module) -> nn.Module:
    if type(base) not in LINEARS:
        raise UnfitError(f"{type(base).__name__} is not a linear layer the fast path knows")
    if any(parameter.requires_grad for parameter in base.parameters()):
        raise UnfitError("weights or biases of the base itself are trained")
    return base


def _without_hooks(layer: nn.Module) -> None:
    """A hook of a part would not be called; one of the layer itself still is."""
    parts = all_modules(layer)[1:]
    if any(part.__dict__.get(kind) for part in parts for kind in _HOOKS):
        raise UnfitError("someone watches the parts of a layer through hooks")


def _group(owner: nn.Module, names: Iterable[str]) -> Group:
    return Group(*(read_projection(owner.get_submodule(name)) for name in names))


def _activation(config: Any) -> Activation:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in ACTIVATIONS:
        raise UnfitError(f"the activation {name} has no fused form")
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class Family:
    """What sets the decoder layers of a family apart from Llama's."""

    options: Callable[[Any], dict[str, Any]] = lambda attention: {}  # further arguments of its attention function
    heads: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    has_head_norms: bool = False
    is_gemma: bool = False  # norms multiply by 1 + w
    is_sandwiched: bool = False  # further norms after attention and MLP
    dropouts: tuple[str, ...] = ()

    def read(self, layer: Any) -> FusedLayer:
        """The fused form of one of its layers."""
        attention, mlp = layer.self_attn, layer.mlp
        if any(getattr(layer, name).p for name in self.dropouts):
            raise UnfitError("the model has dropout of its own")
        after = layer.post_attention_layernorm
        return FusedLayer(
            Attention(
                attention,
                self.norm(layer.input_layernorm),
                _group(attention, self.heads),
                _group(attention, ("o_proj",)),
                self.norm(attention.q_norm) if self.has_head_norms else None,
                self.norm(attention.k_norm) if self.has_head_norms else None,
                self.norm(after) if self.is_sandwiched else None,
                self.options(attention),
            ),
            GatedMLP(
                self.norm(layer.pre_feedforward_layernorm if self.is_sandwiched else after),
                _group(mlp, self.inner),
                _group(mlp, ("down_proj",)),
                _activation(mlp.config),
                self.norm(layer.post_feedforward_layernorm) if self.is_sandwiched else None,
            ),
        )

    def norm(self, module: Any) -> Norm:
        """The settings of one of its norms; UnfitError where it is trained."""
        if isinstance(module, AdaptedModule) or module.weight.requires_grad:
            raise UnfitError("norms of the base itself are trained")
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        return Norm(module.weight.detach(), float(eps), float(self.is_gemma), module.__dict__.setdefault(GAINS, {}))


def _window(attention: Any) -> dict[str, Any]:
    return {"sliding_window": attention.sliding_window}


def _config_window(attention: Any) -> dict[str, Any]:
    return {"sliding_window": getattr(attention.config, "sliding_window", None)}


def _capped_window(attention: Any) -> dict[str, Any]:
    return {"sliding_window": attention.sliding_window, "softcap": attention.attn_logit_softcapping}


FAMILIES = {  # by the name of transformers' decoder layer
    "LlamaDecoderLayer": Family(),
    "MistralDecoderLayer": Family(_config_window),
    "Qwen2DecoderLayer": Family(_window),
    "Qwen3DecoderLayer": Family(_window, has_head_norms=True),
    "GemmaDecoderLayer": Family(is_gemma=True),
    "Gemma2DecoderLayer": Family(_capped_window, is_gemma=True, is_sandwiched=True),
    "Gemma3DecoderLayer": Family(_window, has_head_norms=True, is_gemma=True, is_sandwiched=True),
    "Phi3DecoderLayer": Family(
        _config_window,
        heads=("qkv_proj",),
        inner=("gate_up_proj",),
        dropouts=("resid_attn_dropout", "resid_mlp_dropout"),
    ),
}
