"""AdamW over an adapter's parameters, its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.switch import adapter_rates
from core.config import OptimConfig
from core.errors import ConfigError
from core.pieces import empty_in_one_piece, lay_in_one_piece, pieces_of

MOST_BYTES = 2**30  # of the parameters of an adapter
COUNT, MOMENTS = "step", ("exp_avg", "exp_avg_sq")  # torch's names for what its AdamW keeps of a parameter


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 1 to `total_steps`.

    It rises linearly over the first `warmup_share` of the steps (the first step already learns), then follows the
    schedule; cosine and linear would reach 0 one step after the last, so the last step still learns.
    """
    warmup = math.ceil(config.warmup_share * total_steps - 1e-9)
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - 1 - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * _decay(config.schedule, min(1.0, progress))


def _decay(schedule: str, progress: float) -> float:
    if schedule == "constant":
        return 1.0
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, config: OptimConfig, name: str = "default") -> list[dict[str, Any]]:
    """The parameters of adapter `name`, grouped by weight decay and by `lr_scale`, each in the order of the model.

    Decay pulls matrices towards 0 and leaves vectors and biases. `lr_scale` multiplies the learning rate of a group,
    which is how a method gives its matrices different rates.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, decays, scale in adapter_rates(model, name):
        groups.setdefault((decays, scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scale}
        for (decays, scale), params in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
    ]


def make_optimizer(model: nn.Module, config: OptimConfig, name: str = "default") -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the parameters of adapter `name` and nothing else.

    Raises ConfigError when the adapter has nothing to train.
    """
    groups = parameter_groups(model, config, name)
    if not groups:
        raise ConfigError(f"Adapter {name!r} has nothing to train.", "Choose another method or other targets.")
    return (AdamWInPieces if _goes_into_one_piece(groups) else torch.optim.AdamW)(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,  # one pass over the weights instead of five; CPU, CUDA and MPS have it
    )


def _goes_into_one_piece(groups: list[dict[str, Any]]) -> bool:
    """Whether launches take longer than the update, and there is room for the parameters twice: an adapter on a GPU."""
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    is_alike = len({(each.device, each.dtype) for each in parameters}) == 1
    return is_alike and parameters[0].is_cuda and sum(each.nbytes for each in parameters) <= MOST_BYTES


class AdamWInPieces(torch.optim.AdamW):
    """torch's fused AdamW, but the numbers of a group lie in one piece of memory, and so do their moments.

    Its parameters are of one format and on one device.
    As long as every parameter of a group has a gradient, as after any whole step, a group is updated by one kernel.
    Otherwise torch's own goes on, with a count of steps for each parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._counts: dict[int, Tensor] = {}  # steps of a group, which all of its parameters share
        self._is_parted = False
        for group in self.param_groups:
            group["params"].sort(key=_shape)
            lay_in_one_piece(group["params"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        groups = self.param_groups
        if self._is_parted or not all(
            self._share_a_count(index, group["params"]) for index, group in enumerate(groups)
        ):
            self._part()
            super().step(closure)
            return
        for index, group in enumerate(groups):
            self._update(group, self._counts[index])

    def _update(self, group: dict[str, Any], count: Tensor) -> None:
        parameters: list[Any] = group["params"]
        moments = [[self.state[each][name] for each in parameters] for name in MOMENTS]
        lists: list[list[Any]] = [parameters, [each.grad for each in parameters], *moments]
        pieces = [pieces_of(each) for each in lists]
        if all([own.numel() for own in each] == [own.numel() for own in pieces[0]] for each in pieces):
            lists = pieces
        found_inf = getattr(self, "found_inf", None)
        count += 1
        torch._fused_adamw_(
            lists[0], lists[1], lists[2], lists[3], [], [count] * len(lists[0]), lr=float(group["lr"]),
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False, found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:
            count -= found_inf
        torch.autograd.graph.increment_version(parameters)  # what is kept of them goes by it

    def _share_a_count(self, index: int, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether all parameters have a gradient and have been updated as often; then their moments lie together."""
        if any(each.grad is None for each in parameters):
            return False
        known = self._counts.get(index)
        if known is not None and all(self.state[each].get(COUNT) is known for each in parameters):
            return True
        states = [self.state[each] for each in parameters]
        counts = [state.get(COUNT) for state in states]
        count = torch.zeros((), device=parameters[0].device) if counts[0] is None else counts[0].clone()
        if any((each is None) != (counts[0] is None) or (each is not None and each != count) for each in counts):
            return False
        for name in MOMENTS:
            laid = empty_in_one_piece([each.shape for each in parameters], parameters[0], parameters[0].dtype)
            for state, part in zip(states, laid, strict=True):
                state[name] = part.zero_() if state.get(name) is None else part.copy_(state[name])
        for state in states:
            state[COUNT] = count
        self._counts[index] = count
        return True

    def _part(self) -> None:
        """A count for each parameter, which torch's own AdamW raises by itself."""
        self._is_parted = True
        for state in self.state.values():
            state[COUNT] = state[COUNT].clone()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or clear them where they are."""
        if set_to_none:
            super().zero_grad()
            return
        gradients = [each.grad for group in self.param_groups for each in group["params"] if each.grad is not None]
        torch._foreach_zero_(pieces_of(gradients))


def _shape(parameter: nn.Parameter) -> int:
    """Wide matrices before tall ones: the A of several layers, rounded together, so come to lie below each other."""
    return 2 if parameter.ndim != 2 else int(parameter.shape[0] > parameter.shape[1])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group its rate: `rate` times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters an optimizer trains, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
