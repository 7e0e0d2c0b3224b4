"""The program `minibert`: the list of its commands, and how an error becomes one line."""

import codecs
import io
import json
import os
import sys
import warnings
from typing import Any

import typer

from ..errors import MinibertError
from ..fast.memory import keep_freed_memory
from . import answering, bench, inspection, scoring, training

app = typer.Typer(
    help="BERT for question answering, written by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(answering.demo, answering.answer, answering.explain, answering.serve),
    *(inspection.show, inspection.check_data, training.train, training.adapt),
    *(scoring.evaluate, scoring.calibrate, inspection.inspect),
):
    app.command()(command)

bench_app = typer.Typer(no_args_is_help=True)
app.add_typer(bench_app, name="bench", help="Compare minibert with other libraries.")
for command in (bench.answer, bench.train, bench.doubt, bench.parts):
    bench_app.command()(command)


def main() -> None:
    """Run the command line. A `MinibertError` prints one line to stderr and sets the exit code."""
    keep_freed_memory()
    codecs.register_error("json_escape", json_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="json_escape")
    warnings.showwarning = lambda message, *place: typer.echo(f"warning: {message}", err=True)
    # otherwise the hub's client prints a message for each of its retries
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app()
    except MinibertError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)


def json_escape(error: Any) -> tuple[str, int]:
    """JSON's escapes for the characters that an encoding lacks, and the place after them.

    On Windows, the output of a command into a file or a pipe is often in cp1252, which has no
    emoji. JSON stays valid, because its text outside of strings is ASCII.
    """
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
