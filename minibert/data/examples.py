"""Examples: files, hub data sets and `datasets.Dataset`s -> validated questions with answers.

It reads SQuAD's formats and tables. SQuAD v1.1 is arXiv:1606.05250. SQuAD v2.0, with questions
that have no answer, is arXiv:1806.03822.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, InputError, first_line, summary
from ..hub import HUB_ID

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An annotator's answer: `context[char_start:char_end] == text`."""

    text: str
    char_start: int  # code points; -1: not known, see the argument `misplaced` of `load_squad`

    @property
    def char_end(self) -> int:  # exclusive
        return self.char_start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a context, with the annotators' answers. Without answers: unanswerable."""

    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] = ()
    is_impossible: bool = False
    title: str = ""  # the title of the context's article, if the data has it


def load_squad(
    source: "str | Path | datasets.Dataset",
    split: str | None = None,
    skipped: list[DataError] | None = None,
    misplaced: list[DataError] | None = None,
) -> list[Example]:
    """Examples from a file, a folder of files, a hub id or a `Dataset`.

    A file is a table (`.csv` or `.tsv`, with a header), JSON lines (`.jsonl`), or JSON: a list of
    rows, or articles as in SQuAD v1.1 and v2.0. It may be gzipped (`.csv.gz`). `split` is "train"
    or "validation". A folder and a hub data set need it; a folder's files are named `train-*` and
    `dev-*`, as in SQuAD.

    All formats follow the same rule. A row has `question`, `context`, and either `answer` and
    `answer_start`, or `answers`: a list of {"text", "answer_start"}, or one such object whose
    values are lists. Articles (`paragraphs`) and paragraphs (`context`, `qas`) are split into rows.
    A cell is empty when it is missing, null, NaN or "". An empty answer means that the context does
    not answer the question. The start may be empty if the context has the answer exactly once. A
    row without an `id` gets its place as the id, such as "row 3". A number may be given as text
    ("20", also "20.0"), and a text as a number (1998).

    A row is wrong if a field is missing or has the wrong type, if question or context is empty, if
    an answer has no words or is not at its `answer_start`, if `is_impossible` contradicts the
    answers, or if the id occurs twice. The first wrong row raises `DataError`, with the number of
    others. With a list `skipped`, wrong rows are left out instead, and their errors are added to
    this list. A source that cannot be read, or has no valid row, always raises `DataError`.

    Scoring does not need `answer_start`. With a list `misplaced`, an answer that is not at its
    `answer_start` is kept with `char_start` -1, and the error is added to this list.
    """
    examples: list[Example] = []
    problems: list[DataError] = []
    ids = set()
    name, rows = _read(source, split)
    for place, row in rows:
        where = f"{name}: {place}"
        try:
            example, wrong_starts = _validated(row, place, where)
            if wrong_starts and misplaced is None:
                raise wrong_starts[0]
            if example.id in ids:
                raise _problem(where, "the id occurs twice", f": {example.id!r}")
        except DataError as error:
            problems.append(error)
        else:
            ids.add(example.id)
            examples.append(example)
            if misplaced is not None:
                misplaced += wrong_starts
    if skipped is not None:
        skipped += problems
    if problems and (skipped is None or not examples):
        raise summary(problems) from problems[0]
    if not examples:
        raise DataError(f"{source}: holds no question")
    return examples


def validated_example(name: str, question: object, context: object) -> Example:
    """A question and a context as an example with the id `name`.

    Raises `InputError`, which begins with the name, for a value that is not a valid string.
    """
    named = f"{name}: " if name else ""
    for kind, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"{named}the {kind} is a {type(text).__name__}; expected a string")
        if not _is_unicode(text):
            raise InputError(f"{named}the {kind} is not valid Unicode: it holds a lone surrogate")
    return Example(name, str(question), str(context))


# --- Sources: a file, a hub data set or a `Dataset` -> rows

# Each row comes with its place in the source. Rows are checked later, in `_validated`.
Rows = Iterable[tuple[str, Any]]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def _read(source: "str | Path | datasets.Dataset", split: str | None) -> tuple[str, Rows]:
    """The source's name, and its rows."""
    if not isinstance(source, str | Path):
        return "the data set", _rows(source)
    path = Path(source)
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.is_file():
        return str(path), _rows(_from_file(path))
    named_as_a_file = _suffix(path) in (*DELIMITERS, *JSON_LINES, ".json") or path.suffix == ".gz"
    if named_as_a_file or not HUB_ID.fullmatch(str(source)):
        raise DataError(f"{source}: no such file")
    return str(source), _rows(_from_hub(str(source), split))


def _suffix(path: Path) -> str:
    """The suffix that tells the format: `.csv` for "D.CSV" and for "d.csv.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_of_split(folder: Path, split: str | None) -> Path:
    stem = {"train": "train", "validation": "dev"}.get(split or "")
    if stem is None:
        raise DataError(f"{folder}: a folder; say which split, 'train' or 'validation'")
    files = sorted(folder.glob(f"{stem}-*.json")) + sorted(folder.glob(f"{stem}-*.json.gz"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{folder}: expected one {stem}-*.json or .json.gz, got {names}")
    return files[0]


def _from_hub(name: str, split: str | None) -> "datasets.Dataset":
    import datasets  # here, because it takes a second to import

    if split is None:
        raise DataError(f"{name}: a hub data set; say which split, 'train' or 'validation'")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many types: network, cache, name, split
        reason = f"no file has this name, and the hub gives no such data set: {first_line(error)}"
        raise DataError(f"{name}: {reason}") from error


def _from_file(path: Path) -> Iterable[Any]:
    suffix = _suffix(path)
    try:
        raw = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")  # spreadsheet programs write a byte order mark
        del raw  # it takes as much memory as the file
        if suffix in DELIMITERS:
            return _table_rows(text, DELIMITERS[suffix])
        return _json_lines(text) if suffix in JSON_LINES else _json_items(text)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        kind = suffix[1:] if suffix in (*DELIMITERS, *JSON_LINES) else "JSON"
        raise DataError(f"{path}: not readable as {kind}: {error}") from error


def _table_rows(text: str, delimiter: str) -> list[dict[Any, Any]]:
    limit = csv.field_size_limit(len(text) + 1)  # process-wide; its default is 131,072
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


def _json_lines(text: str) -> Iterator[Any]:
    """The value of each line. For a line that is not JSON, the error."""
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield error


def _json_items(text: str) -> Iterable[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _json_lines(text)  # `Dataset.to_json` writes lines under any file name
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        value = value["data"]
    return value if isinstance(value, list) else [value]


def _rows(items: Iterable[Any]) -> Rows:
    """Replace articles with their paragraphs, and paragraphs with their questions. Keep rows."""

    def place(index: int, item: Any) -> str:
        fields = item if isinstance(item, Mapping) else ()
        kind = "article" if "paragraphs" in fields else "paragraph" if "qas" in fields else ""
        return f"{kind} {index}" if kind else f"row {index + 1}"

    rows: Rows = ((place(index, item), item) for index, item in enumerate(items))
    return _opened(_opened(rows, "paragraphs", "paragraph"), "qas", "question")


def _opened(rows: Rows, field: str, name: str) -> Rows:
    """Replace a row with the items of its list in `field`. They get the row's context and title."""
    for place, row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get(field), list):
            yield place, row
            continue
        for index, item in enumerate(row[field]):
            if isinstance(item, Mapping):
                item = {k: row[k] for k in ("context", "title") if k in row} | dict(item)
            yield f"{place}, {name} {index}", item


# --- Rows: the same rule for all formats

# A column of whole numbers with empty cells is often written as 20.0.
WHOLE_NUMBER = re.compile(r"\s*(-?[0-9]{1,40})(\.0*)?\s*")
IMPOSSIBLE = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _validated(row: Any, place: str, where: str) -> tuple[Example, list[DataError]]:
    """A row as an example, and the errors in its answers' starts. Any other error is raised."""
    if isinstance(row, Exception):
        raise _problem(where, "not readable as JSON", f": {row}")
    _require_fields(row, where)
    if None in row:  # DictReader puts values without a column under the key None
        raise _problem(where, "more fields than the header has")
    identity = _text(row, "id", where) or place
    if not _is_unicode(identity):
        raise _problem(where, "the id is not valid Unicode: it holds a lone surrogate")
    if identity != place:
        where = f"{where} ({identity})"
    _require_fields(row, where, "context", "question")
    context, question = (_text(row, name, where) for name in ("context", "question"))
    for name, text in (("context", context), ("question", question)):
        if not text.strip():
            raise _problem(where, f"the {name} is empty")
        if not _is_unicode(text):
            raise _problem(where, f"the {name} is not valid Unicode: it holds a lone surrogate")

    said = row.get("is_impossible")
    is_impossible = None if _is_empty(said) else IMPOSSIBLE.get(str(said).lower())
    if is_impossible is None and not _is_empty(said):
        raise _problem(where, "'is_impossible' is neither true nor false", f": {said!r:.40}")
    answers, wrong_starts = [], []
    for record in _answers(row, where):
        _require_fields(record, where, "text")
        if is_impossible and _is_empty(record["text"]):
            continue  # some annotation tools write "" with start -1 for "no answer"
        answer, problem = _placed(record, context, where)
        answers.append(answer)
        wrong_starts += [problem] if problem else []
    if is_impossible is not None and is_impossible is not (not answers):
        said = f"is_impossible={is_impossible} with {len(answers)} answers"
        raise _problem(where, "is_impossible contradicts the answers", f": {said}")
    title = row["title"] if isinstance(row.get("title"), str) else ""
    example = Example(identity, question, context, tuple(answers), not answers, title)
    return example, wrong_starts


def _answers(row: Mapping[str, Any], where: str) -> Sequence[Any]:
    """A row's answers as a list of {"text", "answer_start"}, as in SQuAD's files."""
    answers = row.get("answers")
    if isinstance(answers, Mapping):  # as in hub data sets
        texts = _list(answers, "text", where)
        starts = _list(answers, "answer_start", where) or [None] * len(texts)
        if len(texts) != len(starts):
            counts = f": {len(texts)} and {len(starts)}"
            raise _problem(where, "not as many answer starts as texts", counts)
        return [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if _is_empty(answers) and ("answer" in row or "answers" not in row):
        _require_fields(row, where, "answer")
        text = _text(row, "answer", where)
        return [{"text": text, "answer_start": row.get("answer_start")}] if text else []
    return _list(row, "answers", where)


def _placed(record: Any, context: str, where: str) -> tuple[GoldAnswer, DataError | None]:
    """The answer at its start, and None. If the start is wrong: at -1, and the error."""
    text, start = _text(record, "text", where), record.get("answer_start")
    if not text.strip():
        advice = "; without an answer, `answers` is an empty list or `is_impossible` is true"
        raise _problem(where, "an answer has no words", f": {text!r}{advice}")
    unplaced = GoldAnswer(text, -1)
    first, last = context.find(text), context.rfind(text)
    if _is_empty(start):
        if first == last >= 0:
            return GoldAnswer(text, first), None
        problem = "the context does not have {}"
        if first >= 0:
            problem = "the context has {} more than once; answer_start must say where"
        kind = problem.format("the answer")
        return unplaced, DataError(f"{where}: {problem.format(repr(text))}", kind)
    number = WHOLE_NUMBER.fullmatch(str(start))
    if not number:
        return unplaced, _problem(where, "'answer_start' is not a whole number", f": {start!r:.40}")
    start = int(number[1])
    near = [s for s in (start, start - 1, start + 1) if s >= 0 and context.startswith(text, s)]
    if near[:1] == [start]:
        return GoldAnswer(text, start), None
    count = context.count(text)
    where_else = f"but at {count} other places" if count else "nor elsewhere in the context"
    if near or first == last >= 0:
        where_else = f"but at {(near or [first])[0]}"
    there = context[max(start, 0) : max(start + len(text), 0)]
    return unplaced, DataError(
        f"{where}: answer {text!r} is not at answer_start={start} (the text there is {there!r}), "
        f"{where_else}",
        "an answer is not at its answer_start",
    )


# --- Cells


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # pandas writes NaN, and NaN != NaN


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = record.get(name)
    if _is_empty(value):
        return []
    if not isinstance(value, list):
        raise _problem(where, f"{name!r} is {type(value).__name__}, expected a list")
    return value


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    """The text of a cell: a number becomes its digits, an empty cell "". Raises `DataError`."""
    value = record.get(name)
    if _is_empty(value):
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _problem(where, f"{name!r} is {type(value).__name__}, expected text")
    return str(value)


def _require_fields(record: Any, where: str, *names: str) -> None:
    if not isinstance(record, Mapping):
        raise _problem(where, f"expected an object, got {type(record).__name__}")
    for name in names:
        if name not in record:
            others = ", ".join(map(repr, record)) or "none"
            raise _problem(where, f"no {name!r}", f"; the fields are: {others:.100}")


def _is_unicode(text: str) -> bool:
    """False for a text with a lone surrogate, as from JSON's "\\ud800": no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(where: str, kind: str, detail: str = "") -> DataError:
    """The error for a problem at a place. Problems of the same `kind` are counted together."""
    return DataError(f"{where}: {kind}{detail}", kind)
