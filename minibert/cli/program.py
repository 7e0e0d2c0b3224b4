"""The program `minibert`: the list of its commands, and how an error becomes one line."""

import codecs
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError, MinibertError
from ..fast.memory import keep_freed_memory
from ..identity import installed_version
from . import answering, bench, exporting, inspection, scoring, training
from .command import Command

# The class of errors in the use of a command. Typer has no public name for it.
UsageError: Any = typer.BadParameter.__base__

# without markup, the help of an option is one or two lines, also in a narrow terminal
app = typer.Typer(
    help="BERT for question answering, written by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    *(answering.demo, answering.answer, answering.explain, answering.serve),
    *(answering.site, exporting.export),
    *(inspection.show, inspection.check_data, training.train, training.adapt),
    *(scoring.evaluate, scoring.calibrate, inspection.inspect),
):
    app.command(cls=Command)(command)

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench", help="Compare minibert with other libraries.")
for command in (bench.answer, bench.train, bench.doubt, bench.parts, bench.serve, bench.web):
    bench_app.command(cls=Command)(command)


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"minibert {installed_version()}")
        raise typer.Exit


@app.callback()
def program(
    wanted: bool = typer.Option(
        False,
        "--version",
        callback=print_version,
        is_eager=True,
        help="Print minibert's version and exit.",
    ),
) -> None:
    """The options of the program itself."""


def main() -> None:
    """Run the command line. What a user can fix is one line on stderr, with the exit code 2.

    `MinibertError`s have their own exit codes.
    """
    keep_freed_memory()
    codecs.register_error("json_escape", json_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="json_escape")
    if sys.stderr is None:  # closed by the user, who wants no messages
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    warnings.showwarning = lambda message, *place: typer.echo(f"warning: {message}", err=True)
    # otherwise the hub's client prints a message for each of its retries
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        if sys.stdout is None:  # otherwise results would be lost without a message
            raise InputError("standard output is closed; to drop the output, use > /dev/null")
        code = app(prog_name="minibert", standalone_mode=False) or 0
        sys.stdout.flush()
    except MinibertError as error:
        code = fail(str(error), error.exit_code)
    except UsageError as error:
        message, code = error.format_message().strip(), error.exit_code
        command = error.ctx.command_path if error.ctx else "minibert"
        if message.startswith("Usage:"):  # there was no command: the message is the help
            typer.echo(message, err=True)
        else:
            fail(f"{message.rstrip('.')}; see {command} --help", code)
    except OSError as error:
        code = 1  # if the reader of the output has ended, as in `| head`
        if not isinstance(error, BrokenPipeError):
            place = error.filename or "a standard stream"
            code = fail(f"{place} cannot be used: {error.strerror or error}", InputError.exit_code)
        sys.stdout = io.StringIO()  # otherwise Python tries to write again when it exits
    sys.exit(code)


def fail(message: str, exit_code: int) -> int:
    """Print an error as one line."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return exit_code


def json_escape(error: Any) -> tuple[str, int]:
    """JSON's escapes for the characters that an encoding lacks, and the place after them.

    On Windows, the output of a command into a file or a pipe is often in cp1252, which has no
    emoji. JSON stays valid, because its text outside of strings is ASCII.
    """
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
