"""The commands of `minibert bench`, which compare minibert with other libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer import Option, echo

from ..bench.answering import bench_answer
from ..bench.doubt import bench_doubt
from ..bench.parts import bench_parts
from ..bench.row import row_of
from ..bench.serving import bench_serve
from ..bench.training import bench_train
from ..bench.turns import table_of
from ..bench.web import bench_web
from ..errors import InputError
from ..files import complete_files, make_folder
from .options import READER

DATA = Option(..., help="A data file, a folder of files, or a hub id.")
TURNS = Option(5, min=1, help="How many times each engine is measured.")
REPORT = Option(None, help="A JSON file for all figures.", show_default="none")


def doubt(
    data: str = DATA,
    model: str = READER["model"],
    questions: int = Option(2000, min=2, help="How many questions, chosen at random."),
    long_questions: int = Option(300, min=1, help="How many of them to ask about whole articles."),
    searches: int = Option(500, min=1, help="How many of them to ask about 20 passages."),
) -> None:
    """Measure how reliable the scores are.

    This compares them with the old pipeline of transformers.
    """
    echo(json.dumps(bench_doubt(model, data, questions, long_questions, searches), indent=1))


def train(
    data: str = DATA, model: str = READER["model"], turns: int = TURNS, output: Path | None = REPORT
) -> None:
    """Measure the speed of training.

    This compares it with transformers, if that is installed.
    """
    write_report(lambda: bench_train(model, data, turns), output)


def answer(
    data: str = DATA,
    model: str = READER["model"],
    turns: int = TURNS,
    minutes: float = Option(10.0, min=0, help="How long the command may take, if possible."),
    questions: int | None = Option(
        None, min=1, help="How many questions.", show_default="as many as --minutes allow"
    ),
    device: str = READER["device"],
    output: Path | None = REPORT,
) -> None:
    """Measure the speed and quality of answers.

    This compares them with the other libraries that are installed, each in every precision that it
    offers. On a GPU, only minibert and transformers are measured. The last lines are a row for the
    table of kinds of processor in minibert/bench/README.md.
    """
    report = write_report(
        lambda: bench_answer(model, data, turns, minutes, device, questions), output
    )
    echo(row_of(report))


def parts(data: str = DATA, model: str = READER["model"], turns: int = TURNS) -> None:
    """Measure the parts around the model.

    These are the search, making windows, and starting the program.
    """
    for name, figure in bench_parts(model, data, turns).items():
        echo(f"{name:32} {figure:.2f}")


def serve(
    data: str = DATA,
    model: str = READER["model"],
    turns: int = TURNS,
    requests: int = Option(200, min=1, help="How many requests in each turn."),
) -> None:
    """Measure the requests per second of `minibert serve`.

    This compares 50 clients with one client, and batches with one request at a time.
    """
    for name, figure in bench_serve(model, data, turns, requests).items():
        echo(f"{name:56} {figure:.2f}")


def web(
    data: str = DATA,
    model: str = READER["model"],
    turns: int = TURNS,
    onnxruntime_web: Path | None = Option(
        None,
        help="The folder `dist` of the npm package onnxruntime-web, to compare with.",
        show_default="none",
    ),
    site: Path | None = Option(
        None,
        help="What `minibert site` wrote, a folder or a file, to measure this page too.",
        show_default="none",
    ),
) -> None:
    """Measure the model in JavaScript, in a headless Chromium.

    All times are in seconds.
    """
    for name, figure in bench_web(model, data, turns, onnxruntime_web, site).items():
        echo(f"{name:48} {figure:.3f}")


def write_report(measure: Callable[[], dict[str, Any]], output: Path | None) -> dict[str, Any]:
    """Measure, print, and write the report to a file. Returns the report.

    If the folder cannot be written, the error comes before the measurement. An old report stays
    until the new one is complete.
    """
    if output is None:
        report = measure()
        echo(table_of(report))
        return report
    if output.is_dir():
        raise InputError(f"{output}: a folder; expected a file to write")
    make_folder(output.parent)
    report = measure()
    echo(table_of(report))
    with complete_files(output.parent) as draft:
        text = json.dumps(report, indent=1)
        (draft / output.name).write_text(text + "\n", encoding="utf-8")
    return report
