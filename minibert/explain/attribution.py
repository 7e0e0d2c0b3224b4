"""Which words an answer depends on: its log-probability, and two ways to divide it among the words.

Occlusion leaves a word or a sentence out and asks again (Zeiler and Fergus, arXiv:1311.2901,
section 4.1). Integrated gradients divide log p(answer) among the words (Sundararajan et al.,
arXiv:1703.01365, section 3). Both use the probability over all windows, as `qa(...)` does.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ..batches import collate
from ..config import Attention
from ..features import Feature
from ..pretrained import SkipInit
from ..qa import BertForQuestionAnswering
from ..settings import Calibration
from ..spans import Array, WindowLogits, drop_blanks, merge_windows

# A sentence: up to its full stop and the quotation marks after it, or to an empty line.
SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"'”’)\]]*(?=\s|\Z)|[。！？؟।]+|(?=\n\s*\n)|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Occlusion:
    """The answer after a word of the question or a sentence of the context was left out."""

    side: str  # "question" or "context"
    start: int  # the part that is left out: code points, end exclusive
    end: int
    log_p: float | None  # of the explained answer; None if it was in the left-out sentence
    answer: str  # the best answer now
    score: float


@dataclass(frozen=True, slots=True)
class Gradients:
    """Integrated gradients of log p(answer) for each word: the sum is log_p - baseline_log_p."""

    question: tuple[float, ...]
    context: tuple[float, ...]
    log_p: float  # of the answer, in float32
    baseline_log_p: float  # the same with [PAD]'s vector for every word
    steps: int
    gap: float  # the error of this sum, as a share of the difference


@dataclass(frozen=True, slots=True)
class Attribution:
    """Which words log p(answer) depends on."""

    occlusions: tuple[Occlusion, ...]
    gradients: Gradients


@dataclass(frozen=True, slots=True)
class Candidates:
    """The C spans that compete in one softmax, by their positions in the windows' logits.

    Spans of the same characters form one group, and the best of a group counts. With `no_answer`,
    "no answer" is one more group; its characters are (0, 0).
    """

    windows: Tensor  # (C,) int64
    starts: Tensor  # (C,) in tokens of the window's context
    ends: Tensor  # (C,) inclusive
    groups: Tensor  # (C,) indices into `characters`
    characters: Array  # sorted: start * 2 ** 32 + end
    no_answer: bool
    calibration: Calibration

    @classmethod
    def of(
        cls,
        features: Sequence[Feature],
        max_answer_len: int,
        no_answer: bool,
        calibration: Calibration,
    ) -> "Candidates":
        blank = [np.zeros(f.token_end - f.token_start + 1, dtype=np.float32) for f in features]
        first = np.array([f.token_start for f in features])
        logits = [WindowLogits(int(k), b, b) for k, b in zip(first, blank, strict=True)]
        grid, source_window = merge_windows(logits, max_answer_len)
        drop_blanks(grid, features[0].context.offsets)
        legal = np.flatnonzero(grid.ravel() > -np.inf)
        i, k = np.divmod(legal, grid.shape[1])
        windows = source_window[legal].astype(np.int64)
        offsets = features[0].context.offsets.astype(np.int64)
        keys, groups = np.unique((offsets[i, 0] << 32) + offsets[i + k, 1], return_inverse=True)
        i -= first[windows]
        source, starts, ends, group = map(torch.from_numpy, (windows, i, i + k, groups))
        return cls(source, starts, ends, group, keys, no_answer, calibration)

    def find(self, start: int, end: int) -> int | None:
        """The group of the spans of these characters; None if no span has exactly these."""
        if end == 0:
            return len(self.characters)
        equal = np.flatnonzero(self.characters == (start << 32) + end)
        return int(equal[0]) if len(equal) else None

    def log_p(self, start: Tensor, end: Tensor, nulls: Tensor) -> Tensor:
        """Log-probabilities of all groups, (..., groups), in float64; differentiable.

        `start` and `end` are (..., W, T): logits of the windows' contexts, `nulls` (..., W).
        """
        start, end = start.double(), end.double()
        spans = start[..., self.windows, self.starts] + end[..., self.windows, self.ends]  # (.., C)
        best = spans.new_full((*spans.shape[:-1], len(self.characters)), -torch.inf)
        best = best.scatter_reduce(-1, self.groups.expand_as(spans), spans, "amax")
        if self.no_answer:
            null = nulls.double().amin(-1, keepdim=True) - self.calibration.null_threshold
            best = torch.cat((best, null), dim=-1)
        return (best / self.calibration.temperature).log_softmax(-1)

    def log_p_of(self, windows: Sequence[WindowLogits], start: int, end: int) -> float | None:
        """Log-probability of the span of these characters; None if no span has exactly these."""
        group = self.find(start, end)
        if group is None:
            return None
        sides = [torch.from_numpy(np.stack((w.start_logits, w.end_logits), 1)) for w in windows]
        start_logits, end_logits = pad_sequence(sides, batch_first=True).unbind(-1)  # (W, T) each
        nulls = torch.tensor([sum(window.null_logits) for window in windows])
        return float(self.log_p(start_logits, end_logits, nulls)[group])


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """The place of each sentence of a text, roughly: an abbreviation also ends a sentence.

    >>> text = 'He said "Stop!" It was 3.14 m. 終わり。はい。'
    >>> [text[a:b] for a, b in sentences(text)]
    ['He said "Stop!"', 'It was 3.14 m.', '終わり。', 'はい。']
    """
    return (match.span() for match in SENTENCE.finditer(text))


def without(text: str, start: int, end: int) -> str:
    """The text without these characters and the white space after them."""
    return text[:start] + text[end:].lstrip()


def plain(
    model: BertForQuestionAnswering, attention: Attention = "sdpa"
) -> BertForQuestionAnswering:
    """A copy in float32 without fused or quantized layers: its inputs can have gradients, and with
    "eager" it can return its attention weights.

    Weights that are float32 already are shared, not copied.
    """
    with torch.device("meta"), SkipInit():
        copy = BertForQuestionAnswering(model.config, attention)
    copy.load_state_dict({k: t.float() for k, t in model.state_dict().items()}, assign=True)
    return copy.requires_grad_(False).eval()


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    vectors: Tensor,
    baseline: Tensor,
    steps: int,
    at_once: int = 1,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """The contribution of each vector to a function's value: (..., H) -> (...).

    This is (x - x') times the mean gradient on the straight line from the baseline x' to x: formula
    (1) of the paper, with the integral computed at the midpoints of `steps` equal parts.
    `function` maps (S, ..., H) to (S,). It gets `at_once` points of the line in one call.
    """
    total = torch.zeros_like(vectors)
    for places in torch.split(((torch.arange(steps) + 0.5) / steps).to(vectors), at_once):
        along = places.view(-1, *[1] * vectors.dim())
        points = (baseline + along * (vectors - baseline)).requires_grad_()  # (S, ..., H)
        (gradients,) = torch.autograd.grad(function(points).sum(), points)
        total += gradients.sum(0)
        on_step(len(places))
    return (total / steps * (vectors - baseline)).sum(-1)


class WordVectors:
    """log p(answer) as a function of the word vectors in all windows of a text."""

    def __init__(
        self,
        model: BertForQuestionAnswering,
        features: Sequence[Feature],
        words: Array,
        pad_id: int,
        candidates: Candidates,
        group: int,
        batch_size: int,
    ) -> None:
        """`words` (W, T) marks the tokens that are words. The other tokens have the same
        vectors at the baseline.
        """
        self.model = model
        self.batch = collate(features, pad_id).to(model.head.S.device)
        self.context = len(features[0].prefix)  # its first position in every window
        self.candidates, self.group, self.batch_size = candidates, group, batch_size
        table = model.bert.embeddings.word
        with torch.no_grad():
            self.vectors = table(self.batch.input_ids)  # (W, T, H)
            chosen = torch.from_numpy(words)[..., None].to(self.vectors.device)
            self.baseline = torch.where(chosen, table.weight[pad_id], self.vectors)

    def read(self, vectors: Tensor, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """(B, T, H) word vectors -> (2, B, T) logits. `ids` only say where padding is."""
        table = self.model.bert.embeddings.word
        hook = table.register_forward_hook(lambda module, inputs, output: vectors)
        try:
            out = self.model(ids, mask, segments)
        finally:
            hook.remove()
        return torch.stack((out.start_logits, out.end_logits))

    def log_p(self, points: Tensor) -> Tensor:
        """(S, W, T, H) -> (S,) log-probabilities of the answer.

        If there are several batches, each is read again when its gradients are computed. So memory
        holds only one batch at a time.
        """
        batch = self.batch
        whole = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        rows = [points.flatten(0, 1), *(t.repeat(len(points), 1) for t in whole)]
        parts = list(zip(*(torch.split(t, self.batch_size) for t in rows), strict=True))
        if len(parts) == 1:
            logits = self.read(*parts[0])
        else:
            read = [checkpoint(self.read, *part, use_reentrant=False) for part in parts]
            logits = torch.cat(read, dim=1)  # (2, S * W, T)
        start, end = logits.view(2, *points.shape[:-1]).cpu()  # (S, W, T) for start and for end
        context = slice(self.context, None)
        nulls = start[..., 0] + end[..., 0]
        return self.candidates.log_p(start[..., context], end[..., context], nulls)[:, self.group]
