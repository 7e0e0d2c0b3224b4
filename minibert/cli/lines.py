"""Lines of questions in, JSON lines with their answers out. A stopped job can continue."""

import csv
import hashlib
import json
import re
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from ..data.examples import Example, validated_example
from ..data.formats import DELIMITERS, decoded, read_table, table_delimiter
from ..data.rows import field_name
from ..engine import OnBatch
from ..errors import InputError, Interrupted
from ..files import only_job
from ..identity import differences, tensors_digest
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings
from .printing import progress_bars

Rows = Iterator[tuple[str, str, Any]]  # the place, the text as JSON, and the value of each row
Asked = Iterator[tuple[Example, str]]  # a question, and the beginning of the line with its answer


@contextmanager
def file_errors(path: Path, action: str) -> Iterator[None]:
    """Turn the `OSError` of a file that cannot be opened or written into an `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or path}: no such file") from error
    except OSError as error:
        name = error.filename or path
        raise InputError(f"{name}: cannot be {action}: {error.strerror}") from error


def require_new(path: Path) -> None:
    """Raise `InputError` for a file that exists, because no command overwrites a file."""
    if path.exists():
        raise InputError(f"{path}: exists already; choose another name")


def open_lines(path: Path) -> AbstractContextManager[BinaryIO]:
    """A file to read, or standard input for "-". Raises `InputError`."""
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        return nullcontext(sys.stdin.buffer)
    with file_errors(path, "opened"):
        return path.open("rb")


def rows_of(lines: Iterable[bytes], source: str) -> Rows:
    """The rows of JSON lines, or of a table (CSV or TSV) with a header.

    Each row comes with its place, which is `source` and a number, and its text as JSON. Blank lines
    are left out. Raises `InputError`.
    """
    lines = iter(lines)
    first = next(lines, b"")
    every = chain([first], lines)
    delimiter = delimiter_of(first, source)
    return json_rows(every, source) if delimiter is None else table_rows(every, delimiter, source)


def delimiter_of(header: bytes, source: str) -> str | None:
    """What separates the cells of a table, if this is the first line of a table; otherwise None.

    A table has the column "context". Raises `InputError` for a CSV or TSV file without it.
    """
    text = header.decode("utf-8-sig", errors="replace").strip()
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return None
    delimiter = table_delimiter(text, ["context"])
    if delimiter is None and Path(source).suffix.lower() in DELIMITERS:
        raise InputError(f"{source}: expected a header with the column 'context'")
    return delimiter


def column_name(name: str) -> str:
    """A column that we read may be written in capitals. Other names stay as they are."""
    plain = field_name(name)
    return plain if plain in ("question", "context") else name.strip()


def json_rows(lines: Iterable[bytes], source: str) -> Rows:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{source}: line {number}"
            try:
                text = decoded(line, "utf-8-sig").strip()
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not readable as JSON: {error}") from error
            yield place, text, value


def table_rows(lines: Iterator[bytes], delimiter: str, source: str) -> Rows:
    def read() -> Iterator[str]:
        yield decoded(next(lines), "utf-8-sig")
        yield from map(decoded, lines)

    try:
        columns, rows = read_table(read(), delimiter)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{source}: not readable as a table: {error}") from error
    names = list(map(column_name, columns))
    if len(set(names)) < len(names):
        raise InputError(f"{source}: the header has a column twice")
    number = 0
    while True:
        number += 1
        place = f"{source}: row {number}"
        try:
            row = next(rows, None)
        except (ValueError, csv.Error) as error:
            raise InputError(f"{place}: not readable as a table: {error}") from error
        if row is None:
            return
        if None in row:
            raise InputError(f"{place}: more fields than the header has")
        cells = (row[column] or "" for column in columns)  # "" for cells that are missing
        row = dict(zip(names, cells, strict=True))
        yield place, json.dumps(row, ensure_ascii=False), row


def passages_of(lines: Iterable[bytes], source: str) -> Iterator[str]:
    """The passage in each row: a JSON string, or the field "context"."""
    for place, _, value in rows_of(lines, source):
        text = value.get("context") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f"{place}: expected a string, or an object with 'context'")
        yield text


def questions_of(lines: Iterable[bytes], source: str, key: str) -> Asked:
    """The question in each row, and the beginning of its line with the answer: `{..., "key": `."""
    for place, text, record in rows_of(lines, source):
        if not isinstance(record, dict) or not {"question", "context"} <= record.keys():
            raise InputError(f"{place}: expected an object with 'question' and 'context'")
        if key in record:
            raise InputError(f"{place}: the answer goes into {key!r}: rename this field")
        example = validated_example(place, record["question"], record["context"])
        # the original text, because numbers and names of other fields must keep their spelling
        yield example, f'{text[:-1].rstrip()}, "{key}": '


@dataclass(frozen=True)
class Shard:
    """Every `shards`-th question of a file, from number `shard` on. Questions count from 1."""

    shard: int
    shards: int

    @classmethod
    def parsed(cls, text: str) -> "Shard":
        """ "3/8" -> Shard(3, 8). Raises `InputError`."""
        match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
        shard, shards = map(int, match.groups()) if match else (0, 0)
        if not 1 <= shard <= shards:
            raise InputError(f"--shard {text}: expected K/N with K from 1 to N, for example 3/8")
        return cls(shard, shards)

    def size(self, questions: int) -> int:
        """How many of a file's questions the shard has.

        >>> [Shard(shard, 3).size(4) for shard in (1, 2, 3)]
        [2, 1, 1]
        """
        return len(range(self.shard - 1, questions, self.shards))

    def __str__(self) -> str:
        return f"{self.shard}/{self.shards}"


def answer_key(settings: AnswerSettings) -> str:
    """The field of a line that holds its answer, or its answers."""
    return "prediction" if settings.top_k == 1 else "predictions"


def answer_file(
    qa: QuestionAnswerer,
    source: Path,
    output: Path | None,
    resume: bool,
    settings: AnswerSettings,
    shard: Shard | None = None,
) -> None:
    """Answer the questions of a file, with progress bars. `output` None is standard output.

    Each line is written and flushed as soon as its answer is known. With `shard`, only its share of
    the questions is answered, but all lines are checked first. Raises `InputError`, and
    `Interrupted` after Ctrl-C.
    """
    with ExitStack() as stack:
        lines = stack.enter_context(open_lines(source))
        total = None
        part: dict[str, Any] = {}
        is_table = source.suffix.lower() in DELIMITERS  # whose cells may hold several lines
        read_twice = str(source) != "-" and lines.seekable()
        if shard is not None:
            if not read_twice:
                raise InputError(f"{source}: --shard reads its input twice: give a file")
            part = asdict(shard) | checked_input(qa, lines, str(source), settings)
            total = shard.size(part["questions"])
        elif read_twice and not is_table:
            total = sum(1 for line in lines if line.strip())
        if read_twice:
            lines.seek(0)
        written: BinaryIO = sys.stdout.buffer
        answered: Iterable[bytes] = ()
        if output is not None:
            stack.enter_context(only_job(output))
            made_by = identity(qa, settings) | part
            file = partial_file(output, made_by, resume, keep_about=shard is not None)
            answered = written = stack.enter_context(file)
        totals = {"questions": total, f"windows ({qa.computes_with})": None}
        on_line, on_batch = stack.enter_context(progress_bars(totals))
        try:
            asked = questions_of(lines, str(source), answer_key(settings))
            if shard is not None:
                asked = islice(asked, shard.shard - 1, None, shard.shards)
            if count := skip_answered(asked, answered, str(source)):
                on_line(count)
            for line in answer_lines(qa, asked, settings, on_batch):
                written.write(line)
                written.flush()
                on_line()
        except KeyboardInterrupt:
            if output is None:
                raise
            said = f"stopped: {output}.partial has the answers so far, and --resume continues"
            raise Interrupted(said, signal.SIGINT) from None


def checked_input(
    qa: QuestionAnswerer, lines: Iterable[bytes], source: str, settings: AnswerSettings
) -> dict[str, Any]:
    """A file's SHA-256 and the number of its questions. Raises `InputError` for a bad line.

    So a bad line stops every shard before its work. If it stopped only its own shard, the corrected
    file would be another input, and the finished parts would be lost.
    """
    sha256, count = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes]:
        for line in lines:
            sha256.update(line)
            yield line

    def examples() -> Iterator[Example]:
        nonlocal count
        for example, _ in questions_of(hashed(), source, answer_key(settings)):
            count += 1
            yield example

    qa.require_readable(examples())
    return {"input": sha256.hexdigest(), "questions": count}


def skip_answered(asked: Asked, answered: Iterable[bytes], source: str) -> int:
    """Skip the questions of the lines that are `answered` already, and count them.

    Raises `InputError` if these lines do not belong to these questions.
    """
    count = 0
    for line in answered:
        example, beginning = next(asked, (None, ""))
        if example is None or not line.startswith(beginning.encode()):
            place = source if example is None else example.id
            raise InputError(f"{place}: the answers so far belong to another input")
        count += 1
    return count


def answer_lines(
    qa: QuestionAnswerer, asked: Asked, settings: AnswerSettings, on_batch: OnBatch
) -> Iterator[bytes]:
    """The line of each question with its answer at the end, in the order of the questions.

    A line is copied character by character, except white space around it. The answer is one more
    field, `answer_key(settings)`. The memory in use does not grow with the number of lines.

    The `InputError` of a bad line is raised after the answers to the lines before it.
    """
    waiting: deque[str] = deque()  # the beginnings of lines that are read but not yet answered

    def examples() -> Iterator[Example]:
        for example, beginning in asked:
            waiting.append(beginning)
            yield example

    for answers in qa.answer_examples(examples(), settings, on_batch):
        rows = [answer.to_dict() for answer in answers[: settings.top_k]]
        value = json.dumps(rows[0] if settings.top_k == 1 else rows, ensure_ascii=False)
        yield f"{waiting.popleft()}{value}}}\n".encode()


def identity(qa: QuestionAnswerer, settings: AnswerSettings) -> dict[str, Any]:
    """Everything that the answer to a question depends on."""
    return {
        "model": tensors_digest(qa.model.state_dict(), qa.tokenizer.backend.to_str()),
        "precision": qa.precision,
        **asdict(qa.window_settings),
        **asdict(qa.calibration),
        **asdict(settings),
    }


def about_file(path: Path) -> Path:
    """The file that says what a stopped job's answers, or a part's, were made by."""
    return path.with_name(f"{path.name}.partial.json")


def read_about(path: Path) -> dict[str, Any]:
    """What an `about_file` holds; nothing if this is no object. Raises `InputError`."""
    with file_errors(path, "opened"):
        try:
            was = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not readable as JSON: {error}") from error
    return was if isinstance(was, dict) else {}


@contextmanager
def partial_file(
    path: Path, made_by: dict[str, Any], resume: bool, keep_about: bool = False
) -> Iterator[BinaryIO]:
    """A file to append answers to. It is renamed to `path` when the block ends without an error.

    Until then its name is `path` + ".partial", and `about_file(path)` holds `made_by`; with
    `keep_about`, also afterwards. With `resume`, it is the file of a stopped job, if there is one,
    without an incomplete last line. The caller gets it at position 0, to read the old answers
    first.

    Raises `InputError` if `path` exists, if a stopped job left a file and `resume` is False, if
    `made_by` differs from the stopped job's, and if a file cannot be written.
    """
    partial, about = path.with_name(f"{path.name}.partial"), about_file(path)
    with file_errors(partial, "opened"):
        require_new(path)
        if not partial.exists():
            about.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
        elif not resume:
            raise InputError(f"{partial}: holds answers of a stopped job: --resume continues it")
        if changed := differences(read_about(about), made_by):
            raise InputError(f"{partial}: not the job to resume: {'; '.join(changed.values())}")
        file = partial.open("a+b")
    with file_errors(partial, "written"):
        with file:
            file.seek(0)
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
            file.seek(0)
            yield file
        require_new(path)
        partial.rename(path)
        if not keep_about:
            about.unlink()
