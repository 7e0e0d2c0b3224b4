"""Evaluation: examples -> predictions -> the official metric."""

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..data.metric import best_thresholds, squad_metrics
from ..engine import OnBatch, ignore
from ..errors import InputError
from ..files import complete_files, make_folder
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings
from ..tokenization import Tokenizer


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

    With `no_answer` a question may have no answer. Its null odds are the logit of "no answer" minus
    the logit of the best span; they are written to `null_odds.json`. If they exceed
    `null_threshold` (None: the model's own), the prediction is "". The results then include
    `best_thresholds`.

    With `tune_threshold`, the threshold has the best F1 on one half of the contexts. All results
    are for the other half: under "threshold_0" with threshold 0, under "tuned" with the
    chosen one, and under "best" with the best threshold in hindsight. Raises `InputError` for a
    threshold or for `tune_threshold` without `no_answer`.
    """
    if (tune_threshold or null_threshold) and not no_answer:
        raise InputError("null_threshold and tune_threshold need no_answer")
    folder = None if output_dir is None else make_folder(output_dir)  # before the long work
    if null_threshold is None:
        null_threshold = qa.calibration.null_threshold
    warn_of_long_answers(examples, qa.tokenizer, max_answer_len)
    settings = AnswerSettings(n_best, max_answer_len, no_answer)
    answered = qa.answer_examples(examples, settings, on_batch)
    nbest = {example.id: answers for example, answers in zip(examples, answered, strict=True)}
    texts, odds = {}, {}
    for key, answers in nbest.items():
        best = next(a for a in answers if a.answer)
        texts[key] = best.answer
        if no_answer:
            null = next(a for a in answers if not a.answer)
            odds[key] = null.start_logit + null.end_logit - best.start_logit - best.end_logit

    metrics: dict[str, Any]
    if tune_threshold:
        tuning, reported = halves(examples)
        null_threshold = best_thresholds(texts, odds, tuning)["best_f1_thresh"]
        best_there = best_thresholds(texts, odds, reported)["best_f1_thresh"]
        metrics = {
            name: {"threshold": T, **squad_metrics(with_nulls(texts, odds, T), reported)}
            for name, T in (("threshold_0", 0.0), ("tuned", null_threshold), ("best", best_there))
        }
    else:
        metrics = dict(squad_metrics(with_nulls(texts, odds, null_threshold), examples))
        if no_answer:
            metrics |= best_thresholds(texts, odds, examples)
    if folder is not None:
        rows = {key: [a.to_dict() for a in answers] for key, answers in nbest.items()}
        predictions = with_nulls(texts, odds, null_threshold)
        files = {"predictions": predictions, "nbest_predictions": rows, "metrics": metrics}
        if no_answer:
            files["null_odds"] = odds
        with complete_files(folder, ["null_odds.json"]) as draft:
            for name, value in files.items():
                text = json.dumps(value, ensure_ascii=False, indent=1)
                (draft / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def with_nulls(
    texts: dict[str, str], odds: dict[str, float], null_threshold: float
) -> dict[str, str]:
    """The predictions: the texts, or "" where the null odds exceed the threshold."""
    return {k: "" if odds.get(k, -1e9) > null_threshold else text for k, text in texts.items()}


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Two parts that share no context, each with half of the contexts; always the same two."""
    contexts = sorted({example.context for example in examples})
    random.Random(0).shuffle(contexts)
    first = set(contexts[: len(contexts) // 2])
    return (
        [example for example in examples if example.context in first],
        [example for example in examples if example.context not in first],
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
