"""The commands that look at data sets and models: `show`, `check-data` and `inspect`."""

import random
from dataclasses import asdict
from itertools import chain

from typer import Exit, Option, echo

from ..bench.parity import TOLERANCE, parity
from ..data.examples import doubts_report, load_squad
from ..data.negatives import kinds_with, make_negatives, negatives_report
from ..errors import DataError, counted, summaries, summary
from ..features import data_report, has_outer_white_space
from ..hub import pinned
from ..pretrained import empty_model, map_tensors, read_config, read_tensors
from ..qa import BertForQuestionAnswering
from ..reader import BUNDLED, stored_calibration
from ..tokenization import Tokenizer
from .options import DATA, READER, SPLIT, TRAINING
from .printing import print_problems


def show(
    data: str = DATA,
    split: str = SPLIT,
    count: int = Option(10, "--count", "-n", min=1, help="How many examples."),
    seed: int | None = Option(
        None,
        help="Random seed: the same seed chooses the same examples.",
        show_default="other examples every time",
    ),
) -> None:
    """Print random examples of a data set."""
    examples = load_squad(data, split)
    for example in random.Random(seed).sample(examples, min(count, len(examples))):
        echo(f"context:  {example.context}")
        echo(f"question: {example.question}")
        for gold in example.answers:
            echo(f"answer:   {gold.text!r} at {gold.char_start}")
        if example.is_impossible:
            echo("answer:   none in this context")
        echo("-" * 80)


def check_data(
    data: str = DATA,
    model: str = Option(
        str(BUNDLED),
        help="Folder or hub id of the model whose tokenizer is used.",
        show_default="the bundled model",
    ),
    revision: str | None = READER["revision"],
    split: str = SPLIT,
    max_length: int = TRAINING["max_length"],
    doc_stride: int | None = TRAINING["doc_stride"],
    show_all: bool = Option(False, "--all", help="Print every problem, not only 20 of each kind."),
    negatives: float = TRAINING["negatives"],
    misleading: float = TRAINING["misleading"],
    seed: int = Option(42, help="Random seed for --negatives."),
) -> None:
    """Check every question of a data set.

    This names every problem, and counts questions, contexts and windows. With --negatives, the
    counts include the questions that `train` adds with the same seed.
    """
    skipped: list[DataError] = []
    doubtful: list[DataError] = []
    limit = None if show_all else 20
    vocabulary = Tokenizer.from_pretrained(model, revision)
    try:
        examples = load_squad(data, split, skipped, doubtful=doubtful)
        made = make_negatives(examples, negatives, seed, kinds=kinds_with(misleading))
        counts = negatives_report(made, negatives, examples) if negatives else {}
        examples = [*examples, *chain(*made.values())]
        report = data_report(examples, vocabulary, max_length, doc_stride, skipped)
    except DataError as error:
        if have_one_kind(skipped) and not show_all:
            raise summary(skipped) from error
        print_problems(skipped, limit)
        raise
    if have_one_kind(skipped) and limit is not None and len(skipped) > limit:
        raise summary(skipped)
    print_problems(skipped, limit)
    for name, value in (report | doubts_report(doubtful) | counts).items():
        echo(f"{name:30} {value:,.6g}")
    for doubt in summaries(doubtful):
        echo(f"warning: {doubt}", err=True)
    untidy = [example for example in examples if has_outer_white_space(example)]
    if untidy:
        first = next(a for a in untidy[0].answers if a.text != a.text.strip())
        count = counted(len(untidy), "question has", "questions have")
        echo(
            f"warning: {count} an answer that begins or ends with white "
            f"space (the first is {first.text!r} of {untidy[0].id}); labels exclude this space",
            err=True,
        )
    if skipped:
        count = counted(len(skipped), "question has an error", "questions have errors")
        raise DataError(f"{data}: {count}")


def have_one_kind(problems: list[DataError]) -> bool:
    return len({problem.kind for problem in problems}) == 1


def inspect(
    model: str = READER["model"],
    revision: str | None = READER["revision"],
    compare: bool = Option(
        False, "--parity", help="Compare the output of each layer with transformers."
    ),
) -> None:
    """Print a model's configuration and its weights.

    This is the number of parameters, and where minibert puts each tensor of the file. With
    --parity, compare with transformers instead, and print the largest difference of each layer. The
    exit code is 1 if a difference is above the tolerance.
    """
    revision = pinned(model, revision)
    if compare:
        inspect_parity(model, revision)
        return
    empty, expected = empty_model(BertForQuestionAnswering, model, "eager", revision)
    tensors, report = map_tensors(read_tensors(model, revision), expected, empty.config.model_type)
    calibration = stored_calibration(read_config(model, revision))
    for name, value in (asdict(empty.config) | asdict(calibration)).items():
        echo(f"{name:30} {value}")
    echo(f"{'parameters':30} {sum(t.numel() for t in tensors.values()):,}")
    echo(str(report))


def inspect_parity(source: str, revision: str | None) -> None:
    """Print the largest difference of each layer, and the first that is too large."""
    differences = parity(source, revision)
    for name, value in differences.items():
        verdict = "exact" if value == 0 else "within" if value <= TOLERANCE else "DIVERGES"
        echo(f"{name:20} {value:10.3g}  {verdict}")
    diverged = [name for name, value in differences.items() if not value <= TOLERANCE]
    echo(f"tolerance {TOLERANCE:g}; first divergence: {diverged[0] if diverged else 'none'}")
    if diverged:
        raise Exit(1)
