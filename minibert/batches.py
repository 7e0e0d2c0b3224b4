"""Windows -> padded batches of similar length, and the order in which they are read."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data.examples import Example
from .features import Feature


class Batch(NamedTuple):
    """Padded windows; every tensor is int64."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T): 1 token, 0 padding
    token_type_ids: Tensor  # (B, T): 0 question, 1 context (0 in a family without segments)
    start_positions: Tensor  # (B,), -1 for a window without a label: the loss ignores it
    end_positions: Tensor  # (B,)

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cuda":  # a copy from pinned memory runs in the background
            return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))
        return Batch(*(tensor.to(device) for tensor in self))


def collate(features: Sequence[Feature], pad_id: int, multiple: int = 1) -> Batch:
    """Windows -> one batch, as long as its longest window, rounded up to a `multiple`."""
    length = max(map(len, features))
    shape = (len(features), length + -length % multiple)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, feature in enumerate(features):
        input_ids[row, : len(feature)] = feature.input_ids
        attention_mask[row, : len(feature)] = 1
        token_type_ids[row, len(feature.prefix) : len(feature)] = feature.context_segment
    labels = [
        (-1, -1) if f.start_position is None else (f.start_position, f.end_position)
        for f in features
    ]
    start_positions, end_positions = torch.tensor(labels).T  # (B, 2) -> two of (B,)
    ids, mask, types = map(torch.from_numpy, (input_ids, attention_mask, token_type_ids))
    return Batch(ids, mask, types, start_positions, end_positions)


def split_batch(
    windows: Sequence[Feature], max_tokens: int, multiple: int = 1
) -> list[Sequence[Feature]]:
    """Split a batch into parts of similar size: at most `max_tokens` tokens, at least one window.

    The padding that `collate` adds with this `multiple` is counted.
    """
    if not windows:
        return []
    longest = max(map(len, windows))
    longest += -longest % multiple
    parts = math.ceil(len(windows) / max(1, max_tokens // longest))
    size = math.ceil(len(windows) / parts)
    return [windows[i : i + size] for i in range(0, len(windows), size)]


def length_batches(features: Sequence[Feature], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of `batch_size` windows, as indices: similar lengths, so they need little padding.

    The order is random, and the same for the same seed. The windows are shuffled, then sorted by
    length within pools of 64 batches, and then the batches are shuffled.
    """
    generator = random.Random(seed)
    order = list(range(len(features)))
    generator.shuffle(order)
    batches = []
    for i in range(0, len(order), 64 * batch_size):
        pool = sorted(order[i : i + 64 * batch_size], key=lambda k: len(features[k]))
        batches += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    generator.shuffle(batches)
    return batches


# The shortest window of a batch has at least this share of the longest one's tokens. If there are
# few windows, several small batches take less time than one batch with much padding.
SHORTEST = 0.7


def token_batches(
    features: Sequence[Feature], max_tokens: int, multiple: int = 1, padded: bool = True
) -> list[list[int]]:
    """Batches of windows, longest first, as indices: up to `max_tokens` tokens.

    With `padded`, the padding that `collate` adds with this `multiple` is counted. A batch has at
    least one window. Its shortest window has at least `SHORTEST` times the tokens of its longest
    one. The longest windows come first: if memory is too small, the error comes at once.
    """
    batches: list[list[int]] = []
    tokens = longest = 0
    for k in sorted(range(len(features)), key=lambda k: -len(features[k])):
        length = len(features[k])
        fits = batches and length >= SHORTEST * longest
        counted = longest + -longest % multiple if padded and fits else length
        if not fits or tokens + counted > max_tokens:
            batches.append([])
            tokens, longest = 0, length
            counted = length + -length % multiple if padded else length
        batches[-1].append(k)
        tokens += counted
    return batches


# This is added to the characters of each question, because its windows and arrays need memory too.
QUESTION_CHARACTERS = 192


def chunks(examples: Iterable[Example], characters: int, first: int) -> Iterator[list[Example]]:
    """Group examples until a group reaches `characters`.

    The first group has `first` characters, and each next group has twice as many, up to
    `characters`. If the iterator raises an error, the examples before it are yielded first.
    """
    chunk: list[Example] = []
    size = 0
    enough = min(first, characters)
    try:
        for example in examples:
            chunk.append(example)
            size += QUESTION_CHARACTERS + len(example.question) + len(example.context)
            if size >= enough:
                yield chunk
                chunk, size = [], 0
                enough = min(2 * enough, characters)
    except Exception:  # a caller's iterator can raise anything
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
