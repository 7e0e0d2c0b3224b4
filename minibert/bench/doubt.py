"""How reliable scores are: right or wrong, an answer or none, long documents, many passages.

The tables compare minibert with the question-answering pipeline that `transformers` had, on the
same logits. The pipeline's rule has one softmax over starts and one over ends in each window. Its
score is the product of both, and the scores of equal texts are added up.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..answers import answers_of
from ..data.examples import Example, GoldAnswer, load_squad
from ..data.metric import exact_match, squad_metrics
from ..data.negatives import make_negatives
from ..data.similarity import TfIdf
from ..reader import QuestionAnswerer
from ..scoring.calibration import auroc, coverage_at, expected_calibration_error, risk_coverage
from ..settings import AnswerSettings
from ..spans import WindowLogits, span_grid

KEPT = 12  # spans that the pipeline keeps from each window if one answer is requested
OTHERS = 19  # passages besides the right one
RULES = ("ours", "best_window", "summed")  # the fields of `Scored` with a text and a score

Array = npt.NDArray[Any]


class Scored(NamedTuple):
    """An answer under each rule: its text and its score."""

    ours: tuple[str, float]
    text_score: float  # the probability of our answer's text, wherever it occurs
    null_odds: float
    best_window: tuple[str, float]  # the pipeline's best product over all windows
    summed: tuple[str, float]  # the same, with the scores of equal texts added up
    product_of_ours: float  # the pipeline's product for our answer


def pipeline_scores(window: WindowLogits, max_answer_len: int = 30) -> Array:
    """The pipeline's score of each span of one window, (T, K) in the layout of `span_grid`.

    Each softmax runs over the window's context and its [CLS], but [CLS] cannot be chosen.
    """

    def log_softmax(null: float, logits: Array) -> Array:
        with_null = np.append(logits.astype(np.float64), null)
        logs: Array = with_null[:-1] - np.logaddexp.reduce(with_null)
        return logs

    start, end = window.null_logits
    grid = span_grid(
        log_softmax(start, window.start_logits), log_softmax(end, window.end_logits), max_answer_len
    )
    return np.exp(grid)


def score(qa: QuestionAnswerer, examples: Iterable[Example]) -> Iterator[Scored]:
    """Each example's answer under each rule. An answer is forced: it is never ""."""
    for reading in qa.read(examples):
        [ours] = answers_of(reading, AnswerSettings(text_score=True))
        assert ours.text_score is not None
        sums: dict[str, tuple[str, float]] = {}  # lower case -> the first such text, and its sum
        best_window, product_of_ours = ("", 0.0), 0.0
        for window in reading.windows:
            grid = pipeline_scores(window)
            kept = np.argpartition(-grid.ravel(), min(KEPT, grid.size) - 1)[:KEPT]
            for i, k in zip(*np.divmod(kept, grid.shape[1]), strict=True):
                if grid[i, k] == 0:  # this span leaves the window
                    continue
                start = int(reading.pieces.offsets[window.token_start + i, 0])
                end = int(reading.pieces.offsets[window.token_start + i + k, 1])
                text, value = reading.example.context[start:end], float(grid[i, k])
                if value > best_window[1]:
                    best_window = (text, value)
                if (start, end) == (ours.start, ours.end):
                    product_of_ours = max(product_of_ours, value)
                shown, total = sums.get(text.lower(), (text, 0.0))
                sums[text.lower()] = (shown, total + value)
        yield Scored(
            (ours.answer, ours.score),
            ours.text_score,
            sum(reading.null_logits) - ours.start_logit - ours.end_logit,
            best_window,
            max(sums.values(), key=lambda item: item[1]),
            product_of_ours,
        )


def bench_doubt(
    model: str, data: str, questions: int = 2000, long_questions: int = 300, searches: int = 500
) -> dict[str, Any]:
    """All tables of this module for one model, on random questions of one data set (seed 0)."""
    qa = QuestionAnswerer.from_pretrained(model)
    examples = [example for example in load_squad(data, "validation") if example.answers]
    chosen = random.Random(0).sample(examples, min(questions, len(examples)))
    return {
        "questions": len(chosen),
        "calibration": asdict(qa.calibration),
        "right_or_wrong": right_or_wrong(qa, chosen),
        "answer_or_none": answer_or_none(qa, chosen, examples),
        "long_documents": long_documents(qa, chosen[:long_questions], examples),
        "many_passages": many_passages(qa, chosen[:searches], examples),
    }


def right_or_wrong(qa: QuestionAnswerer, examples: Sequence[Example]) -> dict[str, Any]:
    """Forced answers: does the score say how often they are right? Do right ones rank higher?"""
    rows = list(score(qa, examples))
    ours, texts = [row.ours[1] for row in rows], [row.text_score for row in rows]
    by_first, by_any = (
        [
            any(exact_match(row.ours[0], gold.text) > 0 for gold in example.answers[:count])
            for row, example in zip(rows, examples, strict=True)
        ]
        for count in (1, None)
    )
    return {
        "exact_match": 100 * float(np.mean(by_any)),
        "ece_first_gold": expected_calibration_error(ours, by_first),
        "ece_any_gold": expected_calibration_error(ours, by_any),
        "ece_text_score_first_gold": expected_calibration_error(texts, by_first),
        "ece_text_score_any_gold": expected_calibration_error(texts, by_any),
        "auroc_ours": auroc(ours, by_any),
        "auroc_text_score": auroc(texts, by_any),
        "auroc_pipeline": auroc([row.product_of_ours for row in rows], by_any),
        "risk_coverage_area": float(risk_coverage(ours, by_any)[1].mean()),
        "coverage_at_80": coverage_at(0.8, ours, by_any),
        "coverage_at_90": coverage_at(0.9, ours, by_any),
    }


def answer_or_none(
    qa: QuestionAnswerer, examples: Sequence[Example], dataset: Sequence[Example]
) -> dict[str, Any]:
    """Each question with its own paragraph, and with the most similar one that lacks the answer."""
    negatives = make_negatives(examples, 1.0, 0, dataset, kinds={"similar_paragraph": 1.0})
    both = [*examples, *negatives["similar_paragraph"]]
    rows = list(score(qa, both))
    odds = [row.null_odds for row in rows]
    forced = {e.id: row.ours[0] for e, row in zip(both, rows, strict=True)}
    report: dict[str, Any] = {
        "negatives": len(both) - len(examples),
        "auroc": auroc(odds, [example.is_impossible for example in both]),
        "f1_forced": squad_metrics(forced, examples)["f1"],
    }
    for name, threshold in (("at_0", 0.0), ("at_stored", qa.calibration.null_threshold)):
        texts = {
            e.id: "" if o > threshold else forced[e.id] for e, o in zip(both, odds, strict=True)
        }
        decided = [(texts[e.id] == "") == e.is_impossible for e in both]
        report[name] = {
            "threshold": threshold,
            "decided_right": 100 * float(np.mean(decided)),
            "f1_answerable": squad_metrics(texts, examples)["f1"],
            "f1": squad_metrics(texts, both)["f1"],
        }
    return report


def long_documents(
    qa: QuestionAnswerer, examples: Sequence[Example], dataset: Sequence[Example]
) -> dict[str, Any]:
    """Each question with its whole article. Blank lines separate the paragraphs."""
    articles: dict[str, dict[str, int]] = {}  # title -> paragraph -> its first character
    for example in dataset:
        starts = articles.setdefault(example.title, {})
        if example.context not in starts:
            end = max((start + len(text) for text, start in starts.items()), default=-2)
            starts[example.context] = end + 2
    documents = {title: "\n\n".join(starts) for title, starts in articles.items()}
    asked = []
    for e in examples:
        shift = articles[e.title][e.context]
        answers = tuple(GoldAnswer(a.text, a.char_start + shift) for a in e.answers)
        asked.append(Example(e.id, e.question, documents[e.title], answers, False, e.title))
    rows = list(score(qa, asked))
    answered = list(zip(asked, rows, strict=True))
    texts = {name: {e.id: getattr(row, name)[0] for e, row in answered} for name in RULES}
    return {
        "mean_characters": float(np.mean([len(e.context) for e in asked])),
        **{name: squad_metrics(texts[name], asked) for name in RULES},
        "highest_score": {name: max(getattr(row, name)[1] for row in rows) for name in RULES},
    }


def many_passages(
    qa: QuestionAnswerer, examples: Sequence[Example], dataset: Sequence[Example]
) -> dict[str, Any]:
    """Each question with its paragraph and the 19 most similar paragraphs of the data set.

    The figures say how often the first answer is right, and how often its passage is the right
    one. "ours" is `best_of`, and "ours_forced" is `best_of` without "no answer". The pipeline's way
    takes the passage whose best answer has the highest score.
    """
    contexts = list(dict.fromkeys(example.context for example in dataset))
    index = TfIdf(contexts)
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)  # rule -> (answer, passage)
    for number, example in enumerate(examples):
        others = (contexts[k] for k in index.ranked(example.question))
        passages = [example.context, *(t for t in others if t != example.context)][: OTHERS + 1]
        random.Random(number).shuffle(passages)
        [first, *rest] = qa.best_of(example.question, passages, top_k=2)
        forced = first if first.passage is not None else rest[0]
        rows = list(score(qa, [Example("", example.question, text) for text in passages]))
        answers: dict[str, tuple[str, int | None]] = {
            "ours": (first.answer, first.passage),
            "ours_forced": (forced.answer, forced.passage),
        }
        for name in ("best_window", "summed"):
            candidates = [getattr(row, name) for row in rows]
            best = int(np.argmax([value for _, value in candidates]))
            answers[name] = (candidates[best][0], best)
        for name, (text, passage) in answers.items():
            exact = any(exact_match(text, gold.text) > 0 for gold in example.answers)
            same = passage is not None and passages[passage] == example.context
            right[name].append((exact, same))
    percent = {name: 100 * np.mean(pairs, axis=0) for name, pairs in right.items()}
    return {
        name: {"exact_match": float(exact), "right_passage": float(passage)}
        for name, (exact, passage) in percent.items()
    }
