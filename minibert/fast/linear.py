"""An encoder layer that reads faster on a CPU: each of its kernels does several steps at once.

In bfloat16, `nn.Linear` first copies the bias to every row of the output, and then oneDNN adds the
product to the output. Two later steps, GELU and the sum with the layer's input, read and write the
whole output again. Here one kernel does such steps together. Queries, keys and values are one
product. The weights are stored once in the order in which the kernel reads them. The kernels are
from oneDNN. `torch.compile` inserts the same kernels (torch/_inductor/fx_passes/mkldnn_fusion.py),
but they need no compiler. They have no gradient.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model import EncoderLayer
from ..qa import BertForQuestionAnswering
from .processor import processor_has
from .unpadded import replace_layers

# The maps of a layer, packed for the kernels, and what we know about the weights that were packed.
PACKED = ("project", "merge", "expand", "contract", "feed", "packed_from")
# Sums below this or above its reciprocal may have lost digits: floats end at 1e-38 and 1e38.
NEAR_ZERO = 1e-30
SAMPLES = 8  # numbers of each matrix that are compared


class FusedLayer(EncoderLayer):
    """An `EncoderLayer` for reading. It takes over the parts of `layer`: weights keep their names.

    In training mode, and when gradients are recorded, it computes as `layer` does. Weights that
    change afterwards are packed again before the next reading: see `Snapshot`.
    """

    packed_from: "Snapshot"

    def __init__(self, layer: EncoderLayer) -> None:
        nn.Module.__init__(self)
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.training = layer.training
        self.refresh()

    def maps(self) -> tuple[nn.Linear, ...]:
        """The six linear maps of the layer."""
        attention, feed_forward = self.attention, self.feed_forward
        projections = attention.query, attention.key, attention.value, attention.output
        return *projections, feed_forward.expand, feed_forward.contract

    def refresh(self) -> None:
        """Pack the weights, unless they are those that were packed last.

        Raises `InputError` if the kernels can't read the weights, for example after `.half()` or
        `.to("cuda")`.
        """
        maps = self.maps()
        if "packed_from" in self.__dict__ and self.packed_from.matches(maps):
            return
        weight = maps[0].weight
        if weight.device.type != "cpu" or not self.reads(weight.dtype):
            raise InputError(
                f"the weights are now {weight.dtype} on {weight.device}, and this model's layers "
                "cannot read them: load it again with from_pretrained(device=..., precision=...)"
            )
        packed_from = Snapshot(maps)
        self.pack()
        self.packed_from = packed_from  # last, because several threads can read at the same time

    def reads(self, dtype: torch.dtype) -> bool:
        """Whether the kernels can read weights of this type."""
        return supported(dtype)

    def pack(self) -> None:
        """Copy the weights for the kernels."""
        attention, feed_forward = self.attention, self.feed_forward
        self.project = PackedLinear(attention.query, attention.key, attention.value)
        self.merge = PackedLinear(attention.output)
        self.expand = PackedLinear(feed_forward.expand)
        self.contract = PackedLinear(feed_forward.contract)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the packed weights, because these can't be pickled or copied."""
        return {k: v for k, v in self.__dict__.items() if k not in PACKED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.refresh()

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.training or torch.is_grad_enabled():
            return super().forward(x, mask)
        self.refresh()
        mixed, probabilities = self.mix(self.project(x), mask)
        return self.finish(mixed, x), probabilities

    def read_unpadded(self, x: Tensor, lengths: list[int]) -> Tensor:
        """(n, H) -> (n, H): windows of these lengths, one after another."""
        self.refresh()
        # Windows of one length that follow each other have their attention in one call. Not with
        # "eager": in bfloat16 oneDNN makes and keeps kernels for each number and length of windows.
        shapes = [(1, length) for length in lengths]  # (B, T)
        if self.attention.attention == "sdpa":
            shapes = [(len(list(same)), length) for length, same in groupby(lengths)]
        groups = self.project(x).split_with_sizes([count * length for count, length in shapes])
        mixed = [
            self.mix_without_largest(group)
            if group.dtype == torch.bfloat16 and shape[0] == 1
            else self.mix(group.view(*shape, -1))[0].flatten(0, 1)  # (B, T, 3H) -> (B * T, H)
            for group, shape in zip(groups, shapes, strict=True)
        ]
        return self.finish(torch.cat(mixed), x)

    def mix_without_largest(self, projected: Tensor) -> Tensor:
        """Attention in one window: queries, keys and values (T, 3H) -> (T, H).

        The softmax divides at the end, and it does not subtract the largest score first. This takes
        half of the time. Sums that are too large or too small for floats are computed by `mix`.
        """
        size = self.attention.head_size
        # (T, 3H) -> three of (N, T, D)
        q, k, v = projected.view(len(projected), 3, -1, size).permute(1, 2, 0, 3)
        scores = q.new_empty(len(q), len(projected), len(projected))  # (N, T, T)
        weights = scores.baddbmm_(q, k.transpose(1, 2), beta=0, alpha=size**-0.5).exp_()
        total = weights.sum(2, keepdim=True, dtype=torch.float32)  # (N, T, 1)
        least, largest = (float(bound) for bound in total.aminmax())
        if not NEAR_ZERO < least <= largest < 1 / NEAR_ZERO:
            return self.mix(projected[None])[0][0]
        mixed: Tensor = (weights @ v).div_(total)
        return mixed.transpose(0, 1).flatten(1)  # (N, T, D) -> (T, H)

    def mix(self, projected: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Attention from queries, keys and values (B, T, 3H): see `SelfAttention.mix`."""
        q, k, v = (self.attention.split_heads(part) for part in projected.chunk(3, dim=-1))
        return self.attention.mix(q, k, v, mask)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The rest of a layer after attention, token by token. x is the input of the layer."""
        x = self.attention_norm(self.merge.plus(mixed, x))
        x = self.feed_forward_norm(self.contract.plus(self.expand(x, "gelu"), x))
        return x


class Snapshot:
    """Recognises weights as long as they are not replaced, moved or changed in place.

    Torch counts changes in place, but not those through `.data`, so some of the numbers are kept
    too. A change through `.data` of other numbers alone is not noticed.
    """

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        weights = [part.weight.detach().flatten() for part in maps]
        self.versions = versions(maps)
        self.views = [flat[:: max(1, len(flat) // SAMPLES)] for flat in weights]
        self.numbers = torch.cat(self.views)

    def matches(self, maps: Sequence[nn.Linear]) -> bool:
        """Whether the weights of these maps are the ones that were packed."""
        return self.versions == versions(maps) and torch.equal(self.numbers, torch.cat(self.views))


def versions(maps: Sequence[nn.Linear]) -> list[tuple[int, int, torch.dtype]]:
    """The place, the number of changes and the type of each weight and bias."""
    tensors = (tensor for part in maps for tensor in (part.weight, part.bias))
    return [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in tensors]


class PackedLinear:
    """x W^T + b for one or more maps. The results are joined along the last dimension."""

    def __init__(self, *maps: nn.Linear) -> None:
        weight = torch.cat([part.weight.detach() for part in maps])
        self.bias = torch.cat([part.bias.detach() for part in maps])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor, then: Literal["none", "gelu"] = "none") -> Tensor:
        """x W^T + b, or the erf GELU of this result."""
        # with AVX2 oneDNN's GELU takes three times as long as torch's
        apart = then == "gelu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none" if apart else then, [], "none"
        )
        return torch.ops.aten.gelu_(mapped) if apart else mapped

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x W^T + b."""
        binary = torch.ops.mkldnn._linear_pointwise.binary
        added: Tensor = binary(x, other, self.weight, self.bias, "add")
        return added


def supported(dtype: torch.dtype) -> bool:
    """Whether this torch has the kernels for `dtype`, and the CPU is of a kind that we measured."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def fuse(model: BertForQuestionAnswering) -> None:
    """Let a model read with `FusedLayer`s, if `supported`. This freezes its weights."""
    dtype = model.head.S.dtype
    if not supported(dtype):
        return
    # AMX multiplies whole tiles, so attention to uneven lengths takes longer than padding
    unpadded = dtype == torch.float32 or not processor_has("amx_bf16")
    layers: Any = model.bert.layers
    replace_layers(model, [FusedLayer(layer) for layer in layers], unpadded)
