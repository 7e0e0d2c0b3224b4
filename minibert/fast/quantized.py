"""Reading in 8-bit integers on a CPU: matrix products take about half as long as in float32.

Weights are rounded once, with one scale per output. The numbers that they are multiplied with are
rounded at each call, with one scale per token. So an answer does not depend on the other texts of
its batch. Everything else stays float32. Two measures keep the rounding errors small:

- Some channels of LayerNorm's output are ten times as wide as others. Each channel is divided by
  a width that comes from LayerNorm's own gain and bias, and the weights are multiplied by this
  width (after arXiv:2211.10438 section 4, which takes the widths from data).
- GELU's outputs are hardly negative: none is below -0.17. So nearly all of the 255 steps of the
  scale are used for positive numbers.

The kernels are from oneDNN. PyTorch's own quantisation for x86 uses the same ones
(torch/_inductor/fx_passes/quantization.py). They have no gradient.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import EncoderLayer
from ..qa import BertForQuestionAnswering
from .linear import FusedLayer, fuse
from .processor import HALF, Computed, device_errors
from .unpadded import replace_layers

# How many numbers a thread's widest tensor has. It is read five times, so it must fit the cache.
BLOCK = 2**19
NEAR_ZERO = 1e-12  # no step is smaller
WIDTH = 4.0  # assumed largest value in a channel of LayerNorm's output, in standard deviations


class QuantizedLinear:
    """x W^T + b for one or more maps, joined along the last dimension: (..., K) -> (..., N).

    `norm` is the LayerNorm that x comes from (None: x comes from something else). Negative numbers
    get `zero` of the 255 steps. `least` is a known lower bound of x (None: no bound is known).
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
        """Write the result for x (n, K) to `out` (n, N); both fit the cache."""
        if self.per_width is not None:
            x = x * self.per_width
        step = x.amax(-1, keepdim=True) / (255 - self.zero)  # (n, 1)
        if self.least_step is None:
            step = torch.maximum(step, x.amin(-1, keepdim=True) / -self.zero)
        step.clamp_(min=self.least_step or NEAR_ZERO)
        shifted = torch.addcmul(self.begin, x, step.reciprocal())
        # Both casts together take a quarter of the time of one cast to uint8. They round down.
        stored = shifted.to(torch.int16).to(torch.uint8)
        mapped = product(stored, self.zero, self.weight, self.scale, self.zeros)
        torch.addcmul(self.bias, mapped, step, out=out)


def rows_of(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """(..., K) cut into blocks (n, K): n rows of `width` numbers fit the caches of all threads."""
    rows = BLOCK * torch.get_num_threads() // width
    return torch.split(x.flatten(0, -2), max(1, rows))


def product(x: Tensor, zero: int, weight: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """(x - zero) W^T in float32, from unsigned bytes x (n, K) and the packed W."""
    multiplied: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return multiplied


@cache
def largest_weight() -> int:
    """127, or 63 if sums of two products are held in 16 bits, as AVX2's instructions hold them."""
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
    x = torch.full((16, 64), 255, dtype=torch.uint8)
    exact = product(x, 0, weight, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    return 127 if bool((exact == 255 * 127 * 64).all()) else 63


class QuantizedLayer(FusedLayer):
    """A `FusedLayer` with its six maps in integers. It reads the output of `norm`."""

    def __init__(self, layer: EncoderLayer, norm: nn.LayerNorm | None) -> None:
        self.before = (norm,)  # a tuple, because it must not be a submodule of this layer
        super().__init__(layer)

    def reads(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float32

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
    """Let a float32 model read with `QuantizedLayer`s. This freezes its weights."""
    embeddings = model.bert.embeddings
    layers: Any = model.bert.layers
    norms = [embeddings.norm if embeddings.project is None else None]
    norms += [layer.feed_forward_norm for layer in layers[:-1]]
    replace_layers(model, list(map(QuantizedLayer, layers, norms)), unpadded=True)


def prepare_for_reading(
    model: BertForQuestionAnswering, precision: Computed, device: torch.device
) -> None:
    """Move a model to a device, in a precision; on a CPU, give it faster layers.

    Raises `InputError` if the device cannot hold the model.
    """
    with device_errors(device):
        model.to(device, HALF.get(precision, torch.float32))
    if precision == "int8":
        quantize(model)
    elif device.type == "cpu":
        fuse(model)
