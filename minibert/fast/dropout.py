"""Dropout that is cheap on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each number with probability p while training, and scales the others by 1 / (1 - p).

    It equals `nn.Dropout`, except for the random numbers on a CPU. There torch draws the numbers
    one after another, which takes a quarter of a training step. This class draws a long row of
    factors once. Each call takes a slice of this row, and torch's generator draws the offset.
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
        offset = int(torch.randint(size - x.numel(), ()))
        return x * row[offset : offset + x.numel()].view(x.shape)


# The longest row so far for each rate and dtype. A model trains with at most MAX_ROWS rows. Older
# rows would only fill memory, so they are removed.
ROWS: dict[tuple[float, torch.dtype], Tensor] = {}
MAX_ROWS = 4  # two rates, for hidden states and attention, in float32 and bfloat16


def dropout_factors(p: float, dtype: torch.dtype, size: int) -> Tensor:
    """The first `size` factors of one endless random row, so always the same factors."""
    if len(ROWS.get((p, dtype), ())) < size:
        ROWS.pop((p, dtype), None)  # before the longer row takes memory
        while len(ROWS) >= MAX_ROWS:
            ROWS.pop(next(iter(ROWS)))
        with torch.inference_mode(False):  # training could not use a row made in inference mode
            ROWS[p, dtype] = draw_factors(p, dtype, size)
    return ROWS[p, dtype][:size]


def draw_factors(p: float, dtype: torch.dtype, size: int) -> Tensor:
    """Factors that are 0 with probability p, and otherwise 1 / (1 - p).

    If the dtype cannot represent 1 / (1 - p), the two nearest numbers are drawn instead, in the
    proportion that keeps the mean at 1.
    """
    exact = torch.tensor(1 / (1 - p), dtype=torch.float64)
    near = exact.to(dtype)
    beyond = near.nextafter(torch.full_like(near, torch.inf if exact > near else 0.0))
    share = (exact - near) / (beyond.double() - near)  # how often `beyond` is drawn
    # two generators, so that a longer row begins with the shorter one
    which, kept = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    factors = torch.where(torch.rand(size, generator=which) < share, beyond, near)
    return factors.masked_fill_(torch.rand(size, generator=kept) < p, 0.0)
