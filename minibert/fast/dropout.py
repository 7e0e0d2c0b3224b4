"""Dropout that is cheap on a CPU."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each number with probability p while training, and scales the others by 1 / (1 - p).

    As `nn.Dropout`, except for the random numbers on a CPU. There torch draws them one after
    another, which takes a quarter of a training step. Here a long row of factors is drawn once, and
    each call takes a slice of it, at an offset drawn from torch's generator.
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
    """2 ** bits factors, always the same: 0 with probability p, otherwise 1 / (1 - p).

    Where the dtype cannot hold 1 / (1 - p), its two neighbours are mixed so that the mean stays 1.
    """
    generator = torch.Generator().manual_seed(bits)
    exact = torch.tensor(1 / (1 - p), dtype=torch.float64)
    near = exact.to(dtype)
    beyond = near.nextafter(torch.full_like(near, torch.inf if exact > near else 0.0))
    share = (exact - near) / (beyond.double() - near)  # of those that get the farther neighbour
    size = 2**bits
    factors = torch.where(torch.rand(size, generator=generator) < share, beyond, near)
    return factors.masked_fill_(torch.rand(size, generator=generator) < p, 0.0)
