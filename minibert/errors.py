"""The errors that a user can meet. Each message is one line, and says where the mistake is."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence


class MinibertError(Exception):
    """Base of all errors below: `except MinibertError` catches what a user can fix.

    >>> import minibert
    >>> try:
    ...     minibert.load_squad("missing.json")
    ... except minibert.MinibertError as error:
    ...     print(error)
    missing.json: no such file
    """

    exit_code = 2  # of the command line


class PretrainedError(MinibertError):
    """A model folder or hub id cannot be used: its configuration, weights or vocabulary.

    >>> import minibert
    >>> minibert.BertConfig(vocab_size=0)
    Traceback (most recent call last):
    minibert.errors.PretrainedError: config: vocab_size=0; expected a whole number from 1
    """


class DataError(MinibertError):
    """A data file or data set is missing, is unreadable, or contradicts itself.

    `kind` names the problem without its place and its values. Problems of the same kind are
    counted together.

    >>> import minibert
    >>> minibert.load_squad([{"context": "Ada lit it."}])
    Traceback (most recent call last):
    minibert.errors.DataError: the data set: row 1: no 'question'; the fields are: 'context'
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind or message


def counted(number: int, one: str, several: str) -> str:
    """A number with the words after it, for a message.

    >>> counted(1, "question has", "questions have")
    '1 question has'
    """
    return f"{number:,} {one if number == 1 else several}"


def summary(problems: Sequence[DataError]) -> DataError:
    """The first problem, and how many others there are."""
    first = problems[0]
    same = sum(problem.kind == first.kind for problem in problems) - 1
    others = len(problems) - 1 - same
    counts = [f"{same:,} more of this kind"] * (same > 0)
    counts += [counted(others, "other problem", "other problems")] * (others > 0)
    return DataError(f"{first} (and {' and '.join(counts)})" if counts else str(first), first.kind)


def summaries(problems: Iterable[DataError]) -> list[DataError]:
    """The `summary` of each kind of problem."""
    kinds: dict[str, list[DataError]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return [summary(group) for group in kinds.values()]


def report_lines(problems: Iterable[DataError], limit: int | None = 20) -> Iterator[str]:
    """One line per problem, at most `limit` of each kind; then how many more each kind has."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        if limit is None or counts[problem.kind] <= limit:
            yield str(problem)
    for kind, count in counts.items():
        if limit is not None and count > limit:
            yield f"and {count - limit:,} more: {kind}"


def first_of(names: Collection[str]) -> str:
    """The first name in alphabetical order, and how many other names there are, for a message.

    >>> first_of({"b", "a", "c"})
    'a and 2 more'
    """
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


def first_line(error: Exception) -> str:
    """The first line of another library's error, for a message of ours."""
    return str(error).strip().partition("\n")[0]


class InputError(MinibertError, ValueError):
    """An argument is out of range, or a question or context cannot be used.

    >>> import minibert
    >>> minibert.WindowSettings(doc_stride=-1)
    Traceback (most recent call last):
    minibert.errors.InputError: doc_stride=-1: an overlap cannot be negative
    """


class CheckpointError(MinibertError):
    """A training run cannot be resumed, because of its checkpoint, its data or its settings.

    >>> import minibert
    >>> issubclass(minibert.CheckpointError, minibert.MinibertError)
    True
    """


class NonFiniteError(MinibertError):
    """A loss, gradient or logit is NaN or infinite. Training has stopped.

    >>> import minibert
    >>> minibert.NonFiniteError.exit_code  # of the command line
    3
    """

    exit_code = 3


class Interrupted(MinibertError):
    """Ctrl-C or SIGTERM asked training to stop. Training has saved its state.

    >>> import minibert, signal
    >>> minibert.Interrupted("stopped at step 7", signal.SIGTERM).exit_code  # as shells report it
    143
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # pickle rebuilds the error from both
        self.exit_code = 128 + signal_number  # as shells report it

    def __str__(self) -> str:
        return str(self.args[0])
