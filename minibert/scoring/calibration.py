"""Calibration: answers beside the gold -> what their scores are worth, and settings that mend them.

A score that is calibrated says how often an answer with that score is right. One number, the
temperature, is enough to mend a network's (arXiv:1706.04599 section 4.2): one for a span's score,
one for its text's. One more, the threshold, says when to answer at all (SQuAD v2.0,
arXiv:1806.03822).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.examples import Example
from ..data.metric import best_thresholds, exact_match, squad_metrics
from ..data.negatives import make_negatives
from ..errors import InputError
from ..files import complete_files, make_folder
from ..pretrained import read_config, require_file
from ..reader import QuestionAnswerer
from ..settings import Calibration
from ..spans import scores_of_best

Array = npt.NDArray[Any]

# Temperatures that are tried: from 1/4 to 4 in steps of 4.4 %
TEMPERATURES: Array = 2.0 ** (np.arange(-32, 33) / 16)

# Points of F1 that the questions with an answer may lose by a threshold, where nobody knows how
# many will have none
MOST_LOST = 1.0


def expected_calibration_error(
    scores: Sequence[float], right: Sequence[bool], bins: int = 10
) -> float:
    """The mean distance between score and accuracy, over bins of equal width, by their counts.

    arXiv:1706.04599 equation 3.

    >>> expected_calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False])
    0.3
    """
    score, truth = np.asarray(scores, float), np.asarray(right, float)
    places = np.clip(np.ceil(score * bins).astype(int) - 1, 0, bins - 1)  # (0, 0.1], (0.1, 0.2] ...
    gaps = np.bincount(places, score - truth, bins)
    return float(np.abs(gaps).sum() / len(score))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """How often a positive has the higher score of a random pair of both kinds; a tie counts half.

    The area under the ROC curve. Raises `InputError` where one kind is missing.

    >>> auroc([0.9, 0.6, 0.6, 0.1], [True, True, False, False])
    0.875
    """
    score, truth = np.asarray(scores, float), np.asarray(positive, bool)
    if truth.all() or not truth.any():
        raise InputError("AUROC needs both kinds: right and wrong, or answerable and not")
    ordered = np.sort(score)
    # a score's rank, from 1; the mean rank among equals
    ranks = (np.searchsorted(ordered, score) + np.searchsorted(ordered, score, "right") + 1) / 2
    pairs = truth.sum() * (len(truth) - truth.sum())
    return float((ranks[truth].sum() - truth.sum() * (truth.sum() + 1) / 2) / pairs)


def risk_coverage(scores: Sequence[float], right: Sequence[bool]) -> tuple[Array, Array]:
    """Answering the surest k of N questions, for each k: (N,) coverage k / N, (N,) share wrong.

    The mean of the second is the area under the risk-coverage curve (arXiv:1705.08500).
    """
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    answered = np.arange(1, len(order) + 1)
    wrong = np.cumsum(~np.asarray(right, bool)[order])
    return answered / len(order), wrong / answered


def coverage_at(accuracy: float, scores: Sequence[float], right: Sequence[bool]) -> float:
    """The largest share of questions that can be answered, surest first, at this accuracy."""
    coverage, risk = risk_coverage(scores, right)
    return float(coverage[risk <= 1 - accuracy + 1e-12].max(initial=0.0))


def calibrate(
    qa: QuestionAnswerer,
    examples: Sequence[Example],
    max_answer_len: int = 30,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> tuple[Calibration, dict[str, float]]:
    """Fit temperatures and threshold on questions that the model has not been trained on.

    The temperatures are those at which the scores of forced answers to the answerable questions,
    and the scores of their texts, predict best whether the answer matches exactly, by their log
    loss. The threshold is the one of the best F1 over all questions. Where none is unanswerable,
    how many will be is not known: it is then the lowest by which the F1 of the others falls by at
    most one point, and for the report each question is asked of the most similar paragraph of its
    article too (`make_negatives`). The second value holds what all three bring.

    Raises `InputError` where no question has an answer. `on_batch` is told how many windows have
    just been read.
    """
    if not any(example.answers for example in examples):
        raise InputError("no question with an answer: nothing tells how often answers are right")
    made = 0
    if all(example.answers for example in examples):
        kinds = {"similar_paragraph": 1.0}
        [negatives] = make_negatives(examples, 1.0, seed=0, kinds=kinds).values()
        examples, made = [*examples, *negatives], len(negatives)

    texts, odds = {}, {}
    answerable = [example for example in examples if example.answers]
    right: list[bool] = []  # of these
    scores: list[Array] = []  # of their answers and of those texts, at each of TEMPERATURES
    for reading in qa.read(examples, on_batch):
        example, windows = reading.example, reading.windows
        [best] = qa.answers_of(reading, 1, max_answer_len)
        texts[example.id] = best.answer
        odds[example.id] = sum(reading.null_logits) - best.start_logit - best.end_logit
        if example.answers:
            right.append(any(exact_match(best.answer, gold.text) for gold in example.answers))
            scores.append(
                scores_of_best(
                    windows, TEMPERATURES, example.context, reading.offsets, max_answer_len
                )
            )

    plain = int(np.flatnonzero(TEMPERATURES == 1.0)[0])
    fitted, fits = [], {}
    for prefix, of_kind in zip(("", "text_"), np.array(scores).transpose(1, 2, 0), strict=True):
        losses = [log_loss(row, right) for row in of_kind]  # of_kind: (K, answerable questions)
        best_fit = int(np.argmin(losses))
        fitted.append(float(TEMPERATURES[best_fit]))
        for when, k in (("before", plain), ("after", best_fit)):
            fits[f"{prefix}ece_{when}"] = expected_calibration_error(of_kind[k], right)
            fits[f"{prefix}log_loss_{when}"] = losses[k]
    has_unanswerable = len(right) < len(examples)
    if has_unanswerable and not made:
        threshold = best_thresholds(texts, odds, examples)["best_f1_thresh"]
    else:
        f1 = [squad_metrics(texts, [example])["f1"] for example in answerable]
        threshold = threshold_at_loss([odds[e.id] for e in answerable], f1, MOST_LOST)
    calibration = Calibration(fitted[0], threshold, fitted[1])
    given = {key: "" if odds[key] > threshold else text for key, text in texts.items()}
    impossible = [example.is_impossible for example in examples]
    decided = [(given[e.id] == "") == e.is_impossible for e in examples]
    report = {
        "questions": len(examples),
        "unanswerable": len(examples) - len(right),
        "negatives_made": made,
        **fits,
        "f1_forced": squad_metrics(texts, answerable)["f1"],
        "f1_answerable": squad_metrics(given, answerable)["f1"],
    }
    if has_unanswerable:
        report["auroc_no_answer"] = auroc([odds[e.id] for e in examples], impossible)
        report["decided_right"] = 100 * float(np.mean(decided))
    return calibration, report


def threshold_at_loss(odds: Sequence[float], f1: Sequence[float], most: float) -> float:
    """The lowest threshold on null odds at which "" instead of answers costs at most so much F1.

    Of questions that have an answer: their null odds, and the F1 (0 to 100) of the answers.

    >>> threshold_at_loss([3.0, -1.0, 2.0, -5.0], [0.0, 100.0, 4.0, 100.0], most=1.0)
    -1.0
    """
    order = np.argsort(-np.asarray(odds), kind="stable")  # refused first
    lost = np.cumsum(np.asarray(f1, float)[order]) / len(order)
    affordable = int(np.searchsorted(lost, most, "right"))
    return float(odds[order[min(affordable, len(order) - 1)]])


def log_loss(scores: Sequence[float] | Array, right: Sequence[bool]) -> float:
    """The mean of -log(probability given to what was so), probabilities within 1e-12 to 1 - 1e-12.

    >>> log_loss([0.5, 0.5], [True, False])
    0.6931471805599453
    """
    score = np.clip(np.asarray(scores, float), 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(right, score, 1 - score)).mean())


def save_calibrated(
    source: str | Path,
    folder: str | Path,
    calibration: Calibration,
    revision: str | None = None,
) -> None:
    """Copy a model, with the calibration in its `config.json` under "minibert".

    All files beside the configuration come along as they are, but for checkpoints of a training
    run; `revision` is the hub id's branch, tag or commit. Raises `InputError` for a folder that
    holds files already.
    """
    config = {**read_config(source, revision), "minibert": asdict(calibration)}
    files = require_file(source, "config.json", revision).parent
    with complete_files(require_empty(folder)) as draft:
        for path in files.iterdir():
            if path.is_file() and not path.match("checkpoint-*"):
                shutil.copyfile(path, draft / path.name)
        text = json.dumps(config, indent=2)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def require_empty(folder: str | Path) -> Path:
    """An empty folder to write to, made if need be. Raises `InputError` where it holds files."""
    target = make_folder(folder)
    if any(target.iterdir()):
        raise InputError(f"{target}: holds files already; choose another folder for the copy")
    return target
