"""Faster reading on a CPU: an encoder layer in kernels that each do several steps at once.

`nn.Linear` in bfloat16 first copies the bias to every row of the output, then has oneDNN add the
product to it; GELU, and the sum with a layer's input, each read and write all of it once more. Here
one kernel does each of these together, queries, keys and values are one product, and the weights
are stored once in the order that the kernel reads. The kernels are oneDNN's: those that
`torch.compile` puts in their place (torch/_inductor/fx_passes/mkldnn_fusion.py), for which no
compiler is needed. They have no gradient.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..model import EncoderLayer

PACKED = ("project", "merge", "expand", "contract")  # a layer's maps for the kernels


class FusedLayer(EncoderLayer):
    """An `EncoderLayer` to read with. It takes over the parts of `layer`: weights keep their names.

    In training mode, and where gradients are recorded, it computes as `layer` does.
    """

    def __init__(self, layer: EncoderLayer) -> None:
        nn.Module.__init__(self)
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.training = layer.training
        self.pack()
        self.register_load_state_dict_post_hook(repack)  # type: ignore[no-untyped-call]

    def pack(self) -> None:
        """Copy the weights for the kernels."""
        attention, feed_forward = self.attention, self.feed_forward
        self.project = PackedLinear(attention.query, attention.key, attention.value)
        self.merge = PackedLinear(attention.output)
        self.expand = PackedLinear(feed_forward.expand)
        self.contract = PackedLinear(feed_forward.contract)

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights can't be pickled, nor copied."""
        return {k: v for k, v in self.__dict__.items() if k not in PACKED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pack()

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.training or torch.is_grad_enabled():
            return super().forward(x, mask)
        mixed, probabilities = self.mix(self.project(x), mask)
        return self.finish(mixed, x), probabilities

    def read_unpadded(self, x: Tensor, lengths: list[int]) -> Tensor:
        """(n, H) -> (n, H): windows of these lengths, one after another."""
        windows = self.project(x).split_with_sizes(lengths)  # of (T, 3H)
        return self.finish(torch.cat([self.mix(window[None])[0][0] for window in windows]), x)

    def mix(self, projected: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Attention from queries, keys and values (B, T, 3H): `SelfAttention.mix`."""
        q, k, v = (self.attention.split_heads(part) for part in projected.chunk(3, dim=-1))
        return self.attention.mix(q, k, v, mask)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What follows attention in the layer that reads x. It reads each token alone."""
        x = self.attention_norm(self.merge.plus(mixed, x))
        x = self.feed_forward_norm(self.contract.plus(self.expand(x, "gelu"), x))
        return x


def repack(layer: FusedLayer, _: object) -> None:
    layer.pack()


class PackedLinear:
    """x W^T + b of one or more maps, one after another in the last dimension."""

    def __init__(self, *maps: nn.Linear) -> None:
        weight = torch.cat([part.weight.detach() for part in maps])
        self.bias = torch.cat([part.bias.detach() for part in maps])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor, then: Literal["none", "gelu"] = "none") -> Tensor:
        """The result, or the erf GELU of it."""
        # with AVX2 oneDNN's GELU takes three times as long as torch's
        apart = then == "gelu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none" if apart else then, [], "none"
        )
        return torch.ops.aten.gelu_(mapped) if apart else mapped

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x W^T + b."""
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, "add"
        )
        return added


def supported(dtype: torch.dtype) -> bool:
    """Whether this torch has the kernels, and this CPU is one of those they were measured on."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
