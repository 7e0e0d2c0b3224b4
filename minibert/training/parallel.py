"""Several processes that train one model together, through torch.distributed.

Each process holds the whole model and reads its share of every batch. Their gradients are summed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run.

    `gather`, `wait` and `add_gradients` are collective operations: every process must call them in
    the same order.
    """

    rank: int = 0  # of this process; the one of rank 0 writes the files
    size: int = 1  # how many processes

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items: each item is in exactly one part."""
        return items[self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """Every process's value, in the order of their ranks. Waits for all."""
        if self.size == 1:
            return [value]
        values: list[Item | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when every process has come here."""
        self.gather(None)

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


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The processes that `torchrun` has started, or this one alone."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that leaves earlier breaks the others' connections
    finally:
        dist.destroy_process_group()
