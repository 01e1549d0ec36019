"""LoRA: W + s B A with A (r, in) and B (out, r), s = alpha / r (Hu et al. 2021, section 4.1).

Linear, Conv1D (whose weight is stored as (in, out)) and Embedding. A starts uniform in +-1/sqrt(in) and B at zero, so
the update is zero at the start; for an embedding it is A that starts at zero, and B is normal, as in microsoft/LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, is_transposed, layer_size
from core.adapters.experts import ModuleParameters
from core.ops.dropout import dropout
from core.ops.factor_product import add_product, factor_linear


@adapters.register("lora")
class LoRA(Adapter):
    """LoRA on a Linear or Conv1D."""

    keys = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__()
        d_in, d_out = layer_size(base)
        device, dtype = settings.device, settings.dtype
        self.lora_A = nn.Parameter(torch.empty(settings.r, d_in, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(d_out, settings.r, device=device, dtype=dtype))
        self.scale = scale  # fixed for life: never worked out again from a rank that was pruned
        self.dropout = settings.lora_dropout
        self.options = settings.options
        self.is_transposed = is_transposed(base)

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the LoRA that fits the kind of `base`."""
        kind = cls.on_embedding() if isinstance(base, nn.Embedding) else cls
        return kind(base, settings, cls.scaling(settings))

    @classmethod
    def on_parameters(cls, base: nn.Module, settings: Mapping[str, LayerSettings]) -> Adapter:
        """LoRA on the experts of a mixture."""
        return ModuleParameters.of(base, settings, [cls.scaling(own) for own in settings.values()])

    @classmethod
    def on_embedding(cls) -> type[LoRA]:
        """The class that adapts an embedding by this method; AdapterError when there is none."""
        return LoRAEmbedding

    @classmethod
    def scaling(cls, settings: LayerSettings) -> float:
        """alpha / r, or alpha / sqrt(r) with `use_rslora`."""
        return settings.lora_alpha / (math.sqrt(settings.r) if settings.use_rslora else settings.r)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """A uniform with variance 1 / (3 in), B zero."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        start = torch.empty(self.lora_A.shape, dtype=self.lora_A.dtype).uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(start)  # drawn on the CPU, so that every device starts from the same numbers
        self.lora_B.zero_()

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + s * (drop(x) A^T) B^T, for x (..., in) and out (..., out), in the dtype of `out`."""
        dropped = dropout(x.to(out.dtype), self.dropout, self.training)
        return add_product(out, factor_linear(dropped, self.lora_A), self.lora_B, self.scale)

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """A and B; None for a method that computes something else."""
        return (self.lora_A, self.lora_B) if type(self).forward is LoRA.forward else None

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s * B A, or its transpose where the weight is (in, out)."""
        a, b = self.lora_A.detach().to(dtype), self.lora_B.detach().to(dtype)
        return self.scale * (a.T[rows] @ b.T if self.is_transposed else b[rows] @ a)

    def lora_factors(self) -> tuple[Tensor, Tensor] | None:
        """A and s B; None for a method on top of LoRA whose change is another."""
        kind = type(self)
        if kind.delta_weight is not LoRA.delta_weight or kind.merge_block is not Adapter.merge_block:
            return None
        return self.lora_A.detach().double(), self.scale * self.lora_B.detach().double()


class LoRAEmbedding(LoRA):
    """LoRA on an embedding: row i of the table moves by s * B A[:, i]; no dropout, since its input are token ids."""

    keys = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """A zero, B standard normal."""
        self.lora_A.zero_()
        self.lora_B.copy_(torch.empty(self.lora_B.shape, dtype=self.lora_B.dtype).normal_(generator=generator))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + e * s * A[:, x]^T B^T, with e the factor some models (Gemma 3) multiply their embeddings by."""
        padding = base.padding_idx if isinstance(base, nn.Embedding) else None
        small = F.embedding(x, self.lora_A.T.to(out.dtype), padding)  # (..., r)
        embed_scale = getattr(base, "embed_scale", None)
        if embed_scale is not None:
            small = small * torch.as_tensor(embed_scale, dtype=out.dtype, device=out.device)
        return add_product(out, small, self.lora_B, self.scale)
