"""Ranges for reading in 8-bit integers: how large the inputs of a layer's maps are in sample texts.

With a range that is known before, numbers can be rounded inside the matrix product before them, and
nobody must search the largest number of each token. Few channels are much wider than all others:
in BERT, [CLS] has numbers ten times as large as any other token, but only in one or two channels
("massive activations", arXiv:2402.17762). So a range is one limit for nearly all channels, and the
`WIDE` widest channels have limits of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PretrainedError
from ..qa import BertForQuestionAnswering

WIDE = 4
# The limit is this share of the largest number in the samples: larger numbers are cut off, and all
# others have smaller steps. On 60 SQuAD dev questions the logits then differ from float32's by
# 0.065 (root of the mean square), as with a scale for each token; 0.073 with 1.0, 0.10 with 0.6.
SHARE = 0.8
NAMES = ("project", "merge", "expand", "contract")  # the maps of a layer, as in `FusedLayer`
# Assumed largest value in a channel of LayerNorm's output, in standard deviations. It is used when
# no range is known, and as the unit of ranges.
WIDTH = 4.0


@dataclass(frozen=True)
class Range:
    """The largest absolute values of a map's input (..., K)."""

    limit: float  # of all channels except `wide`
    wide: tuple[tuple[int, float], ...]  # channels and their largest absolute values

    def widths(self, channels: int) -> Tensor:
        """(K,): the largest absolute value of each channel, divided by `limit`; at least 1."""
        widths = torch.ones(channels)
        for channel, largest in self.wide:
            widths[channel] = max(1.0, largest / self.limit)
        return widths


Ranges = Sequence[Mapping[str, Range]]  # for each layer, by name of the map


def channel_widths(norm: nn.LayerNorm) -> Tensor:
    """(K,): how wide each channel of LayerNorm's output is, from its gain and bias."""
    width = WIDTH * norm.weight.detach().abs() + norm.bias.detach().abs()
    return width.clamp(min=1e-3 * float(width.max()))


def norms_before(model: BertForQuestionAnswering) -> list[nn.LayerNorm | None]:
    """For each layer, the LayerNorm whose output it reads; None if a map is in between."""
    embeddings = model.bert.embeddings
    layers: Any = model.bert.layers
    first = embeddings.norm if embeddings.project is None else None
    return [first, *(layer.feed_forward_norm for layer in layers[:-1])]


@contextmanager
def measured_ranges(model: BertForQuestionAnswering) -> Iterator[list[dict[str, Range]]]:
    """The ranges of all that a plain float32 model reads inside the `with`; filled at its end.

    Numbers from LayerNorm are divided by their `channel_widths`. Padding counts, so read windows
    without padding.
    """
    largest: dict[tuple[int, str], Tensor] = {}
    hooks = []

    def watch(k: int, name: str, part: nn.Module, norm: nn.LayerNorm | None) -> None:
        def note(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2)  # (n, K)
            x = (x if norm is None else x / channel_widths(norm)).abs().amax(0)
            largest[k, name] = torch.maximum(largest.get((k, name), x), x)

        hooks.append(part.register_forward_pre_hook(note))

    layers: Any = model.bert.layers
    for k, (layer, norm) in enumerate(zip(layers, norms_before(model), strict=True)):
        attention, feed_forward = layer.attention, layer.feed_forward
        watch(k, "project", attention.query, norm)
        watch(k, "merge", attention.output, None)
        watch(k, "expand", feed_forward.expand, layer.attention_norm)
        watch(k, "contract", feed_forward.contract, None)
    ranges: list[dict[str, Range]] = []
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()
    ranges += [{name: range_of(largest[k, name]) for name in NAMES} for k in range(len(layers))]


def range_of(largest: Tensor) -> Range:
    """From the largest absolute value of each channel (K,).

    >>> range_of(torch.tensor([1.0, 25.0, 2.0, 1.5, 3.0, 4.0]))
    Range(limit=1.2, wide=((1, 25.0), (5, 4.0), (4, 3.0), (2, 2.0)))
    """
    top = largest.topk(WIDE + 1)
    top.values[-1] *= SHARE
    *widest, limit = (float(f"{value:.4g}") for value in top.values.tolist())
    return Range(limit, tuple(zip(top.indices.tolist(), widest, strict=False)))


def ranges_to_json(ranges: Ranges) -> list[dict[str, list[Any]]]:
    """[limit, [channel, largest], ...] for each map of each layer."""
    return [
        {name: [one.limit, *map(list, one.wide)] for name, one in layer.items()} for layer in ranges
    ]


def stored_ranges(config: Mapping[str, Any]) -> Ranges | None:
    """The ranges in a `config.json`, under "minibert"; None without them.

    Raises `PretrainedError` if they are not what `ranges_to_json` writes.
    """
    stored = config.get("minibert", {}).get("ranges")
    if stored is None:
        return None
    try:
        ranges = [
            {
                name: Range(
                    float(layer[name][0]), tuple((int(k), float(v)) for k, v in layer[name][1:])
                )
                for name in NAMES
            }
            for layer in stored
        ]
        if not all(one.limit > 0 for layer in ranges for one in layer.values()):
            raise ValueError("a limit is not positive")
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise PretrainedError(f"config: minibert: ranges: {error}") from error
    return ranges
