"""SQuAD: files, hub data sets and `datasets.Dataset`s -> validated examples; the official metric.

SQuAD v1.1 is arXiv:1606.05250, v2.0 (with questions that have no answer) arXiv:1806.03822. The
metric gives the figures of the two official evaluation scripts.
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

from .errors import DataError
from .pretrained import HUB_ID

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An annotator's answer: `context[char_start:char_start + len(text)] == text`."""

    text: str
    char_start: int  # code points

    @property
    def char_end(self) -> int:  # exclusive
        return self.char_start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a context, with the answers that annotators gave (none: unanswerable)."""

    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] = ()
    is_impossible: bool = False


def load_squad(
    source: "str | Path | datasets.Dataset",
    split: str | None = None,
    skipped: list[DataError] | None = None,
) -> list[Example]:
    """Examples from a file, a folder of files, a hub id or a `Dataset`.

    A file is SQuAD's JSON (`.json` or `.json.gz`, v1.1 and v2.0 alike), or a table with a row a
    question (`.csv` with a header, or `.jsonl`): `question`, `context`, `answer`, `answer_start`,
    and `id` if you like. An empty `answer` says that the context has none; an empty `answer_start`
    will do where the context has the answer once. `split` ("train", "validation") chooses within a
    folder, whose files are then named `train-*` and `dev-*` as SQuAD's own, and within a hub data
    set, which needs it.

    Every question is checked: fields that are missing or mistyped, an empty context, an answer that
    does not stand at its `answer_start`, an `is_impossible` that contradicts the answers, an id for
    the second time. Raises `DataError` naming the place of the first and counting the rest; or,
    with a list `skipped`, leaves such questions out and adds each one's error to it. Raises too for
    what cannot be read at all, and where no question is left.
    """
    examples: list[Example] = []
    problems: list[DataError] = []
    ids = set()
    for found in _read(source, split):
        if isinstance(found, DataError):
            problems.append(found)
            continue
        where, example = found
        if example.id in ids:
            problems.append(DataError(f"{where}: the id {example.id!r} for the second time"))
        else:
            ids.add(example.id)
            examples.append(example)
    if problems and skipped is None:
        more = f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}") from problems[0]
    if skipped is not None:
        skipped += problems
    if not examples:
        raise DataError(f"{source}: holds no question")
    return examples


# What a reader yields: a question and its place, or what is wrong with it (or with a whole
# paragraph).
Found = Iterator[tuple[str, Example] | DataError]


def _read(source: "str | Path | datasets.Dataset", split: str | None) -> Found:
    if not isinstance(source, str | Path):
        return _from_rows(source, "the data set")
    path = Path(source)
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.is_file():
        return _from_table(path) if path.suffix in (".csv", ".jsonl") else _from_json(path)
    if path.suffix in (".json", ".gz", ".csv", ".jsonl") or not HUB_ID.fullmatch(str(source)):
        raise DataError(f"{source}: no such file")
    return _from_hub(str(source), split)


def _file_of_split(folder: Path, split: str | None) -> Path:
    stem = {"train": "train", "validation": "dev"}.get(split or "")
    if stem is None:
        raise DataError(f"{folder}: a folder; say which split, 'train' or 'validation'")
    found = sorted(folder.glob(f"{stem}-*.json")) + sorted(folder.glob(f"{stem}-*.json.gz"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{folder}: expected one {stem}-*.json or .json.gz, found {names}")
    return found[0]


def _from_hub(name: str, split: str | None) -> Found:
    import datasets  # here, because it takes a second to import

    if split is None:
        raise DataError(f"{name}: a hub data set; say which split, 'train' or 'validation'")
    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, cache, unknown name or split: the library's many types
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: no file of this name, and the hub gives no such data set: {reason}"
        ) from error
    return _from_rows(data, name)


def _from_rows(rows: Iterable[Any], name: str) -> Found:
    """The rows of a hub data set, whose `answers` is {"text": [...], "answer_start": [...]}."""
    for number, row in enumerate(rows):
        where = f"{name}: row {number}"
        try:
            answers = _field(row, "answers", Mapping, where)
            texts = _field(answers, "text", Sequence, where)
            starts = _field(answers, "answer_start", Sequence, where)
            if len(texts) != len(starts):
                raise DataError(f"{where}: {len(texts)} answer texts, {len(starts)} starts")
            pairs = zip(texts, starts, strict=True)
            question = {**row, "answers": [{"text": t, "answer_start": s} for t, s in pairs]}
            yield where, _example(question, _field(row, "context", str, where), where)
        except DataError as error:
            yield error


def _from_json(path: Path) -> Found:
    """The examples of a file: articles -> paragraphs -> questions."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        data = json.loads(raw.decode("utf-8"))
        del raw  # as large as the file, and this generator lives long
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    for a, article in enumerate(_field(data, "data", list, str(path))):
        in_article = f"{path}: article {a}"
        try:
            paragraphs = _field(article, "paragraphs", list, in_article)
        except DataError as error:
            yield error
            continue
        for p, paragraph in enumerate(paragraphs):
            in_paragraph = f"{in_article}, paragraph {p}"
            try:
                context = _field(paragraph, "context", str, in_paragraph)
                questions = _field(paragraph, "qas", list, in_paragraph)
            except DataError as error:
                yield error
                continue
            for q, question in enumerate(questions):
                where = f"{in_paragraph}, question {q}"
                try:
                    yield where, _example(question, context, where)
                except DataError as error:
                    yield error


def _from_table(path: Path) -> Found:
    """The rows of a CSV or JSON-lines file, numbered from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a mark in front
        rows: Iterable[Any]
        if path.suffix == ".csv":
            rows = _csv_rows(text)
        else:
            rows = (line for line in text.split("\n") if line.strip())
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        try:
            if isinstance(row, str):
                row = json.loads(row)
            context = _field(row, "context", str, where)
            if None in row:  # where DictReader puts what has no column
                raise DataError(f"{where}: more fields than the header has")
            answer = _field(row, "answer", str, where)
            start = row.get("answer_start")
            if answer and start in (None, ""):
                start = context.find(answer)
                if start < 0 or start != context.rfind(answer):
                    times = "not at all" if start < 0 else "more than once; answer_start says where"
                    raise DataError(f"{where}: the context has {answer!r} {times}")
            elif isinstance(start, str):  # CSV knows only text
                start = _whole_number(start)
            answers = [{"text": answer, "answer_start": start}] if answer else []
            identity = row.get("id") or f"row {number}"
            yield where, _example({**row, "id": identity, "answers": answers}, context, where)
        except (ValueError, RecursionError) as error:
            yield DataError(f"{where}: not readable as JSON: {error}")
        except DataError as error:
            yield error


def _csv_rows(text: str) -> list[dict[Any, Any]]:
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process: 131,072 characters a field
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    finally:
        csv.field_size_limit(limit)


def _whole_number(text: str) -> int | str:
    """The number that a cell holds, also as "20.0", as tables with empty cells get written."""
    found = re.fullmatch(r"\s*(-?[0-9]{1,18})(\.0*)?\s*", text)
    return int(found[1]) if found else text


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    if name not in record:
        raise DataError(f"{where}: no {name!r}")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: {name!r} is {type(value).__name__}, expected {kind.__name__}")
    return value


def require_unicode(text: str, name: str) -> None:
    """Raises `DataError` for a lone surrogate, as JSON's "\\ud800" gives: no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: not valid Unicode: it holds a lone surrogate") from error


def _example(question: Any, context: str, where: str) -> Example:
    """One question of the JSON format, checked."""
    identity = _field(question, "id", str, where)
    require_unicode(identity, f"{where}: the id")
    where = f"{where} ({identity})"
    if not context.strip():
        raise DataError(f"{where}: the context is empty")
    answers = []
    for record in _field(question, "answers", list, where):
        answer = GoldAnswer(
            _field(record, "text", str, where), _field(record, "answer_start", int, where)
        )
        found = context[max(answer.char_start, 0) : max(answer.char_end, 0)]
        if not 0 <= answer.char_start <= len(context) or found != answer.text:
            raise DataError(
                f"{where}: answer {answer.text!r} is not at answer_start={answer.char_start}, "
                f"where {found!r} stands"
            )
        answers.append(answer)
    is_impossible = question.get("is_impossible", not answers)
    if is_impossible is not (not answers):
        raise DataError(f"{where}: is_impossible={is_impossible!r} with {len(answers)} answers")
    text = _field(question, "question", str, where)
    if not text.strip():
        raise DataError(f"{where}: the question is empty")
    require_unicode(text + context, where)
    return Example(identity, text, context, tuple(answers), is_impossible)
