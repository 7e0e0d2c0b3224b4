"""Passages: one question and many passages -> one ranking."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from .answers import Answer, answers_of
from .data.examples import Example, validated_example
from .engine import Engine, OnBatch, ignore
from .errors import InputError
from .settings import AnswerSettings


@dataclass(frozen=True, slots=True)
class PassageAnswer(Answer):
    """An answer of `best_of`: `passages[passage][start:end] == answer`."""

    passage: int | None = None  # index of its passage, from 0; None for "no answer"


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
    passages, minus the threshold of the calibration. It always takes part; `settings.no_answer` has
    no effect. Passages may be an iterator; only `top_k` answers of each passage are kept. Raises
    `InputError` if there is no passage, and for a bad passage. The message names its index.
    """
    settings = replace(settings, no_answer=False)  # "no answer" is added below, once for all
    if isinstance(passages, str):
        raise InputError("passages is a str: expected several, as a list of strings")

    def examples() -> Iterator[Example]:
        for index, passage in enumerate(passages):
            yield validated_example(f"passage {index}", question, passage)

    if isinstance(passages, Sequence):
        engine.require_readable(examples())
    temperature, threshold = engine.calibration.temperature, engine.calibration.null_threshold
    best: list[tuple[float, PassageAnswer]] = []  # each answer with its logit
    log_totals = []  # for each passage, the logarithm of the sum over its spans
    null_logits = (math.inf, math.inf)
    for index, reading in enumerate(engine.read(examples(), on_batch)):
        answers = answers_of(reading, settings)
        logits = [answer.start_logit + answer.end_logit for answer in answers]
        log_totals.append(logits[0] / temperature - math.log(answers[0].score))
        best += [
            (logit, PassageAnswer(**asdict(answer), passage=index))
            for logit, answer in zip(logits, answers, strict=True)
        ]
        best = sorted(best, key=lambda item: -item[0])[: settings.top_k]  # stable: keeps ties
        null_logits = min(null_logits, reading.null_logits, key=sum)
    if not log_totals:
        raise InputError("no passages: expected one or more")
    null_logit = sum(null_logits) - threshold
    rank = sum(logit >= null_logit for logit, _ in best)  # as in `best_spans`
    best.insert(rank, (null_logit, PassageAnswer("", 0.0, 0, 0, *null_logits)))
    log_total = float(np.logaddexp.reduce([*log_totals, null_logit / temperature]))
    return [
        replace(answer, score=math.exp(logit / temperature - log_total))
        for logit, answer in best[: settings.top_k]
    ]
