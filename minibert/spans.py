"""Span search: start and end logits -> grid of legal spans -> the best spans over all windows.

BERT (arXiv:1810.04805v2) section 4.2: a span's score is S.T_i + E.T_j, and the best span with
j >= i is the prediction. This module compares every legal span of every window and skips none.

Here T is a number of context tokens: those in one window. If a function takes the offsets of the
whole context, T counts the tokens of the whole context. K is the length of the longest span. "Null"
is SQuAD v2.0's name for the answer "no answer".
"""

import math
import random
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .data.metric import normalize_answer
from .errors import InputError
from .settings import UNCALIBRATED, AnswerSettings, Calibration

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class WindowLogits:
    """The logits of one window's context tokens: no other token can be in an answer."""

    token_start: int  # position of the window's first token in the context
    start_logits: Array  # (T,) float32
    end_logits: Array  # (T,) float32
    null_logits: tuple[float, float] = (math.nan, math.nan)  # start and end logit of its [CLS]


@dataclass(frozen=True, slots=True)
class Span:
    """A span of the context, in tokens counted from the beginning of the whole context.

    For "no answer", both tokens are -1, and the logits come from a [CLS].
    """

    token_start: int
    token_end: int  # inclusive
    start_logit: float
    end_logit: float
    score: float  # probability among all candidates: the legal spans, and perhaps "no answer"
    window: int = 0  # index of the window that gives its logits

    @property
    def is_null(self) -> bool:
        return self.token_start < 0


def span_grid(start_logits: Array, end_logits: Array, max_answer_len: int) -> Array:
    """All legal spans of one window: grid[i, k] is the score of tokens i to i + k inclusive.

    (T,), (T,) -> (T, K), K = min(max_answer_len, T); -inf if a span would leave the window. The
    grid is float64, where the sum of two float32 numbers is exact: different logits never tie.

    >>> span_grid(np.array([1.0, 5.0, 0.0]), np.array([2.0, 0.0, 4.0]), max_answer_len=2)
    array([[  3.,   1.],
           [  5.,   9.],
           [  4., -inf]])
    """
    width = min(max_answer_len, len(end_logits))
    padded = np.full(len(end_logits) + width - 1, -np.inf)
    padded[: len(end_logits)] = end_logits
    ends = np.lib.stride_tricks.sliding_window_view(padded, width)  # (T, K): end logit of i + k
    grid: Array = start_logits.astype(np.float64)[:, None] + ends
    return grid


def surroundings(tokens: int, width: int) -> Array:
    """How much context a window shows around each span: min(tokens to the left, to the right).

    Returns (T, K), laid out like `span_grid`; negative if a span would leave the window.
    """
    i, k = np.ogrid[:tokens, :width]
    nearest: Array = np.minimum(i, tokens - 1 - i - k)
    return nearest


def best_spans(
    windows: Sequence[WindowLogits],
    settings: AnswerSettings = AnswerSettings(),
    offsets: Array | None = None,
    words: Array | None = None,
    calibration: Calibration = UNCALIBRATED,
) -> list[Span]:
    """The `settings.top_k` best spans, best first. If there are fewer spans, all of them.

    `windows` are all windows of one example, in order. Only `top_k`, `max_answer_len` and
    `no_answer` of the settings are used.

    A span that several windows contain counts once. Its logits come from the window that shows the
    most context around it (`surroundings`), or from the first such window. With the `offsets`
    (T, 2) of the context's tokens, spans without text are left out. Of several spans with the same
    characters, only the best one counts then. (The pieces of one Hangul syllable make such spans.)
    `Span.score` is the softmax of start_logit + end_logit over all these candidates. If logits are
    equal, the earlier start comes first, then the shorter span.

    `words` (T, 2) gives for each token the characters of its whole word. With it, only the best of
    the spans that cover the same words is returned, with its own score: nothing is summed.

    With `no_answer`, "no answer" is one more candidate. Each window gives it a logit: start_logit +
    end_logit of its [CLS]. The lowest of these counts. "No answer" is then always in the list, in
    addition to the `top_k` spans: at its rank, or at the end if it isn't among the best.

    The threshold of the `calibration` is subtracted from the logit of "no answer", and in the
    softmax all logits are divided by its temperature. The order of the spans and the returned
    logits stay the same.

    Raises `InputError` for logits that are not finite.

    >>> import minibert
    >>> qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    >>> [reading] = qa.read([minibert.Example("1", "Who lit the lamp?", "Ada lit the lamp.")])
    >>> [span] = minibert.best_spans(reading.windows)
    >>> span.token_start, span.token_end  # tokens of the context, both inclusive
    (0, 0)
    """
    for window in windows:
        finite = np.isfinite(window.start_logits).all() and np.isfinite(window.end_logits).all()
        if not finite or (settings.no_answer and not math.isfinite(sum(window.null_logits))):
            raise InputError("logits are not finite: check the model's weights and precision")

    grid, source_window = candidate_grid(windows, settings.max_answer_len, offsets)
    null_logit = null_candidate(windows, settings, calibration)
    temperature = calibration.temperature
    top, total = softmax_total(grid, null_logit, temperature)
    if words is not None:
        merge_characters(grid, words)

    flat = grid.ravel()
    count = min(settings.top_k, int(np.count_nonzero(flat > -np.inf)))
    # Find all spans with at least the logit of the last wanted span, then sort only these. The sort
    # is stable: spans with equal logits keep their order.
    threshold = np.partition(flat, -count)[-count]
    reached = np.flatnonzero(flat >= threshold)
    chosen = reached[np.argsort(-flat[reached], kind="stable")][:count]
    spans = []
    for flat_index in chosen.tolist():
        i, k = divmod(flat_index, grid.shape[1])
        source = int(source_window[flat_index])
        window = windows[source]
        start_logit = float(window.start_logits[i - window.token_start])
        end_logit = float(window.end_logits[i + k - window.token_start])
        score = math.exp((flat[flat_index] - top) / temperature) / total
        spans.append(Span(i, i + k, start_logit, end_logit, score, source))
    if settings.no_answer:
        null_logits = least_null_logits(windows)
        odds = sum(null_logits) - flat[chosen]
        rank = int(np.count_nonzero(odds <= calibration.null_threshold))
        null_score = math.exp((null_logit - top) / temperature) / total
        source = [window.null_logits for window in windows].index(null_logits)
        spans.insert(rank, Span(-1, -1, *null_logits, null_score, source))
    return spans


def least_null_logits(windows: Sequence[WindowLogits]) -> tuple[float, float]:
    """The logits of "no answer": of all windows, the two logits of [CLS] with the lowest sum."""
    return min((window.null_logits for window in windows), key=sum)


def null_candidate(
    windows: Sequence[WindowLogits], settings: AnswerSettings, calibration: Calibration
) -> float:
    """The logit with which "no answer" competes; -inf if it is not allowed."""
    if not settings.no_answer:
        return -math.inf
    return sum(least_null_logits(windows)) - calibration.null_threshold


def softmax_total(grid: Array, null_logit: float, temperature: float) -> tuple[float, float]:
    """The top logit, and the sum over all candidates of exp((logit - top) / temperature)."""
    top = max(float(grid.max()), null_logit)
    total = float(np.exp((grid - top) / temperature).sum())
    return top, total + math.exp((null_logit - top) / temperature)


def scores_of_best(
    windows: Sequence[WindowLogits],
    temperatures: Array,
    context: str,
    offsets: Array,
    max_answer_len: int = 30,
) -> Array:
    """The scores of the best span and of its text at each temperature, without "no answer".

    (M,) temperatures -> (2, M): the scores of `best_spans` and of `text_scores`.
    """
    grid, _ = candidate_grid(windows, max_answer_len, offsets)
    i, k = divmod(int(grid.argmax()), grid.shape[1])
    text = context[offsets[i, 0] : offsets[i + k, 1]]
    [logits] = logits_of_texts([normalize_answer(text)], grid, context, offsets).values()
    scores: Array = np.empty((2, len(temperatures)))
    for k, temperature in enumerate(temperatures.tolist()):
        top, total = softmax_total(grid, -math.inf, temperature)
        scores[:, k] = 1 / total, np.exp((logits - top) / temperature).sum() / total
    return scores


def text_scores(
    texts: Sequence[str],
    grid: Array,
    null_logit: float,
    context: str,
    places: Array,
    temperature: float,
) -> list[float]:
    """For each answer's text, the probability that this *text* is right, wherever it occurs.

    A softmax at this temperature gives each candidate a probability. These are added up for texts
    that are equal after `normalize_answer`. Over all different texts, the results sum to 1.

    `grid` is the `candidate_grid` of the example. `null_logit` is its `null_candidate`; the text of
    this candidate is "". The text of a span goes from the first character of its first token to the
    end of its last token: `places` (T, 2).
    """
    wanted = [normalize_answer(text) for text in texts]
    logits = logits_of_texts(set(wanted), grid, context, places)
    if "" in logits:
        logits[""] = np.append(logits[""], null_logit)
    top, total = softmax_total(grid, null_logit, temperature)
    scores = {
        text: float(np.exp((values - top) / temperature).sum()) / total
        for text, values in logits.items()
    }
    return [scores[text] for text in wanted]


def logits_of_texts(
    wanted: Collection[str], grid: Array, context: str, places: Array
) -> dict[str, Array]:
    """For each of these normalised texts, the logits of all spans in the grid that have this text.

    The grid is read once, however many texts are wanted.
    """
    # Equal texts have equal sums (see `letter_sums`). Few spans have one of the wanted sums, so
    # only the texts of these few are normalised and compared.
    before = letter_sums(context)
    padded = np.zeros(len(grid) + grid.shape[1] - 1, dtype=np.uint64)
    padded[: len(grid)] = before[places[:, 1]]
    sums = np.lib.stride_tricks.sliding_window_view(padded, grid.shape[1])  # (tokens, K)
    sums = (sums - before[places[:, 0], None]).ravel()
    wanted_sums = np.array([letter_sums(text)[-1] for text in wanted], dtype=np.uint64)
    # A table of the last 16 bits of the wanted sums excludes nearly all spans in one fast step
    wanted_bits = np.zeros(2**16, dtype=bool)
    wanted_bits[wanted_sums.astype(np.uint16)] = True
    likely = np.flatnonzero(wanted_bits[sums.astype(np.uint16)] & (grid > -np.inf).ravel())
    likely = likely[np.isin(sums[likely], wanted_sums)]

    i, k = np.divmod(likely, grid.shape[1])
    bounds = zip(places[i, 0].tolist(), places[i + k, 1].tolist(), strict=True)
    normalized = cache(normalize_answer)
    spans: dict[str, list[int]] = {text: [] for text in wanted}
    for index, (start, end) in zip(likely.tolist(), bounds, strict=True):
        text = normalized(context[start:end])
        if text in spans:
            spans[text].append(index)
    return {text: grid.ravel()[np.array(s, dtype=np.intp)] for text, s in spans.items()}


def letter_sums(text: str) -> Array:
    """For each place in a text, a sum over the letters before it: (len(text) + 1,), modulo 2^64.

    Each letter has a random number. Characters that `normalize_answer` removes count 0, and the
    letters of "a", "an" and "the" do too. So texts that are equal after `normalize_answer` have
    equal sums.

    >>> sums = letter_sums("The U.S., us")
    >>> bool(sums[8] - sums[0] == sums[12] - sums[9])
    True
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    letters, which = np.unique(codes, return_inverse=True)
    numbers = np.array([letter_number(chr(code)) for code in letters.tolist()], dtype=np.uint64)
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum(numbers[which], out=sums[1:])
    return sums


@cache
def letter_number(character: str) -> int:
    """The 64-bit number of a character in `letter_sums`."""
    # "\u03c2" is the form that Python gives a small sigma at the end of a word
    lower = character.lower().replace("\u03c2", "\u03c3")
    counted = (c for c in lower if not c.isspace() and c not in string.punctuation + "anthe")
    return sum(random.Random(ord(c)).getrandbits(64) for c in counted) % 2**64


def candidate_grid(
    windows: Sequence[WindowLogits], max_answer_len: int, offsets: Array | None
) -> tuple[Array, Array]:
    """All spans that can be answers, as `merge_windows` gives them.

    With `offsets`, spans without text are -inf. Of several spans with the same characters, all but
    the best one are -inf too.
    """
    grid, source_window = merge_windows(windows, max_answer_len)
    if offsets is not None:
        drop_blanks(grid, offsets)
        merge_characters(grid, offsets)
    return grid, source_window


def merge_windows(windows: Sequence[WindowLogits], max_answer_len: int) -> tuple[Array, Array]:
    """The legal spans of a whole context, and for each span the window that gives its logits.

    Returns a grid (T, K), laid out like `span_grid`, and the indices of the windows, (T * K,).
    """
    width = min(max_answer_len, max(len(w.start_logits) for w in windows))
    if len(windows) == 1:  # most examples: the same result in less time
        grid = span_grid(windows[0].start_logits, windows[0].end_logits, width)
        return grid, np.broadcast_to(np.int32(0), grid.size)
    tokens = max(w.token_start + len(w.start_logits) for w in windows)
    grid = np.full((tokens, width), -np.inf)
    shown = np.full((tokens, width), -1, dtype=np.int32)
    source_window = np.zeros((tokens, width), dtype=np.int32)
    for index, window in enumerate(windows):
        one = span_grid(window.start_logits, window.end_logits, width)  # (T, K)
        here = np.s_[window.token_start : window.token_start + len(one), : one.shape[1]]
        around = surroundings(*one.shape)
        better = around > shown[here]
        grid[here][better] = one[better]
        shown[here][better] = around[better]
        source_window[here][better] = index
    return grid, source_window.ravel()


def drop_blanks(grid: Array, offsets: Array) -> None:
    """Set all spans without text to -inf: all their tokens are white space (see `Pieces`)."""
    starts, ends = offsets.T
    if (starts < ends).all():
        return
    for k in range(grid.shape[1]):
        grid[: len(starts) - k, k][starts[: len(starts) - k] >= ends[k:]] = -np.inf


def merge_characters(grid: Array, offsets: Array) -> None:
    """Keep the best of the spans that cover the same characters, and set the others to -inf.

    `grid` is laid out like `span_grid`; `offsets` (T, 2) are each token's first character and end.
    """
    starts, ends = offsets.astype(np.int64).T
    if (np.diff(starts) > 0).all() and (np.diff(ends) > 0).all():  # no character has two tokens
        return
    flat = grid.ravel()  # a view
    legal = np.flatnonzero(flat > -np.inf)
    i, k = np.divmod(legal, grid.shape[1])
    characters = starts[i] * (ends.max() + 1) + ends[i + k]
    order = np.lexsort((legal, -flat[legal], characters))  # the best of each group comes first
    repeated = np.diff(characters[order], prepend=-1) == 0
    flat[legal[order[repeated]]] = -np.inf


def argmax_span(start_logits: Array, end_logits: Array) -> tuple[int, int]:
    """The blog post's first decoder: the best start and the best end, each on its own.

    It looks at all tokens of the window, also at the question and [SEP]. The end can come before
    the start: the span is then empty. Returns (start, end inclusive).
    """
    return int(np.argmax(start_logits)), int(np.argmax(end_logits))


def beam_spans(
    start_logits: Array, end_logits: Array, beam: int = 20
) -> list[tuple[int, int, float]]:
    """The blog post's second decoder: the `beam` best starts with the `beam` best ends.

    It looks at all tokens of the window and at spans of any length, start <= end. It can miss the
    best legal span, and it can return a span in the question. Returns (start, end inclusive,
    start_logit + end_logit), best first.
    """
    starts = np.argsort(start_logits)[::-1][:beam].tolist()
    ends = np.argsort(end_logits)[::-1][:beam].tolist()
    spans = [
        (i, j, float(start_logits[i]) + float(end_logits[j]))
        for i in starts
        for j in ends
        if i <= j
    ]
    return sorted(spans, key=lambda span: span[2], reverse=True)
