"""Evaluation: examples -> predictions -> the official metric."""

import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..answers import Answer, answers_of, log_total, null_odds, rank_no_answer
from ..data.examples import Example
from ..data.metric import best_thresholds, squad_metrics
from ..engine import OnBatch, ignore
from ..errors import DataError, InputError, first_of
from ..files import complete_files, make_folder
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings, Calibration
from ..tokenization import Tokenizer

# A threshold is fitted on at least this many questions with an answer, and as many without one. We
# tried it with 1,000 questions of SQuAD's dev set, each asked about its own paragraph and about a
# similar one without the answer, on 300 random samples of each size. With 50 questions of each
# kind, the chosen threshold costs 1.0 points of F1 compared with the best one; with 5, 5.1 points.
MIN_OF_EACH_KIND = 50


def evaluate(
    qa: QuestionAnswerer,
    examples: Sequence[Example],
    output_dir: str | Path | None = None,
    n_best: int = 20,
    max_answer_len: int = 30,
    on_batch: OnBatch = ignore,
    no_answer: bool = False,
    null_threshold: float | None = None,
    tune_threshold: bool = False,
) -> dict[str, Any]:
    """Answer every example and score the best answers with `squad_metrics`.

    With an `output_dir`, writes `predictions.json` ({id: text}, the format of the official
    scripts), `nbest_predictions.json` ({id: the `n_best` answers with scores and offsets}) and
    `metrics.json` there. No file changes before all are complete. `on_batch` is called with the
    number of windows that have just been read.

    With `no_answer` a question may have no answer. If any of the examples is unanswerable, this is
    always so, and a warning says it. The null odds of a question are the logit of "no answer" minus
    the logit of the best span; they are written to `null_odds.json`. If they exceed
    `null_threshold` (None: the model's own), the prediction is "". `nbest_predictions.json` uses
    the same threshold. The results then include `best_thresholds`.

    With `tune_threshold`, the threshold has the best F1 on one half of the contexts. All results
    are for the other half: under "threshold_0" with threshold 0, under "tuned" with the
    chosen one, and under "best" with the best threshold in hindsight.

    Raises `InputError` for `null_threshold` or `tune_threshold` without `no_answer`, for both
    together, and for examples that `halves` refuses. Raises `DataError` if an id occurs twice.

    >>> import minibert
    >>> qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    >>> answers = {"text": ["Ada"], "answer_start": [0]}
    >>> row = {"id": "1", "question": "Who lit it?", "context": "Ada lit it.", "answers": answers}
    >>> minibert.evaluate(qa, minibert.load_squad([row]))["f1"]
    100.0
    """
    if (tune_threshold or null_threshold is not None) and not no_answer:
        raise InputError("null_threshold and tune_threshold need no_answer")
    if tune_threshold and null_threshold is not None:
        raise InputError("tune_threshold chooses the threshold: leave out null_threshold")
    require_unique_ids(examples)
    tuning, reported = halves(examples) if tune_threshold else ([], examples)
    folder = None if output_dir is None else make_folder(output_dir)  # before the long work
    calibration = qa.calibration
    if null_threshold is not None:
        calibration = replace(calibration, null_threshold=null_threshold)
    warn_of_long_answers(examples, qa.tokenizer, max_answer_len)
    if not no_answer:
        warn_of_unanswerable(examples)
        no_answer = any(example.is_impossible for example in examples)

    settings = AnswerSettings(n_best, max_answer_len)
    spans: dict[str, list[Answer]] = {}  # the best spans of each question
    nulls: dict[str, Answer] = {}
    odds: dict[str, float] = {}
    for reading in qa.read(examples, on_batch):
        key = reading.example.id
        spans[key] = answers_of(reading, settings)
        if no_answer:
            nulls[key] = Answer("", 0.0, 0, 0, *reading.null_logits)
            odds[key] = null_odds(reading, spans[key][0])
    texts = {key: answers[0].answer for key, answers in spans.items()}

    metrics: dict[str, Any]
    if tune_threshold:
        tuned = best_thresholds(texts, odds, tuning)["best_f1_thresh"]
        calibration = replace(calibration, null_threshold=tuned)
        best_there = best_thresholds(texts, odds, reported)["best_f1_thresh"]
        metrics = {
            name: {"threshold": T, **squad_metrics(with_nulls(texts, odds, T), reported)}
            for name, T in (("threshold_0", 0.0), ("tuned", tuned), ("best", best_there))
        }
    else:
        metrics = metrics_of(texts, odds, examples, calibration.null_threshold)
    if folder is not None:
        predictions = with_nulls(texts, odds, calibration.null_threshold)
        rows = {
            key: [answer.to_dict() for answer in answers]
            for key, answers in with_null_answers(spans, nulls, calibration).items()
        }
        files = {"predictions": predictions, "nbest_predictions": rows, "metrics": metrics}
        if no_answer:
            files["null_odds"] = odds
        with complete_files(folder, ["null_odds.json"]) as draft:
            for name, value in files.items():
                text = json.dumps(value, ensure_ascii=False, indent=1)
                (draft / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def metrics_of(
    texts: Mapping[str, str],
    odds: Mapping[str, float],
    examples: Sequence[Example],
    null_threshold: float,
) -> dict[str, float | int]:
    """`squad_metrics` of the predictions; with null odds, also `best_thresholds`."""
    metrics = squad_metrics(with_nulls(texts, odds, null_threshold), examples)
    return metrics | best_thresholds(texts, odds, examples) if odds else metrics


def with_nulls(
    texts: Mapping[str, str], odds: Mapping[str, float], null_threshold: float
) -> dict[str, str]:
    """The predictions: the texts, or "" where the null odds exceed the threshold."""
    return {k: "" if odds.get(k, -math.inf) > null_threshold else text for k, text in texts.items()}


def with_null_answers(
    spans: Mapping[str, list[Answer]], nulls: Mapping[str, Answer], calibration: Calibration
) -> dict[str, list[Answer]]:
    """The answers to each question: its best spans, and "no answer" at its rank if it has one."""

    def ranked(answers: list[Answer], null: Answer | None) -> list[Answer]:
        if null is None:
            return answers
        return rank_no_answer(answers, null, log_total(answers, calibration), calibration)

    return {key: ranked(answers, nulls.get(key)) for key, answers in spans.items()}


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Two parts that share no context, each with half of the contexts; always the same two.

    The first part is for choosing a threshold. Raises `InputError` if it has too few questions for
    this, and if all questions are about one context.
    """
    contexts = sorted({example.context for example in examples})
    if len(contexts) < 2:
        raise InputError("tune_threshold needs questions about two contexts or more")
    random.Random(0).shuffle(contexts)
    first = set(contexts[: len(contexts) // 2])
    tuning = [example for example in examples if example.context in first]
    require_both_kinds(tuning, "the half of the contexts on which the threshold is chosen")
    return tuning, [example for example in examples if example.context not in first]


def require_both_kinds(examples: Sequence[Example], name: str) -> None:
    """Raise `InputError` if there are too few questions of one kind to fit a threshold."""
    answerable = sum(bool(example.answers) for example in examples)
    for kind, count in (("with", answerable), ("without", len(examples) - answerable)):
        if count < MIN_OF_EACH_KIND:
            raise InputError(
                f"{name} has {count} questions {kind} an answer: "
                f"a threshold needs {MIN_OF_EACH_KIND} or more"
            )


def require_unique_ids(examples: Sequence[Example]) -> None:
    """Raise `DataError` if an id occurs twice, because predictions are stored by id."""
    counts = Counter(example.id for example in examples)
    repeated = [repr(name) for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(f"the examples: the id occurs twice: {first_of(repeated)}")


def warn_of_unanswerable(examples: Sequence[Example]) -> None:
    """Warn that "" may be predicted, because some questions have no answer."""
    if count := sum(example.is_impossible for example in examples):
        warnings.warn(
            f'{count:,} of {len(examples):,} questions have no answer, so predictions may be "" '
            "too, as with no_answer",
            stacklevel=3,
        )


def warn_of_long_answers(
    examples: Sequence[Example], tokenizer: Tokenizer, max_answer_len: int
) -> None:
    """Warn of questions whose gold answers are all longer than any prediction."""
    golds = [gold.text for example in examples for gold in example.answers]
    lengths = map(len, tokenizer.encode_batch(golds))
    shortest = [min((next(lengths) for _ in example.answers), default=0) for example in examples]
    if count := sum(length > max_answer_len for length in shortest):
        warnings.warn(
            f"{count} of {len(examples)} questions have only gold answers of more than "
            f"max_answer_len={max_answer_len} tokens: none of their predictions can be exact",
            stacklevel=2,
        )
