"""Reading in 8-bit integers on a CPU: matrix products take about half as long as in float32.

Weights are rounded once, with one scale per output. The numbers that they are multiplied with are
rounded at each call. Their scale is either fixed (`FixedLinear`, with ranges that are known from
sample texts), or it is found for each token (`QuantizedLinear`). In both cases an answer does not
depend on the other texts of its batch. Everything else stays float32. Two measures keep the
rounding errors small:

- Some channels of LayerNorm's output are ten times as wide as others. Each channel is divided by
  a width that comes from LayerNorm's own gain and bias, and the weights are multiplied by this
  width (after arXiv:2211.10438 section 4, which takes the widths from data).
- GELU's outputs are hardly negative: none is below -0.17. So nearly all of the 255 steps of the
  scale are used for positive numbers.

The kernels are from oneDNN. PyTorch's own quantisation for x86 uses the same ones
(torch/_inductor/fx_passes/quantization.py). They have no gradient.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PretrainedError
from ..model import EncoderLayer, FeedForward
from ..qa import BertForQuestionAnswering
from .linear import FusedLayer, fuse
from .processor import HALF, Computed, device_errors
from .ranges import NAMES, Range, Ranges, channel_widths, norms_before
from .unpadded import replace_layers

# How many numbers a thread's widest tensor has. It is read five times, so it must fit the cache.
BLOCK = 2**19
NEAR_ZERO = 1e-12  # no step is smaller
LEAST = -0.17  # a lower bound of GELU


class IntegerMatrix:
    """W (N, K) in 8-bit integers up to `largest`, with one scale per output."""

    def __init__(self, weight: Tensor, largest: int) -> None:
        self.scale = weight.abs().amax(1).clamp(min=NEAR_ZERO) / largest  # (N,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def product(
        self, x: Tensor, zero: int, step: float = 1.0, bias: Tensor | None = None
    ) -> Tensor:
        """step (x - zero) W^T + b in float32, from unsigned bytes x (..., K)."""
        weights = self.packed, self.scale, self.zeros, bias
        multiplied: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, step, zero, *weights, 1.0, 0, torch.float32, "none", [], ""
        )
        return multiplied

    def gelu(
        self, x: Tensor, zero: int, step: float, bias: Tensor, out: tuple[float, int]
    ) -> Tensor:
        """The erf GELU of `product`, in unsigned bytes with the step and the zero of `out`."""
        weights = self.packed, self.scale, self.zeros, bias
        rounded: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, step, zero, *weights, *out, torch.uint8, "gelu", [], "none"
        )
        return rounded


class QuantizedLinear:
    """x W^T + b for one or more maps, joined along the last dimension: (..., K) -> (..., N).

    Each token has its own scale. `norm` is the LayerNorm that x comes from (None: x comes from
    something else). Negative numbers get `zero` of the 255 steps. `least` is a known lower bound of
    x (None: no bound is known).
    """

    def __init__(
        self,
        *maps: nn.Linear,
        norm: nn.LayerNorm | None = None,
        zero: int = 128,
        least: float | None = None,
    ) -> None:
        weight, self.bias = joined(maps)
        self.per_width: Tensor | None = None
        if norm is not None:
            width = channel_widths(norm)  # (K,)
            self.per_width, weight = width.reciprocal(), weight * width
        self.matrix = IntegerMatrix(weight, largest_weight())
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
        mapped = self.matrix.product(stored, self.zero)
        torch.addcmul(self.bias, mapped, step, out=out)


class FixedLinear:
    """x W^T + b as `QuantizedLinear` does it, with one scale for all tokens: its range is known.

    Numbers outside of the range become the largest or the smallest number of the range.
    """

    zero = 128

    def __init__(self, *maps: nn.Linear, range: Range, norm: nn.LayerNorm | None = None) -> None:
        weight, self.bias = joined(maps)
        width = range.widths(weight.shape[1])  # (K,)
        if norm is not None:
            width = width * channel_widths(norm)
        self.matrix = IntegerMatrix(weight * width, largest_weight())
        self.step = range.limit / 127
        self.per_step = (self.step * width).reciprocal()
        self.begin = torch.full(weight.shape[1:], self.zero + 0.5)

    def rounded(self, x: Tensor) -> Tensor:
        """x (..., K) in unsigned bytes."""
        shifted = torch.addcmul(self.begin, x, self.per_step).clamp_(0.5, 255.5)
        return shifted.to(torch.int16).to(torch.uint8)  # see `QuantizedLinear.multiply`

    def __call__(self, x: Tensor) -> Tensor:
        return self.matrix.product(self.rounded(x), self.zero, self.step, self.bias)


class FixedFeedForward:
    """GELU(x W^T + b) V^T + c + x, (n, H) -> (n, H). The numbers between the products are bytes.

    The first product rounds its result itself. Its widest outputs are computed in float32.
    """

    def __init__(
        self, feed_forward: FeedForward, norm: nn.LayerNorm, expand: Range, contract: Range
    ) -> None:
        self.expand = FixedLinear(feed_forward.expand, range=expand, norm=norm)
        weight, self.bias = joined([feed_forward.contract])
        wide = [channel for channel, _ in contract.wide]
        self.wide_in = feed_forward.expand.weight.detach()[wide]  # (wide, H)
        self.wide_bias = feed_forward.expand.bias.detach()[wide]
        self.wide_out = weight[:, wide].T.contiguous()  # (wide, H)
        weight[:, wide] = 0
        self.contract = IntegerMatrix(weight, largest_weight())
        self.step = (contract.limit - LEAST) / 255
        self.zero = math.ceil(-LEAST / self.step)

    def __call__(self, x: Tensor) -> Tensor:
        expand, out = self.expand, (self.step, self.zero)
        rounded = expand.rounded(x)
        between = expand.matrix.gelu(rounded, expand.zero, expand.step, expand.bias, out)
        mapped = self.contract.product(between, self.zero, self.step, self.bias).add_(x)
        wide = F.gelu(F.linear(x, self.wide_in, self.wide_bias))  # (n, wide)
        return mapped.addmm_(wide, self.wide_out)


def joined(maps: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The weights (N, K) and the biases (N,) of all maps, as one new matrix and one new vector."""
    weights = torch.cat([part.weight.detach() for part in maps])
    return weights, torch.cat([part.bias.detach() for part in maps])


def rows_of(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """(..., K) cut into blocks (n, K): n rows of `width` numbers fit the caches of all threads."""
    rows = BLOCK * torch.get_num_threads() // width
    return torch.split(x.flatten(0, -2), max(1, rows))


@cache
def largest_weight() -> int:
    """127, or 63 if sums of two products are held in 16 bits, as AVX2's instructions hold them."""
    matrix = IntegerMatrix(torch.full((16, 64), 127.0), 127)
    exact = matrix.product(torch.full((16, 64), 255, dtype=torch.uint8), 0)
    return 127 if bool((exact == 255 * 127 * 64).all()) else 63


class QuantizedLayer(FusedLayer):
    """A `FusedLayer` with its six maps in integers. It reads the output of `norm`.

    `ranges` are for the weights of now. With other weights, each token gets its own scale.
    """

    def __init__(
        self,
        layer: EncoderLayer,
        norm: nn.LayerNorm | None,
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        self.before = (norm,)  # a tuple, because it must not be a submodule of this layer
        self.ranges = ranges
        super().__init__(layer)

    def reads(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float32

    def pack(self) -> None:
        attention, feed_forward = self.attention, self.feed_forward
        maps = attention.query, attention.key, attention.value
        [norm], between = self.before, self.attention_norm
        if "packed_from" in self.__dict__:
            self.ranges = None  # the weights have changed
        if self.ranges is not None:
            project, merge, expand, contract = (self.ranges[name] for name in NAMES)
            self.project: Any = FixedLinear(*maps, range=project, norm=norm)
            self.merge: Any = FixedLinear(attention.output, range=merge)
            self.feed: Any = FixedFeedForward(feed_forward, between, expand, contract)
            return
        self.project = QuantizedLinear(*maps, norm=norm)
        self.merge = QuantizedLinear(attention.output)
        self.expand: Any = QuantizedLinear(feed_forward.expand, norm=between)
        self.contract: Any = QuantizedLinear(feed_forward.contract, zero=32, least=LEAST)
        self.feed = self.feed_by_token

    def feed_by_token(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.contract(F.gelu(self.expand(x)))
        return mapped.add_(x)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        if self.ranges is not None:  # its widest tensor is bytes, so blocks are not faster
            return self.finish_block(mixed.flatten(0, -2), x.flatten(0, -2)).view_as(x)
        width = self.feed_forward.expand.out_features
        blocks = zip(rows_of(mixed, width), rows_of(x, width), strict=True)
        return torch.cat([self.finish_block(*block) for block in blocks]).view_as(x)

    def finish_block(self, mixed: Tensor, x: Tensor) -> Tensor:
        x = self.attention_norm(self.merge(mixed).add_(x))
        x = self.feed_forward_norm(self.feed(x))
        return x


def quantize(model: BertForQuestionAnswering, ranges: Ranges | None = None) -> None:
    """Let a float32 model read with `QuantizedLayer`s. This freezes its weights."""
    layers: Any = model.bert.layers
    if ranges is not None and len(ranges) != len(layers):
        raise PretrainedError(f"ranges for {len(ranges)} layers, but it has {len(layers)}")
    each = [None] * len(layers) if ranges is None else ranges
    quantized = [
        QuantizedLayer(layer, norm, one)
        for layer, norm, one in zip(layers, norms_before(model), each, strict=True)
    ]
    replace_layers(model, quantized, unpadded=True)


def prepare_for_reading(
    model: BertForQuestionAnswering,
    precision: Computed,
    device: torch.device,
    ranges: Ranges | None = None,
) -> None:
    """Move a model to a device, in a precision; on a CPU, give it faster layers.

    "int8" is faster with `ranges`. Raises `InputError` if the device cannot hold the model.
    """
    with device_errors(device):
        model.to(device, HALF.get(precision, torch.float32))
    if precision == "int8":
        quantize(model, ranges)
    elif device.type == "cpu":
        fuse(model)
