"""Several processes that train one model together, on torch.distributed; one alone needs none.

Each holds the whole model and reads its share of every batch; what they add up is gradients.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a run. All of them must call a method that talks, in the same order."""

    rank: int = 0  # this one; 0 writes the files
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: the parts overlap nowhere, and together they are everything."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks. Waits for all."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def add_gradients(self, model: nn.Module) -> None:
        """Make each gradient the sum over all processes; a missing one counts as 0."""
        if self.size == 1:
            return
        gradients: list[Tensor] = []
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message, not many
        dist.all_reduce(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


ALONE = Team()


@contextmanager
def team_of(device: torch.device) -> Iterator[Team]:
    """The processes that `torchrun` has started, or this one alone."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # who leaves before the others are done breaks their connections
    finally:
        dist.destroy_process_group()
