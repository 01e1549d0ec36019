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
from torch import nn

from core.mode import mode
from core.ops.recognition import FAMILIES, UnfitError, read_projection
from core.ops.stand_in import LayerStandIn, OutputStandIn

PROBE_TOKENS = 8
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}  # transformers norms in float32 whatever the weights are
HALF_TOLERANCE = 0.1


class FastPath:
    """The fused forms of a model's layers.

    They are read anew at every `running`, and inside whenever other adapters become active. That they give the model's
    own hidden states is tried once, on a few tokens, and never assumed.
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
        layers = {layer: LayerStandIn(layer) for layer in self.layers}
        self.reasons = Counter(stand_in.reason for stand_in in layers.values() if stand_in.reason)
        output = self._output()
        return layers if output is None else {**layers, output: OutputStandIn(output)}

    def _output(self) -> nn.Module | None:
        """The output layer, if its products would be emulated."""
        find = getattr(self.model, "get_output_embeddings", None)
        output: Any = find() if find is not None else None
        try:
            return output if output is not None and read_projection(output).is_widened else None
        except UnfitError:
            return None

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
