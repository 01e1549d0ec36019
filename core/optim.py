"""AdamW over an adapter's parameters, its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from core.adapters import adapter_parameters
from core.config import OptimConfig


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


def parameter_groups(parameters: Iterable[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Split parameters into matrices, which weight decay pulls towards 0, and vectors and biases, which it leaves.

    `lr_scale` multiplies the learning rate of a group, which is how a method gives its matrices different rates.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [(matrices, config.weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for params, decay in groups if params]


def make_optimizer(model: nn.Module, config: OptimConfig, name: str = "default") -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the parameters of adapter `name` and nothing else."""
    return torch.optim.AdamW(
        parameter_groups(adapter_parameters(model, name), config),
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
