"""The fast path: while it runs, a model's decoder layers run on the fused functions instead of layer by layer.

    path = FastPath(model)
    with path.running():
        loss = ...           # the same numbers, sooner and in less memory
    print(path.sentence)     # which layers run so, and why others do not

Outside of `running` the model is untouched. What the fused functions do not know, such as another architecture, another
method, merged weights or an adapter per row, runs as the model has it, and `sentence` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.mode import mode
from core.ops.decoder_layer import FusedLayer
from core.ops.group import Group
from core.ops.normed_linear import normed_linear
from core.ops.precision import compute_dtype
from core.ops.recognition import FAMILIES, UnfitError, read_layer, read_projection

PROBE_TOKENS = 8
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}  # transformers norms in float32 whatever the weights are
HALF_TOLERANCE = 5e-2


class FastPath:
    """The fused forms of a model's layers.

    They are read anew at every `running`, from the adapters that are active then. That the fused layers give the
    model's own hidden states is tried once, on a few tokens, and never assumed.
    """

    def __init__(self, model: nn.Module, is_wanted: bool = True) -> None:
        self.model = model
        self.layers = [module for module in model.modules() if type(module).__name__ in FAMILIES]
        self.refusal = self._refusal(is_wanted)
        self.reasons: Counter[str] = Counter()  # why layers run otherwise, and how many
        if not self.refusal and not self._gives_own_states():
            self.refusal = "the fused layers do not give the model's own hidden states"

    def _refusal(self, is_wanted: bool) -> str:
        """Why nothing runs fused, or an empty text."""
        if not is_wanted:
            return "fast_path is off"
        if not self.layers:
            return f"{type(self.model).__name__} is of another architecture"
        self._read()
        return ""

    @property
    def sentence(self) -> str:
        """Which layers run fused and why the others do not."""
        if self.refusal:
            return f"Generic path, layer by layer: {self.refusal}."
        others = ", ".join(f"{count} because {reason}" for reason, count in self.reasons.items())
        fused = len(self.layers) - self.reasons.total()
        if not others:
            return f"Fast path: all {fused} layers run fused."
        if not fused:
            return f"Generic path, layer by layer: {', '.join(self.reasons)}."
        return f"Fast path: {fused} of {len(self.layers)} layers run fused; {others} run as the model has them."

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the layers that can run fused do; may be entered once more inside, with other adapters active."""
        stand_ins = {} if self.refusal else self._read()
        outer = {module: module.__dict__.get("forward") for module in stand_ins}
        for module, forward in stand_ins.items():
            module.forward = forward
        try:
            yield
        finally:
            for module, forward in outer.items():
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _read(self) -> dict[nn.Module, Any]:
        """What stands in for the forward of which module."""
        self.reasons = Counter()
        stand_ins: dict[nn.Module, Any] = {}
        for layer in self.layers:
            try:
                stand_ins[layer] = _layer_forward(layer, read_layer(layer))
            except UnfitError as unfit:
                self.reasons[str(unfit)] += 1
        return stand_ins | self._output_layer()

    def _output_layer(self) -> dict[nn.Module, Any]:
        """The output layer too, where 16-bit products are emulated: it is a fifth of a small model's work."""
        find = getattr(self.model, "get_output_embeddings", None)
        output: Any = find() if find is not None else None
        try:
            group = Group(read_projection(output)) if output is not None else None
        except UnfitError:
            return {}
        if group is None or not group.projections[0].is_widened:
            return {}
        return {output: lambda x: normed_linear(x, None, group, compute_dtype(x))[0]}

    @torch.no_grad()
    def _gives_own_states(self) -> bool:
        body: Any = getattr(self.model, "base_model", self.model)
        vocabulary = body.get_input_embeddings().num_embeddings
        tokens = torch.arange(min(PROBE_TOKENS, vocabulary), device=next(body.parameters()).device).unsqueeze(0)
        with mode(self.model, training=False):
            own = body(input_ids=tokens, use_cache=False).last_hidden_state
            with self.running():
                fused = body(input_ids=tokens, use_cache=False).last_hidden_state
        difference = (fused.double() - own.double()).norm() / own.double().norm()
        return bool(difference <= TOLERANCES.get(own.dtype, HALF_TOLERANCE))


def _layer_forward(layer: nn.Module, fused: FusedLayer) -> Any:
    original = layer.forward

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Any:
        is_autocast = torch.is_autocast_enabled(hidden_states.device.type)
        if past_key_values is not None or position_embeddings is None or is_autocast:
            return original(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings,
                past_key_values=past_key_values, **options,
            )  # fmt: skip
        return fused(hidden_states, position_embeddings, attention_mask, **options)

    return forward
