"""Answers: an example that the model has read -> spans of the context's own characters."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from .engine import Reading
from .graphemes import whole_graphemes
from .settings import AnswerSettings, Calibration
from .spans import Array, Span, best_spans, candidate_grid, null_candidate, text_scores


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context: `context[start:end] == answer`, always.

    "No answer" can be an answer too. Then `answer` is "", start and end are 0, and the logits come
    from a [CLS]. A span of a context is never empty.

    >>> import minibert
    >>> answer = minibert.Answer("Ada", 0.92, 20, 23, start_logit=5.5, end_logit=5.25)
    >>> answer.logit
    10.75
    >>> answer.to_dict()["end"]
    23
    """

    answer: str
    score: float  # probability among all candidates of all windows, 0 to 1
    start: int  # code points
    end: int  # code points, exclusive
    start_logit: float  # S . T_i of its first token, in the window with the most context around it
    end_logit: float  # E . T_j of its last token
    # On request, the summed probability of all spans with the same normalised text
    text_score: float | None = None

    @property
    def logit(self) -> float:
        """start_logit + end_logit."""
        return self.start_logit + self.end_logit

    def to_dict(self) -> dict[str, Any]:
        """The fields that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def to_answer(span: Span, context: str, places: Array) -> Answer:
    """A span as an answer; `places` (T, 2) are the characters of the context's tokens."""
    start = end = 0
    if not span.is_null:
        start, end = int(places[span.token_start, 0]), int(places[span.token_end, 1])
    return Answer(context[start:end], span.score, start, end, span.start_logit, span.end_logit)


def answers_of(reading: Reading, settings: AnswerSettings) -> list[Answer]:
    """The `settings.top_k` best answers to an example, best first.

    With `no_answer`, "no answer" is always in the list, in addition to these: at its rank, or at
    the end if it isn't among the best. With `align_to_words`, answers are widened to whole words
    after scoring. If several answers become equal, the best one remains.
    """
    context, calibration, windows = reading.example.context, reading.calibration, reading.windows
    offsets, words = reading.pieces.offsets, None
    if settings.align_to_words:
        words = whole_graphemes(context, reading.pieces.word_offsets())
    places = offsets if words is None else words
    spans = best_spans(windows, settings, offsets, words, calibration)
    answers = [to_answer(span, context, places) for span in spans]
    if settings.text_score:
        grid, _ = candidate_grid(windows, settings.max_answer_len, offsets)
        null_logit = null_candidate(windows, settings, calibration)
        texts, temperature = [answer.answer for answer in answers], calibration.text_temperature
        scores = text_scores(texts, grid, null_logit, context, places, temperature)
        answers = [replace(a, text_score=score) for a, score in zip(answers, scores, strict=True)]
    return answers


def null_odds(reading: Reading, best: Answer) -> float:
    """The logit of "no answer" minus the logit of the best span."""
    return sum(reading.null_logits) - best.logit


def log_total(answers: Sequence[Answer], calibration: Calibration) -> float:
    """The logarithm of the sum of exp(logit / temperature) over all spans of an example.

    `answers` are some of these spans, best first. "No answer" did not compete with them.
    """
    return answers[0].logit / calibration.temperature - math.log(answers[0].score)


def rank_no_answer(
    answers: Sequence[AnyAnswer], null: AnyAnswer, total: float, calibration: Calibration
) -> list[AnyAnswer]:
    """Insert "no answer" at its rank among the spans of one or more examples, and score all anew.

    `answers` are the best spans, best first. `total` is the `log_total` of all spans, also of those
    that are not among the answers. `null` is "no answer" with its logits.
    """
    temperature, threshold = calibration.temperature, calibration.null_threshold
    rank = sum(null.logit - answer.logit <= threshold for answer in answers)
    total = float(np.logaddexp(total, (null.logit - threshold) / temperature))
    ranked = [*answers[:rank], null, *answers[rank:]]
    logits = [answer.logit - threshold * (answer is null) for answer in ranked]
    return [
        replace(answer, score=math.exp(logit / temperature - total))
        for answer, logit in zip(ranked, logits, strict=True)
    ]
