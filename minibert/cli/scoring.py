"""The commands that measure a model on a data set: `evaluate` and `calibrate`."""

import json
from dataclasses import asdict
from pathlib import Path

from typer import Option, echo

from ..data.examples import load_squad
from ..errors import DataError, counted
from ..scoring import calibration, evaluation
from ..settings import AnswerSettings
from .options import DATA, SPLIT, ReaderOptions, with_settings
from .printing import print_problems, progress_bars


@with_settings(["align_to_words", "text_score"], top_k=20)
def evaluate(
    *,
    data: str = DATA,
    split: str = SPLIT,
    output: Path = Option(..., help="Folder for the predictions and the metrics."),
    settings: AnswerSettings,
    null_threshold: float | None = Option(
        None,
        help='Predict "no answer" if its logit minus the best span\'s logit is above this number.',
        show_default="the model's own",
    ),
    tune_threshold: bool = Option(
        False,
        "--tune-threshold",
        help="Choose the threshold with half of the contexts, and score the answers to the rest.",
    ),
    skip_invalid: bool = Option(False, "--skip-invalid", help="Leave out questions with errors."),
    reader: ReaderOptions,
) -> None:
    """Score a model on a data set.

    This answers every question, and prints the figures of SQuAD's official metric. The metric
    compares the texts of answers, not their places. An answer that is not at its answer_start is
    reported, and still counts. If some questions have no answer, a prediction may be "no answer"
    even without --no-answer.
    """
    skipped: list[DataError] = []
    misplaced: list[DataError] = []
    examples = load_squad(data, split, skipped if skip_invalid else None, misplaced)
    left_out = counted(len(skipped), "question is", "questions are")
    elsewhere = counted(len(misplaced), "answer is", "answers are")
    for problems, consequence in (
        (skipped, f"{left_out} left out"),
        (misplaced, f"{elsewhere} not where the data says; only texts are scored"),
    ):
        if problems:
            print_problems(problems, err=True)
            echo(f"warning: {consequence}", err=True)
    qa = reader.load()
    with progress_bars({f"windows ({qa.computes_with})": None}) as (on_batch,):
        setup = (qa, examples, output, settings.top_k, settings.max_answer_len, on_batch)
        metrics = evaluation.evaluate(*setup, settings.no_answer, null_threshold, tune_threshold)
    echo(json.dumps(metrics))
    echo(qa.computes_with, err=True)


@with_settings(["top_k", "no_answer", "align_to_words", "text_score"])
def calibrate(
    *,
    data: str = DATA,
    split: str = SPLIT,
    output: Path = Option(..., help="A new folder for the copy of the model."),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Make the scores of a model more reliable.

    This fits two temperatures, which bring the scores closer to how often answers are right, and
    the threshold of "no answer". It saves a copy of the model with these numbers.

    If every question of the data has an answer, each question is also asked about a text without
    its answer: the most similar other paragraph of its article. Then the threshold is as low as
    possible, but it may lower the F1 of questions with an answer by at most one point. If the data
    itself has questions without an answer, the threshold with the best F1 over all is chosen.

    The data needs at least 200 questions with an answer, and either none or at least 50 without.
    """
    examples = load_squad(data, split)
    qa = reader.load()
    calibration.require_empty(output)  # before the long work
    with progress_bars({"windows": None}) as (on_batch,):
        fitted, report = calibration.calibrate(qa, examples, settings.max_answer_len, on_batch)
    calibration.save_calibrated(reader.model, output, fitted, reader.revision)
    echo(json.dumps(asdict(fitted) | report))
    echo(qa.computes_with, err=True)
