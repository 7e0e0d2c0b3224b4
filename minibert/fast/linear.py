"""Faster reading in bfloat16 on a CPU: a linear map, its bias and its GELU in one kernel.

`nn.Linear` there first copies the bias to every row of the output, then has oneDNN add the product
to it, and GELU reads and writes all of it once more. The kernel is oneDNN's as well: the one that
`torch.compile` puts in their place (torch/_inductor/fx_passes/mkldnn_fusion.py), for which no
compiler is needed. It has no gradient.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..model import FeedForward
from ..qa import BertForQuestionAnswering


class FusedLinear(nn.Module):
    """x W^T + b, and the erf GELU of it where asked for. It shares the weights of `linear`."""

    def __init__(self, linear: nn.Linear, then: Literal["none", "gelu"] = "none") -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.then, [], "none"
        )
        return mapped


class FusedFeedForward(nn.Module):
    """`FeedForward` in two kernels."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.expand = FusedLinear(plain.expand, "gelu")
        self.contract = FusedLinear(plain.contract)

    def forward(self, x: Tensor) -> Tensor:
        contracted: Tensor = self.contract(self.expand(x))  # (B, T, H) -> (B, T, 4H) -> (B, T, H)
        return contracted


def supported() -> bool:
    """Whether this torch and this CPU have the kernels."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def fuse(model: BertForQuestionAnswering) -> None:
    """Have the layers of a model compute by these kernels, where they are `supported`.

    Its weights keep their names and are frozen: from now on it can only be read with.
    """
    if not supported():
        return
    model.requires_grad_(False)
    layers: Any = model.bert.layers
    for layer in layers:
        for name in ("query", "key", "value", "output"):
            setattr(layer.attention, name, FusedLinear(getattr(layer.attention, name)))
        layer.feed_forward = FusedFeedForward(layer.feed_forward)
