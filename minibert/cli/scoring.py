"""The commands that measure a model on a data set: `evaluate` and `calibrate`."""

import json
from dataclasses import asdict
from pathlib import Path

from typer import Option, echo

from ..data.examples import load_squad
from ..errors import DataError, InputError
from ..scoring import calibration, evaluation
from ..settings import AnswerSettings
from .options import DATA_HELP, SPLIT_HELP, ReaderOptions, with_settings
from .printing import print_problems, progress_bars


@with_settings(["top_k", "align_to_words", "text_score"], precision="fp32", device="auto")
def evaluate(
    *,
    data: str = Option(..., help=DATA_HELP),
    output: Path = Option(..., help="Folder for the predictions and the metrics."),
    n_best: int = Option(20, help="How many answers to each question to save."),
    settings: AnswerSettings,
    version_2: bool = Option(False, "--version-2", hidden=True),  # the old name of --no-answer
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
    """Answer the questions of a data set, and score the answers with the official metric.

    The metric compares the texts of answers, not their places. An answer that is not at its
    answer_start is reported, and still counts. If some questions have no answer, a prediction may
    be "no answer" even without --no-answer.
    """
    no_answer = settings.no_answer or version_2
    if (tune_threshold or null_threshold is not None) and not no_answer:
        raise InputError("--null-threshold and --tune-threshold need --no-answer")
    skipped: list[DataError] = []
    misplaced: list[DataError] = []
    examples = load_squad(data, "validation", skipped if skip_invalid else None, misplaced)
    for problems, consequence in (
        (skipped, "questions are left out"),
        (misplaced, "answers are not where the data says; their texts are scored"),
    ):
        if problems:
            print_problems(problems, err=True)
            echo(f"warning: {len(problems):,} {consequence}", err=True)
    qa = reader.load()
    with progress_bars({f"windows ({qa.computes_with})": None}) as (on_batch,):
        setup = (qa, examples, output, n_best, settings.max_answer_len, on_batch)
        metrics = evaluation.evaluate(*setup, no_answer, null_threshold, tune_threshold)
    echo(json.dumps(metrics))


@with_settings(
    ["top_k", "no_answer", "align_to_words", "text_score"], precision="fp32", device="auto"
)
def calibrate(
    *,
    data: str = Option(..., help=DATA_HELP),
    output: Path = Option(..., help="A new folder for the copy of the model."),
    split: str = Option("validation", help=SPLIT_HELP),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Fit the temperatures and the "no answer" threshold of a model, and save a copy with them.

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
