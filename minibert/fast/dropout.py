"""Dropout that is cheap on a CPU."""

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
        size = 2 ** (max(2 * x.numel(), 2**25) - 1).bit_length()
        row = dropout_factors(self.p, x.dtype, size)
        place = int(torch.randint(size - x.numel(), ()))
        return x * row[place : place + x.numel()].view(x.shape)


# The longest row so far of each rate and dtype. More than one model trains with would only fill
# memory: the oldest goes.
ROWS: dict[tuple[float, torch.dtype], Tensor] = {}
MAX_ROWS = 4  # two rates, for hidden states and attention, in float32 and bfloat16


def dropout_factors(p: float, dtype: torch.dtype, size: int) -> Tensor:
    """`size` random factors, always the same: the first ones of an endless row."""
    if len(ROWS.get((p, dtype), ())) < size:
        ROWS.pop((p, dtype), None)  # before the longer one takes memory
        while len(ROWS) >= MAX_ROWS:
            ROWS.pop(next(iter(ROWS)))
        with torch.inference_mode(False):  # else no training could use the row after this call
            ROWS[p, dtype] = draw_factors(p, dtype, size)
    return ROWS[p, dtype][:size]


def draw_factors(p: float, dtype: torch.dtype, size: int) -> Tensor:
    """Factors that are 0 with probability p and otherwise 1 / (1 - p).

    A dtype that has no such number gets both its neighbours, as often as keeps the mean at 1.
    """
    exact = torch.tensor(1 / (1 - p), dtype=torch.float64)
    near = exact.to(dtype)
    beyond = near.nextafter(torch.full_like(near, torch.inf if exact > near else 0.0))
    share = (exact - near) / (beyond.double() - near)  # of those that get the farther neighbour
    # a generator each: so a longer row begins with the shorter one
    which, kept = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    factors = torch.where(torch.rand(size, generator=which) < share, beyond, near)
    return factors.masked_fill_(torch.rand(size, generator=kept) < p, 0.0)
