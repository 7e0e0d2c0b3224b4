"""Passages: one question and many passages -> one ranking."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

import numpy as np

from .answers import Answer, answers_of, log_total, rank_no_answer
from .data.examples import Example, validated_example
from .engine import ASCII_WORD, Engine, OnBatch, ignore
from .errors import InputError
from .settings import AnswerSettings


@dataclass(frozen=True, slots=True)
class PassageAnswer(Answer):
    """An answer of `best_of`: `passages[passage][start:end] == answer`.

    >>> import minibert
    >>> qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    >>> best = qa.best_of("Who lit the lamp?", ["Bo rang the bell.", "Ada lit the lamp."])[0]
    >>> best.answer, best.passage
    ('Ada', 1)
    """

    passage: int | None = None  # index of its passage, from 0; None for "no answer"
    passages: tuple[int, ...] = ()  # indices of all passages with this text; `passage` is the first


def best_of(
    engine: Engine,
    question: str,
    passages: Iterable[str],
    settings: AnswerSettings,
    on_batch: OnBatch = ignore,
) -> list[PassageAnswer]:
    """The `settings.top_k` best answers to one question in many passages, best first.

    Each score is a probability over the spans of all passages together and "no answer", which means
    that no passage has an answer. The logit of "no answer" is the lowest of all windows of all
    passages, minus the threshold of the calibration. It always takes part. With
    `settings.no_answer`, it is always in the list, in addition to the `top_k` best spans: at its
    rank, or at the end if it isn't among the best.

    If several passages have exactly the same text, this text counts once, and each of its answers
    lists the indices of all these passages. A passage without words is skipped. Passages may be an
    iterator; only `top_k` answers and a short digest of each passage are kept. Raises `InputError`
    if no passage has words, and for a bad passage. The message names its index.
    """
    spans_only = replace(settings, no_answer=False)  # "no answer" is added below, once for all
    if isinstance(passages, str):
        raise InputError("passages is a str: expected several, as a list of strings")
    if isinstance(passages, Sequence):
        engine.require_readable(different_passages(engine, question, passages, []))
    calibration = engine.calibration
    places: list[list[int]] = []
    best: list[tuple[int, Answer]] = []  # with the position of their passage in `places`
    totals = []  # the `log_total` of each passage
    null_logits = (math.inf, math.inf)
    examples = different_passages(engine, question, passages, places)
    for number, reading in enumerate(engine.read(examples, on_batch)):
        answers = answers_of(reading, spans_only)
        totals.append(log_total(answers, calibration))
        best += [(number, answer) for answer in answers]
        best = sorted(best, key=lambda item: -item[1].logit)[: settings.top_k]  # stable: keeps ties
        null_logits = min(null_logits, reading.null_logits, key=sum)
    if not totals:
        raise InputError("no passages with words: expected one or more")
    spans = [
        PassageAnswer(**asdict(answer), passage=places[k][0], passages=tuple(places[k]))
        for k, answer in best
    ]
    null = PassageAnswer("", 0.0, 0, 0, *null_logits)
    total = float(np.logaddexp.reduce(totals))
    return rank_no_answer(spans, null, total, calibration)[: settings.top_k + settings.no_answer]


def different_passages(
    engine: Engine, question: str, passages: Iterable[str], places: list[list[int]]
) -> Iterator[Example]:
    """Yield each passage that has words; of passages with the same text, only the first.

    For each passage that it yields, it adds a list to `places`: the indices of all passages with
    this text. A list is complete when all passages have been read.
    """
    indices: dict[bytes, list[int]] = {}  # by a digest of the text, which is short
    for index, passage in enumerate(passages):
        example = validated_example(f"passage {index}", question, passage)
        digest = blake2b(passage.encode(), digest_size=16).digest()
        if digest in indices:
            indices[digest].append(index)
        elif ASCII_WORD.search(passage) or not engine.tokenizer.encode(passage).blank.all():
            indices[digest] = [index]
            places.append(indices[digest])
            yield example
