"""What commands print: tables of answers, problems with data, progress bars."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import progress
from rich.console import Console

from ..answers import Answer
from ..errors import DataError, report_lines
from ..passages import PassageAnswer

NO_ANSWER = "(no answer)"  # in a table; JSON has ""


def table(answers: Sequence[Answer]) -> str:
    """A line for each answer. Passages and text score have a column if the answers have them."""
    columns = [
        ["   score", *(f"{a.score:8.4f}" for a in answers)],
        [" start", *(f"{a.start:6}" for a in answers)],
        ["   end", *(f"{a.end:6}" for a in answers)],
        [" answer", *(f" {' '.join(a.answer.split()) or NO_ANSWER}" for a in answers)],
    ]
    if answers[0].text_score is not None:
        columns.insert(0, ["    text", *(f"{a.text_score:8.4f}" for a in answers)])
    passages = [a.passages for a in answers if isinstance(a, PassageAnswer)]
    if passages:
        names = ["passage", *(",".join(map(str, places)) or "none" for places in passages)]
        width = max(map(len, names))
        columns.insert(0, [f"{name:>{width}}" for name in names])
    return "\n".join([*map(" ".join, zip(*columns, strict=True)), ""])


def print_problems(problems: list[DataError], limit: int | None = 20, err: bool = False) -> None:
    """A line for each problem, but at most `limit` lines of one kind."""
    for line in report_lines(problems, limit):
        typer.echo(line, err=err)


@contextmanager
def progress_bars(
    totals: Mapping[str, int | None], shown: bool = True
) -> Iterator[list[Callable[..., None]]]:
    """A progress bar on stderr for each description, and the function that advances it.

    The bars appear with the first step, because an error before it must stay a single line.
    """
    counts = (progress.TextColumn("{task.description}"), progress.BarColumn())
    times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    columns = (*counts, progress.MofNCompleteColumn(), *times)
    bars = progress.Progress(*columns, console=Console(stderr=True), disable=not shown)

    def advancing(task: progress.TaskID) -> Callable[..., None]:
        def advance(steps: int = 1, **changes: Any) -> None:
            bars.start()
            bars.update(task, advance=steps, **changes)

        return advance

    try:
        yield [advancing(bars.add_task(text, total=total)) for text, total in totals.items()]
    finally:
        if bars.live.is_started:
            bars.stop()
