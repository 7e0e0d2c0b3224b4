"""The optimizer: learning rate, weight decay, and AdamW over the groups of parameters."""

from typing import Any

import torch
from torch import nn

from .config import TrainingConfig


def schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate: it rises linearly from 0 to 1, then falls linearly to 0.

    >>> [schedule(step, 2, 6) for step in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return step / warmup_steps
    return (total_steps - step) / max(total_steps - warmup_steps, 1)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of parameters for the optimizer: weights decay, biases and LayerNorms do not.

    As in google-research/bert. The name decides, not the number of dimensions: S and E are vectors,
    but they are weights.
    """
    undecayed: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        exempt = name.endswith(".bias") or "norm." in name
        (undecayed if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        decay_groups(model, config.weight_decay),
        config.learning_rate,
        fused=device.type in ("cpu", "cuda"),  # not every torch has it for other devices
    )
