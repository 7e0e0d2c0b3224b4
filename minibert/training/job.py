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
    finite: bool  # whether loss, gradients and all logits were finite: see `Job.take_step`


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
        # In other precisions than float16, it leaves loss and gradients as they are.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.config.precision == "fp16"
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_multiple(self) -> int:
        """Batches are padded to a multiple of this. It divides `max_length`, so all batches fit."""
        return math.gcd(PAD_MULTIPLE, self.config.max_length)

    def take_step(self, loss: float, finite: bool) -> StepResult:
        """Change the weights, after the backward passes of a batch. Clears the gradients.

        `loss` is the sum over this process's passes, and `finite` says whether their logits are
        finite. No step is taken if a number is not finite.

        Small gradients would be 0 in float16. So the loss is multiplied by a large scale before the
        backward pass, and the gradients are divided by it here (arXiv:1710.03740, section 3.2). If
        the scale is too large, the gradients are not finite: then this step is left out, and the
        scale of the next one is half. Such a result counts as finite, unless the scale is 1.
        """
        loss, finite = self.group.add_up(self.model, loss, finite)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm).item()
        finite = finite and math.isfinite(loss)
        if finite and math.isfinite(norm):
            self.optimizer.step()
        finite = finite and (math.isfinite(norm) or self.scaler.get_scale() > 1)
        self.scaler.update()
        self.optimizer.zero_grad()
        return StepResult(loss, norm, finite)
