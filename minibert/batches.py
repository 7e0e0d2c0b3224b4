"""Windows -> padded batches of like length; and the orders in which they are read."""

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
    start_positions: Tensor  # (B,), -1 for an unlabelled window: the loss ignores it
    end_positions: Tensor  # (B,)

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cuda":  # from pinned memory the copy need not be waited for
            return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))
        return Batch(*(tensor.to(device) for tensor in self))


def collate(features: Sequence[Feature], pad_id: int, multiple: int = 1) -> Batch:
    """Windows -> one batch, padded to its longest, rounded up to a multiple of `multiple`."""
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
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attention_mask),
        torch.from_numpy(token_type_ids),
        start_positions,
        end_positions,
    )


def split_batch(
    windows: Sequence[Feature], max_tokens: int, multiple: int = 1
) -> list[Sequence[Feature]]:
    """A batch in parts of like size: at most `max_tokens` padded tokens, at least one window.

    Padded as `collate` does it with the same `multiple`.
    """
    if not windows:
        return []
    longest = max(map(len, windows))
    longest += -longest % multiple
    parts = math.ceil(len(windows) / max(1, max_tokens // longest))
    size = math.ceil(len(windows) / parts)
    return [windows[i : i + size] for i in range(0, len(windows), size)]


def length_batches(features: Sequence[Feature], batch_size: int, seed: int) -> list[list[int]]:
    """Indices of windows of like length, `batch_size` a batch, so that little is padding.

    The order is random, and the same for the same seed: windows are shuffled, sorted by length
    within pools of 64 batches, and the batches shuffled.
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


# Windows that are read together differ in length no more than this: where few are at hand, several
# small batches take less time than padding does.
SHORTEST = 0.7


def token_batches(
    features: Sequence[Feature], max_tokens: int, multiple: int = 1
) -> list[list[int]]:
    """Indices of windows by falling length, in batches of up to `max_tokens` padded tokens.

    Padded as `collate` does it with the same `multiple`. At least one window a batch, and none with
    less than `SHORTEST` of the longest one's tokens. The longest come first, so that too little
    memory shows at once.
    """
    order = sorted(range(len(features)), key=lambda k: -len(features[k]))
    batches = []
    while order:
        longest = len(features[order[0]])
        size = max(1, max_tokens // (longest + -longest % multiple))
        alike = [k for k in order[:size] if len(features[k]) >= SHORTEST * longest]
        batches.append(alike)
        order = order[len(alike) :]
    return batches


# A question counts as so many characters more than it has: its windows and arrays take memory too.
QUESTION_CHARACTERS = 192


def chunks(examples: Iterable[Example], characters: int, first: int) -> Iterator[list[Example]]:
    """Examples together as long as they have fewer characters; an error comes after those read.

    The first chunk has `first` characters, and each next one twice as many, up to `characters`.
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
    except Exception:  # whatever a caller's iterator raises
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
