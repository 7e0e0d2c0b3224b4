"""Dropout that is cheap on a CPU."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each number with probability p while training, and scales the others by 1 / (1 - p).

    `nn.Dropout`, but for where the random numbers come from on a CPU. There torch draws one after
    another, a quarter of a training step; here the factors stand ready in a long row, which is
    entered at a place drawn from torch's generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        row = dropout_factors(self.p, x.dtype, (max(2 * x.numel(), 2**25) - 1).bit_length())
        place = int(torch.randint(len(row) - x.numel(), ()))
        return x * row[place : place + x.numel()].view(x.shape)


@cache
def dropout_factors(p: float, dtype: torch.dtype, bits: int) -> Tensor:
    """2 ** bits random factors, 0 with probability p and otherwise 1 / (1 - p): fixed ones.

    A dtype that has no such number gets both its neighbours, as often as keeps the mean at 1.
    """
    generator = torch.Generator().manual_seed(bits)
    exact = torch.tensor(1 / (1 - p), dtype=torch.float64)
    near = exact.to(dtype)
    beyond = near.nextafter(torch.full_like(near, torch.inf if exact > near else 0.0))
    share = (exact - near) / (beyond.double() - near)  # of those that get the farther neighbour
    size = 2**bits
    factors = torch.where(torch.rand(size, generator=generator) < share, beyond, near)
    return factors.masked_fill_(torch.rand(size, generator=generator) < p, 0.0)
