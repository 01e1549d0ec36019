"""AdamW over an adapter's parameters, its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from core.adapters.switch import adapter_rates
from core.config import OptimConfig
from core.errors import ConfigError


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
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,  # one pass over the weights instead of five; CPU, CUDA and MPS have it
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group its rate: `rate` times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters an optimizer trains, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
