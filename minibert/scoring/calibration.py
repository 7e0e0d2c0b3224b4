"""Calibration: answers and gold answers -> how reliable scores are, and settings that correct them.

A calibrated score says how often an answer with this score is right. One number, the temperature,
is enough to calibrate a network (arXiv:1706.04599 section 4.2). There is one temperature for the
score of a span and one for the score of its text. A third number, the threshold, says when to give
no answer (SQuAD v2.0, arXiv:1806.03822).
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..answers import answers_of, null_odds
from ..data.examples import Example
from ..data.metric import best_thresholds, exact_match, squad_metrics
from ..data.negatives import make_negatives
from ..engine import OnBatch, ignore
from ..errors import InputError
from ..files import complete_files, make_folder
from ..hub import pinned, require_file
from ..pretrained import read_config
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings, Calibration
from ..spans import scores_of_best
from .evaluation import require_both_kinds, require_unique_ids

Array = npt.NDArray[Any]

# Temperatures that are tried: from 1/4 to 4 in steps of 4.4 %
TEMPERATURES: Array = 2.0 ** (np.arange(-32, 33) / 16)

# Each temperature is fitted on at least this many questions with an answer. We tried it with 1,000
# questions of SQuAD's dev set, on 200 random samples of each size. The temperatures of samples of
# 200 questions have a standard deviation of a factor of 1.11. With 50 questions, it is a factor of
# 1.3, and with 3, 2.3. (For the temperature of texts: 1.10, 1.26 and 2.4.)
MIN_QUESTIONS = 200

# A threshold may lower the F1 of the questions with an answer by at most this many points. The rule
# is used if the share of questions without an answer is unknown.
MOST_LOST = 1.0


def expected_calibration_error(
    scores: Sequence[float], right: Sequence[bool], bins: int = 10
) -> float:
    """The mean distance between score and accuracy, over bins of equal width, weighted by count.

    arXiv:1706.04599 equation 3.

    >>> expected_calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False])
    0.3
    """
    score, truth = np.asarray(scores, float), np.asarray(right, float)
    places = np.clip(np.ceil(score * bins).astype(int) - 1, 0, bins - 1)  # (0, 0.1], (0.1, 0.2] ...
    gaps = np.bincount(places, score - truth, bins)
    return float(np.abs(gaps).sum() / len(score))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The area under the ROC curve: in a random pair of a positive and a negative, how often the
    positive has the higher score. A tie counts half. Raises `InputError` if one kind is missing.

    >>> auroc([0.9, 0.6, 0.6, 0.1], [True, True, False, False])
    0.875
    """
    score, truth = np.asarray(scores, float), np.asarray(positive, bool)
    if truth.all() or not truth.any():
        raise InputError("AUROC needs both kinds: right and wrong, or answerable and not")
    positives, negatives = score[truth], np.sort(score[~truth])
    lower = [np.searchsorted(negatives, positives, side).sum() for side in ("left", "right")]
    return float(sum(lower) / 2 / (len(positives) * len(negatives)))


def risk_coverage(scores: Sequence[float], right: Sequence[bool]) -> tuple[Array, Array]:
    """The coverage and the risk if only the k surest of N questions are answered, k = 1 to N: (N,).

    The coverage is k / N. The risk is the share of wrong answers among these k; its mean is the
    area under the risk-coverage curve (arXiv:1705.08500).
    """
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    answered = np.arange(1, len(order) + 1)
    wrong = np.cumsum(~np.asarray(right, bool)[order])
    return answered / len(order), wrong / answered


def coverage_at(accuracy: float, scores: Sequence[float], right: Sequence[bool]) -> float:
    """The largest share of questions that can be answered with this accuracy, surest first."""
    coverage, risk = risk_coverage(scores, right)
    return float(coverage[risk <= 1 - accuracy + 1e-12].max(initial=0.0))


def calibrate(
    qa: QuestionAnswerer,
    examples: Sequence[Example],
    max_answer_len: int = 30,
    on_batch: OnBatch = ignore,
) -> tuple[Calibration, dict[str, float]]:
    """Fit the temperatures and the threshold on questions that the model was not trained on.

    The two temperatures minimise the log loss of predicting whether an answer matches exactly: one
    from the scores of the answers, one from the scores of their texts. Only answerable questions
    count, and their answers are forced: each is a span, never "". The threshold gives the best F1
    over all questions. If all questions are answerable, the future share of unanswerable ones is
    unknown. Then the threshold is the lowest one that costs the answerable questions at most one
    point of F1, and for the report each question is also asked about the most similar other
    paragraph of its article (`make_negatives`). The second value is this report.

    Warns if a temperature is at the edge of `TEMPERATURES`. Raises `InputError` for fewer than
    `MIN_QUESTIONS` questions with an answer. If there are also questions without an answer, raises
    it for fewer than `MIN_OF_EACH_KIND`. Raises `DataError` if an id occurs twice. `on_batch` is
    called with the number of windows that have just been read.

    >>> import minibert
    >>> qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    >>> answers = {"text": ["Ada"], "answer_start": [0]}
    >>> row = {"id": "1", "question": "Who lit it?", "context": "Ada lit it.", "answers": answers}
    >>> minibert.calibrate(qa, minibert.load_squad([row]))
    Traceback (most recent call last):
    minibert.errors.InputError: 1 questions with an answer: a temperature needs 200 or more
    """
    require_unique_ids(examples)
    answerable = [example for example in examples if example.answers]
    if len(answerable) < MIN_QUESTIONS:
        raise InputError(
            f"{len(answerable)} questions with an answer: "
            f"a temperature needs {MIN_QUESTIONS} or more"
        )
    if len(answerable) < len(examples):
        require_both_kinds(examples, "the data")
    made: list[Example] = []
    if len(answerable) == len(examples):
        kinds = {"similar_paragraph": 1.0}
        [made] = make_negatives(examples, 1.0, seed=0, kinds=kinds).values()
        examples = [*examples, *made]

    texts, odds = {}, {}
    right: list[bool] = []  # for each answerable question
    scores: list[Array] = []  # and the scores of its answer and of its text, at each temperature
    for reading in qa.read(examples, on_batch):
        example = reading.example
        [best] = answers_of(reading, AnswerSettings(1, max_answer_len))
        texts[example.id] = best.answer
        odds[example.id] = null_odds(reading, best)
        if example.answers:
            right.append(any(exact_match(best.answer, gold.text) for gold in example.answers))
            offsets = reading.pieces.offsets
            both = (reading.windows, TEMPERATURES, example.context, offsets, max_answer_len)
            scores.append(scores_of_best(*both))

    temperatures, fits = fit_temperatures(np.array(scores), right)
    has_unanswerable = len(right) < len(examples)
    if has_unanswerable and not made:
        threshold = best_thresholds(texts, odds, examples)["best_f1_thresh"]
    else:
        f1 = [squad_metrics(texts, [example])["f1"] for example in answerable]
        threshold = threshold_at_loss([odds[e.id] for e in answerable], f1, MOST_LOST)
    calibration = Calibration(temperatures[0], threshold, temperatures[1])
    given = {key: "" if odds[key] > threshold else text for key, text in texts.items()}
    report = {
        "questions": len(examples),
        "unanswerable": len(examples) - len(right),
        "negatives_made": len(made),
        **fits,
        "f1_forced": squad_metrics(texts, answerable)["f1"],
        "f1_answerable": squad_metrics(given, answerable)["f1"],
    }
    if has_unanswerable:
        impossible = [example.is_impossible for example in examples]
        decided = [(given[e.id] == "") == e.is_impossible for e in examples]
        report["auroc_no_answer"] = auroc([odds[e.id] for e in examples], impossible)
        report["decided_right"] = 100 * float(np.mean(decided))
    return calibration, report


def fit_temperatures(scores: Array, right: Sequence[bool]) -> tuple[list[float], dict[str, float]]:
    """The best temperature for spans and for texts, and the errors before and after.

    `scores` (N, 2, K) are the scores of each answer and of its text at each of `TEMPERATURES`.
    """
    plain = int(np.flatnonzero(TEMPERATURES == 1.0)[0])
    temperatures, fits = [], {}
    for prefix, by_temperature in zip(("", "text_"), scores.transpose(1, 2, 0), strict=True):
        losses = [log_loss(row, right) for row in by_temperature]  # rows of (K, N)
        best = int(np.argmin(losses))
        temperatures.append(float(TEMPERATURES[best]))
        if best in (0, len(TEMPERATURES) - 1):
            warnings.warn(
                f"{prefix}temperature={TEMPERATURES[best]:g} is at the edge of the values that "
                f"were tried, {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g}; a better value may be "
                "outside: check the model and the data",
                stacklevel=3,
            )
        for when, k in (("before", plain), ("after", best)):
            fits[f"{prefix}ece_{when}"] = expected_calibration_error(by_temperature[k], right)
            fits[f"{prefix}log_loss_{when}"] = losses[k]
    return temperatures, fits


def threshold_at_loss(odds: Sequence[float], f1: Sequence[float], most: float) -> float:
    """The lowest threshold on null odds that costs at most this many points of F1.

    `odds` are the null odds of questions that have an answer, and `f1` (0 to 100) belongs to the
    forced answers. A question whose odds exceed the threshold gets "" and loses its F1.

    >>> threshold_at_loss([3.0, -1.0, 2.0, -5.0], [0.0, 100.0, 4.0, 100.0], most=1.0)
    -1.0
    """
    order = np.argsort(-np.asarray(odds), kind="stable")  # those that get "" first
    lost = np.cumsum(np.asarray(f1, float)[order]) / len(order)
    affordable = int(np.searchsorted(lost, most, "right"))
    return float(odds[order[min(affordable, len(order) - 1)]])


def log_loss(scores: Sequence[float] | Array, right: Sequence[bool]) -> float:
    """The mean of -log(probability of the outcome), with probabilities from 1e-12 to 1 - 1e-12.

    >>> log_loss([0.5, 0.5], [True, False])
    0.6931471805599453
    """
    score = np.clip(np.asarray(scores, float), 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(right, score, 1 - score)).mean())


def save_calibrated(
    source: str | Path, folder: str | Path, calibration: Calibration, revision: str | None = None
) -> None:
    """Copy a model, with the calibration in its `config.json` under "minibert".

    The ranges for reading in 8-bit integers are copied too, because the weights are the same.
    All other files are copied unchanged, except the checkpoints of a training run. `revision` is
    the hub id's branch, tag or commit. Raises `InputError` for a folder that already has files.

    >>> import json, minibert, pathlib, tempfile
    >>> from minibert.reader import BUNDLED
    >>> scratch = tempfile.TemporaryDirectory()
    >>> folder = pathlib.Path(scratch.name)
    >>> minibert.save_calibrated(BUNDLED, folder, minibert.Calibration(temperature=2.0))
    >>> json.loads((folder / "config.json").read_text())["minibert"]["temperature"]
    2.0
    >>> scratch.cleanup()
    """
    revision = pinned(source, revision)
    config = read_config(source, revision)
    stored = {**config.get("minibert", {}), **asdict(calibration)}
    files = require_file(source, "config.json", revision).parent
    with complete_files(require_empty(folder)) as draft:
        for path in files.iterdir():
            if path.is_file() and not path.match("checkpoint-*"):
                shutil.copyfile(path, draft / path.name)
        text = json.dumps({**config, "minibert": stored}, indent=2)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def require_empty(folder: str | Path) -> Path:
    """Make a folder to write to, if needed. Raises `InputError` if it already has files."""
    target = make_folder(folder)
    if any(target.iterdir()):
        raise InputError(f"{target}: already has files; choose another folder for the copy")
    return target
