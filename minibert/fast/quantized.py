"""Reading in 8-bit integers on a CPU: the products of matrices take about half of float32's time.

Weights are rounded once, with a scale for each output. What they are multiplied with is rounded at
each call, with a scale for each token, so that an answer does not depend on what else is in its
batch. All else stays float32. Two things keep the rounding small:

- LayerNorm's outputs have channels ten times as wide as others. Each is divided by the width that
  its own gain and bias say, and the weights are multiplied by it (after arXiv:2211.10438, section
  4, which takes the widths from data).
- GELU's outputs are hardly negative, none below -0.17: nearly all steps are for positive ones.

The kernels are oneDNN's, those of PyTorch's own quantisation for x86
(torch/_inductor/fx_passes/quantization.py); they have no gradient.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import EncoderLayer
from ..qa import BertForQuestionAnswering
from .linear import FusedLayer
from .unpadded import UnpaddedBert

# Numbers of the widest tensor that a thread computes at once; it is read five times, from cache.
BLOCK = 2**19
NEAR_ZERO = 1e-12  # no step is smaller
WIDTH = 4.0  # standard deviations to which a channel of LayerNorm's output reaches


class QuantizedLinear:
    """x W^T + b of one or more maps, one after another in the last dimension: (..., K) -> (..., N).

    `norm` is the LayerNorm whose output x is; None where it is something else. Of 255 steps `zero`
    are for negative numbers; `least` is what none is below, where that is known.
    """

    def __init__(
        self,
        *maps: nn.Linear,
        norm: nn.LayerNorm | None = None,
        zero: int = 128,
        least: float | None = None,
    ) -> None:
        weight = torch.cat([part.weight.detach() for part in maps])  # (N, K)
        self.bias = torch.cat([part.bias.detach() for part in maps])
        self.per_width: Tensor | None = None
        if norm is not None:
            width = WIDTH * norm.weight.detach().abs() + norm.bias.detach().abs()  # (K,)
            width = width.clamp(min=1e-3 * float(width.max()))
            self.per_width, weight = width.reciprocal(), weight * width
        self.scale = weight.abs().amax(1).clamp(min=NEAR_ZERO) / largest_weight()  # (N,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.zero = zero
        self.least_step = None if least is None else -least / zero
        self.begin = torch.full(weight.shape[1:], zero + 0.5)  # a vector: torch adds it faster

    def __call__(self, x: Tensor) -> Tensor:
        width = len(self.bias)
        mapped = x.new_empty(*x.shape[:-1], width)
        for block, out in zip(rows_of(x, width), rows_of(mapped, width), strict=True):
            self.multiply(block, out)
        return mapped

    def multiply(self, x: Tensor, out: Tensor) -> None:
        """Write to `out` (n, N) what x (n, K) gives; both fit the cache."""
        if self.per_width is not None:
            x = x * self.per_width
        step = x.amax(-1, keepdim=True) / (255 - self.zero)  # (n, 1)
        if self.least_step is None:
            step = torch.maximum(step, x.amin(-1, keepdim=True) / -self.zero)
        step.clamp_(min=self.least_step or NEAR_ZERO)
        stored = torch.addcmul(self.begin, x, step.reciprocal()).to(torch.uint8)  # rounds down
        mapped = product(stored, self.zero, self.weight, self.scale, self.zeros)
        torch.addcmul(self.bias, mapped, step, out=out)


def rows_of(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """(..., K) cut into (n, K): so many rows that n numbers of this width fit the caches."""
    rows = BLOCK * torch.get_num_threads() // width
    return torch.split(x.flatten(0, -2), max(1, rows))


def product(x: Tensor, zero: int, weight: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """(x - zero) W^T in float32, of unsigned bytes x (n, K) and of packed W."""
    multiplied: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return multiplied


@cache
def largest_weight() -> int:
    """127; or 63, where sums of two products are held in 16 bits, as AVX2's instructions do."""
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
    x = torch.full((16, 64), 255, dtype=torch.uint8)
    exact = product(x, 0, weight, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    return 127 if bool((exact == 255 * 127 * 64).all()) else 63


class QuantizedLayer(FusedLayer):
    """An `EncoderLayer` to read with, its six maps in integers. `norm`: whose output it reads."""

    def __init__(self, layer: EncoderLayer, norm: nn.LayerNorm | None) -> None:
        self.before = (norm,)  # in a tuple: it is no part of this layer
        super().__init__(layer)

    def pack(self) -> None:
        attention, feed_forward = self.attention, self.feed_forward
        maps = attention.query, attention.key, attention.value
        self.project: Any = QuantizedLinear(*maps, norm=self.before[0])
        self.merge: Any = QuantizedLinear(attention.output)
        self.expand: Any = QuantizedLinear(feed_forward.expand, norm=self.attention_norm)
        self.contract: Any = QuantizedLinear(feed_forward.contract, zero=32, least=-0.17)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        width = self.feed_forward.expand.out_features
        blocks = zip(rows_of(mixed, width), rows_of(x, width), strict=True)
        return torch.cat([self.finish_block(*block) for block in blocks]).view_as(x)

    def finish_block(self, mixed: Tensor, x: Tensor) -> Tensor:
        x = self.attention_norm(self.merge(mixed).add_(x))
        x = self.feed_forward_norm(self.contract(F.gelu(self.expand(x))).add_(x))
        return x


def quantize(model: BertForQuestionAnswering) -> None:
    """Have the layers of a float32 model compute by these kernels. Its weights are frozen."""
    model.requires_grad_(False)
    embeddings = model.bert.embeddings
    norm = embeddings.norm if embeddings.project is None else None
    layers: Any = model.bert.layers
    for k, layer in enumerate(layers):
        layers[k] = QuantizedLayer(layer, norm)
        norm = layer.feed_forward_norm
    model.bert = UnpaddedBert(model.bert)
