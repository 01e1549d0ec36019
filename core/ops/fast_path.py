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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.mode import mode
from core.ops.group import Group
from core.ops.recognition import FAMILIES, UnfitError, read_last_norm, read_projection
from core.ops.stand_in import LayerStandIn, NormStandIn, OutputStandIn

LED = 4  # layers whose factors the first has made for all: few kernels, and the device soon has a layer to compute
PROBE_TOKENS = 8
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}  # transformers norms in float32 whatever the weights are
HALF_TOLERANCE = 3e-2


class FastPath:
    """The fused forms of a model's layers.

    What has changed since is read anew at every `running`, and inside whenever other adapters become active. That each
    gives what the model's own layer gives is tried once, on a few tokens, and never assumed.
    """

    def __init__(self, model: nn.Module, is_wanted: bool = True) -> None:
        self.model = model
        self.layers = [module for module in model.modules() if type(module).__name__ in FAMILIES]
        self._read_before: dict[nn.Module, LayerStandIn] = {}
        self.reasons: Counter[str] = Counter()  # why layers run otherwise, and how many
        self.refusal = self._refusal(is_wanted)
        if not self.refusal and not self._gives_own_states():
            self.refusal = "the fused layers do not give the model's own hidden states"
        if not self.refusal:
            self._stack()

    def _refusal(self, is_wanted: bool) -> str:
        """Why nothing runs fused, or an empty text."""
        if not is_wanted:
            return "fast_path is off"
        if not self.layers:
            return f"{type(self.model).__name__} is of another architecture"
        self._read()
        return ""

    def _stack(self) -> None:
        """On a GPU, have q, k and v lie below each other: what reaches their input is one product then, not three."""
        stand_ins = (LayerStandIn(layer) for layer in self.layers if next(layer.parameters()).is_cuda)
        heads = [stand_in.fused.attention.heads for stand_in in stand_ins if stand_in.fused is not None]
        for group in heads:
            group.stack()
        if heads:
            torch.cuda.empty_cache()  # the memory in which they lay before

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
            self._keep(stand_ins)

    def _read(self) -> dict[nn.Module, Any]:
        """What stands in for the forward of which module."""
        before, self._read_before = self._read_before, {}  # taken: inside, `running` may be entered once more
        layers = {layer: _current(before.get(layer), layer) for layer in self.layers}
        self.reasons = Counter(stand_in.reason for stand_in in layers.values() if stand_in.reason)
        fused = [stand_in for stand_in in layers.values() if stand_in.fused is not None]
        for index, each in enumerate(fused):
            each.leads = _groups(fused[index : index + LED]) if index % LED == 0 else ()
        ends: dict[nn.Module, Any] = self._last_norm()
        if (output := self._output()) is not None:
            ends[output] = OutputStandIn(output)
        return {**layers, **ends}

    def _keep(self, stand_ins: dict[nn.Module, Any]) -> None:
        """Have the stand-ins at hand for the next time, without the factors that were made ahead."""
        self._read_before = {layer: each for layer, each in stand_ins.items() if isinstance(each, LayerStandIn)}
        for stand_in in self._read_before.values():
            for group in stand_in.leads:
                group.ahead = None

    def _last_norm(self) -> dict[nn.Module, NormStandIn]:
        """What stands in for the norm behind the last layer, if the model has one of the layers' kind."""
        norm = getattr(_body(self.model), "norm", None)
        try:
            return {} if norm is None else {norm: NormStandIn(norm, read_last_norm(norm, self.layers[0]))}
        except UnfitError:
            return {}

    def _output(self) -> nn.Module | None:
        """The output layer, if it would take longer by itself."""
        find = getattr(self.model, "get_output_embeddings", None)
        output: Any = find() if find is not None else None
        try:
            return output if output is not None and read_projection(output).is_slow_alone else None
        except UnfitError:
            return None

    @torch.no_grad()
    def _gives_own_states(self) -> bool:
        """Whether every layer, on what the model itself gives it, answers as the model's own."""
        body = _body(self.model)
        vocabulary = body.get_input_embeddings().num_embeddings
        tokens = torch.arange(min(PROBE_TOKENS, vocabulary), device=next(body.parameters()).device).unsqueeze(0)
        differences: list[Tensor] = []

        def compare(layer: nn.Module, args: Any, kwargs: Any, own: Any) -> None:
            if (fused := LayerStandIn(layer)).fused is not None:
                differences.append(_difference(fused(*args, **kwargs), own))

        def compare_norm(norm: nn.Module, args: Any, own: Any) -> None:
            differences.append(_difference(last_norm[norm](*args), own))

        last_norm = self._last_norm()
        handles = [layer.register_forward_hook(compare, with_kwargs=True) for layer in self.layers]
        handles += [norm.register_forward_hook(compare_norm) for norm in last_norm]
        try:
            with mode(self.model, training=False):
                states = body(input_ids=tokens, use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        tolerance = TOLERANCES.get(states.dtype, HALF_TOLERANCE)
        return all(difference <= tolerance for difference in torch.stack(differences).tolist()) if differences else True


def _body(model: nn.Module) -> Any:
    return getattr(model, "base_model", model)


def _current(known: LayerStandIn | None, layer: nn.Module) -> LayerStandIn:
    """What is known of a layer, if that is how it is now, or what it is."""
    if known is None or not known.is_current():
        return LayerStandIn(layer)
    known.original = layer.forward
    return known


def _groups(led: Sequence[LayerStandIn]) -> list[Group]:
    """The groups with adapters of some layers, if all are on one device."""
    layers = [each.fused for each in led if each.fused is not None]
    groups = [group for layer in layers for group in layer.groups if group.adapted and not group.makes_factors]
    return groups if len({group.parameters[0].device for group in groups}) == 1 else []


def _difference(found: Tensor, own: Tensor) -> Tensor:
    """The length of the difference in that of the model's own hidden states: the middle one of the tokens.

    Not the largest: rounding to 16 bits may move a single token by a tenth, in the model's own layers as in these.
    """
    wide = torch.float64 if own.device.type != "mps" else torch.float32
    off = torch.linalg.vector_norm(found.to(wide) - own.to(wide), dim=-1)
    length = torch.linalg.vector_norm(own.to(wide), dim=-1).clamp_min(torch.finfo(torch.float32).tiny)  # of padding: 0
    middle: Tensor = (off / length).median()
    return middle
