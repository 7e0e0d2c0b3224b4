"""Several processes that train one model together, through torch.distributed.

Each process has the whole model and reads its share of every batch. The gradients are added.
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

    `gather`, `wait`, `add_gradients` and `add_up` are collective operations: every process must
    call them in the same order.
    """

    rank: int = 0  # the number of this process; process 0 writes the files
    size: int = 1  # the number of processes

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of the items. Each item is in exactly one process's share."""
        return items[self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, in the order of their ranks. Waits for all processes."""
        if self.size == 1:
            return [value]
        values: list[Item | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when every process has called this."""
        self.gather(None)

    def add_gradients(self, model: nn.Module) -> None:
        """Make each gradient the sum over all processes. A missing gradient counts as 0."""
        if self.size == 1:
            return
        gradients: list[Tensor] = []
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        # all gradients in one tensor, because one large message is faster than many small ones
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def add_up(self, model: nn.Module, loss: float, finite: bool) -> tuple[float, bool]:
        """Add the gradients and the losses of all processes, and say whether all were finite."""
        self.add_gradients(model)
        losses, all_finite = zip(*self.gather((loss, finite)), strict=True)
        return sum(losses), all(all_finite)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The processes that `torchrun` has started, or only this one."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that leaves early breaks the connections of the others
    finally:
        dist.destroy_process_group()
