"""The errors a user can meet. Each carries one line that names the thing at fault."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence


class MinibertError(Exception):
    """Base of all the errors below: `except MinibertError` catches what a user can put right."""

    exit_code = 2  # of the command line


class PretrainedError(MinibertError):
    """A model folder or hub id that cannot be used: its configuration, weights or vocabulary."""


class DataError(MinibertError):
    """A data file or data set that is missing, unreadable or contradicts itself.

    `kind` is what is wrong, without the place and the values: problems of one kind are counted
    together.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind or message


def summary(problems: Sequence[DataError]) -> DataError:
    """What the first of them says, and how many more there are."""
    first = problems[0]
    alike = sum(problem.kind == first.kind for problem in problems) - 1
    others = len(problems) - 1 - alike
    counts = [f"{alike:,} more such"] * (alike > 0) + [f"{others:,} other problems"] * (others > 0)
    return DataError(f"{first} (and {' and '.join(counts)})" if counts else str(first), first.kind)


def report_lines(problems: Iterable[DataError], limit: int | None = 20) -> Iterator[str]:
    """A line for each problem, but at most `limit` of a kind; then how many more a kind has."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        if limit is None or counts[problem.kind] <= limit:
            yield str(problem)
    for kind, count in counts.items():
        if limit is not None and count > limit:
            yield f"and {count - limit:,} more: {kind}"


def first_of(names: Collection[str]) -> str:
    """The first name in alphabetical order, and how many more there are, for a message.

    >>> first_of({"b", "a", "c"})
    'a and 2 more'
    """
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


class InputError(MinibertError, ValueError):
    """An argument out of range, or a question or context that nothing can be done with."""


class CheckpointError(MinibertError):
    """A training run that cannot be resumed: its checkpoint, its data or its settings."""


class NonFiniteError(MinibertError):
    """A loss, gradient or logit that is NaN or infinite: training has stopped."""

    exit_code = 3


class Interrupted(MinibertError):
    """Training was asked to stop, by Ctrl-C or SIGTERM, and has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both: pickle makes it again from these
        self.exit_code = 128 + signal_number  # as shells report it

    def __str__(self) -> str:
        return str(self.args[0])
