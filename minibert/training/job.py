"""A training job: the model, and everything that its steps need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..fast.dropout import Dropout
from ..tokenization import Tokenizer
from .config import TrainingConfig, resolved
from .parallel import SINGLE_PROCESS, ProcessGroup

# oneDNN keeps kernels for each shape that it has met. Multiples of 8 limit the number of shapes.
PAD_MULTIPLE = 8


class StepResult(NamedTuple):
    """The figures of one step."""

    loss: float  # mean over the batch, before the step
    grad_norm: float  # norm of all gradients together, before clipping
    finite: bool  # whether loss, gradients and all logits were finite; if not, no step was taken


@dataclass
class Job:
    """A model in training, and everything that a step needs."""

    model: nn.Module  # its `config` is a `BertConfig`
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    config: TrainingConfig
    group: ProcessGroup = SINGLE_PROCESS
    teachers: Sequence[nn.Module] = ()

    def __post_init__(self) -> None:
        """Choose the settings that `config` leaves to the device, and set the dropout rate."""
        shapes: Any = self.model.config
        self.config = resolved(self.config, self.device, shapes)
        for module in self.model.modules():
            if isinstance(module, Dropout) and self.config.dropout is not None:
                module.p = self.config.dropout

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_multiple(self) -> int:
        """Batches are padded to a multiple of this. It divides `max_length`, so all batches fit."""
        return math.gcd(PAD_MULTIPLE, self.config.max_length)
