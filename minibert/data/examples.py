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

from ..errors import DataError, InputError, summary
from ..pretrained import HUB_ID

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An annotator's answer: `context[char_start:char_start + len(text)] == text`.

    Or, where `load_squad` was asked for texts alone, one whose place is not known.
    """

    text: str
    char_start: int  # code points; -1: not known

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
    title: str = ""  # of the article that the context is from, where the data say it


def load_squad(
    source: "str | Path | datasets.Dataset",
    split: str | None = None,
    skipped: list[DataError] | None = None,
    misplaced: list[DataError] | None = None,
) -> list[Example]:
    """Examples from a file, a folder of files, a hub id or a `Dataset`.

    A file is a table, `.csv` or `.tsv` with a header; JSON lines, `.jsonl`; or JSON: a list of rows
    or SQuAD's articles, v1.1 and v2.0 alike. Each may be gzipped (`.csv.gz`). `split` ("train",
    "validation") chooses within a folder, whose files are then named `train-*` and `dev-*` as
    SQuAD's own, and within a hub data set, which needs it.

    One rule for all of them. A row has `question`, `context`, and either `answer` and
    `answer_start`, or `answers`: a list of {"text", "answer_start"}, or one such object of lists.
    Articles (`paragraphs`) and paragraphs (`context`, `qas`) are taken apart into rows. A cell is
    empty when it is missing, null, NaN or "". An empty answer says that the context has none; an
    empty start will do where the context has the answer once; a row without an `id` is named by its
    place, as "row 3". Numbers may be written as text and the other way round; "20.0" is 20.

    Every question is checked: fields that are missing or mistyped, an empty context, an answer
    without a word or not at its `answer_start`, an `is_impossible` that contradicts the answers, an
    id for the second time. Raises `DataError` naming the place of the first and counting the rest;
    or, with a list `skipped`, leaves such questions out and adds each one's error to it. Raises too
    for what cannot be read at all, and where no question is left.

    Scoring needs no starts. With a list `misplaced`, an answer that is not at its start is kept,
    with `char_start` -1, and its error added to that list.
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
                raise _problem(where, "an id for the second time", f": {example.id!r}")
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


# --- Sources: what stands in a file, a hub data set or a `Dataset`, taken apart into rows

# Each row with its place in the source. What is wrong with it is said when it is validated.
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
    """What kind of file this is: `.csv` for "D.CSV" and for "d.csv.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_of_split(folder: Path, split: str | None) -> Path:
    stem = {"train": "train", "validation": "dev"}.get(split or "")
    if stem is None:
        raise DataError(f"{folder}: a folder; say which split, 'train' or 'validation'")
    found = sorted(folder.glob(f"{stem}-*.json")) + sorted(folder.glob(f"{stem}-*.json.gz"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{folder}: expected one {stem}-*.json or .json.gz, found {names}")
    return found[0]


def _from_hub(name: str, split: str | None) -> "datasets.Dataset":
    import datasets  # here, because it takes a second to import

    if split is None:
        raise DataError(f"{name}: a hub data set; say which split, 'train' or 'validation'")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, cache, unknown name or split: the library's many types
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: no file of this name, and the hub gives no such data set: {reason}"
        ) from error


def _from_file(path: Path) -> Iterable[Any]:
    suffix = _suffix(path)
    try:
        raw = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")  # spreadsheets write a mark in front
        del raw  # as large as the file
        if suffix in DELIMITERS:
            return _table_rows(text, DELIMITERS[suffix])
        return _json_lines(text) if suffix in JSON_LINES else _json_items(text)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        kind = suffix[1:] if suffix in (*DELIMITERS, *JSON_LINES) else "JSON"
        raise DataError(f"{path}: not readable as {kind}: {error}") from error


def _table_rows(text: str, delimiter: str) -> list[dict[Any, Any]]:
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process: 131,072 characters a field
    try:
        file = io.StringIO(text, newline="")
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


def _json_lines(text: str) -> Iterator[Any]:
    """The value of each line; for a line that is no JSON, the error."""
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
        return _json_lines(text)  # which `Dataset.to_json` writes whatever the file is called
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        value = value["data"]
    return value if isinstance(value, list) else [value]


def _rows(items: Iterable[Any]) -> Rows:
    """Articles give way to their paragraphs, and paragraphs to their questions; rows stay."""

    def place(index: int, item: Any) -> str:
        fields = item if isinstance(item, Mapping) else ()
        kind = "article" if "paragraphs" in fields else "paragraph" if "qas" in fields else ""
        return f"{kind} {index}" if kind else f"row {index + 1}"

    rows: Rows = ((place(index, item), item) for index, item in enumerate(items))
    return _opened(_opened(rows, "paragraphs", "paragraph"), "qas", "question")


def _opened(rows: Rows, field: str, name: str) -> Rows:
    """What has a list in `field` gives way to the list's items, which get its context and title."""
    for place, row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get(field), list):
            yield place, row
            continue
        for index, item in enumerate(row[field]):
            if isinstance(item, Mapping):
                item = {k: row[k] for k in ("context", "title") if k in row} | dict(item)
            yield f"{place}, {name} {index}", item


# --- Rows: one rule for all

WHOLE_NUMBER = re.compile(r"\s*(-?[0-9]{1,40})(\.0*)?\s*")  # columns with gaps get written as 20.0
IMPOSSIBLE = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _validated(row: Any, place: str, where: str) -> tuple[Example, list[DataError]]:
    """A row as an example; beside it, what is wrong with the starts of its answers."""
    if isinstance(row, Exception):
        raise _problem(where, "not readable as JSON", f": {row}")
    _require_fields(row, where)
    if None in row:  # where DictReader puts what has no column
        raise _problem(where, "more fields than the header has")
    identity = _text(row, "id", where) or place
    require_unicode(identity, f"{where}: the id")
    if identity != place:
        where = f"{where} ({identity})"
    _require_fields(row, where, "context", "question")
    context, question = (_text(row, name, where) for name in ("context", "question"))
    for name, text in (("context", context), ("question", question)):
        if not text.strip():
            raise _problem(where, f"the {name} is empty")
    require_unicode(question + context, where)

    said = row.get("is_impossible")
    is_impossible = None if _is_empty(said) else IMPOSSIBLE.get(str(said).lower())
    if is_impossible is None and not _is_empty(said):
        raise _problem(where, "'is_impossible' is neither true nor false", f": {said!r:.40}")
    answers, wrong_starts = [], []
    for record in _answers(row, where):
        _require_fields(record, where, "text")
        if is_impossible and _is_empty(record["text"]):
            continue  # some annotation tools write "" at -1 for no answer
        answer, problem = _placed(record, context, where)
        answers.append(answer)
        wrong_starts += [problem] if problem else []
    if is_impossible is not None and is_impossible is not (not answers):
        said = f"is_impossible={is_impossible} with {len(answers)} answers"
        raise _problem(where, "is_impossible contradicts the answers", f": {said}")
    title = row.get("title")
    title = title if isinstance(title, str) else ""
    example = Example(identity, question, context, tuple(answers), not answers, title)
    return example, wrong_starts


def _answers(row: Mapping[str, Any], where: str) -> Sequence[Any]:
    """A row's answers as SQuAD has them: {"text", "answer_start"} each."""
    answers = row.get("answers")
    if isinstance(answers, Mapping):  # as hub data sets have them
        texts = _list(answers, "text", where)
        starts = _list(answers, "answer_start", where) or [None] * len(texts)
        if len(texts) != len(starts):
            counts = f": {len(texts)} and {len(starts)}"
            raise _problem(where, "not as many answer starts as texts", counts)
        pairs = zip(texts, starts, strict=True)
        return [{"text": text, "answer_start": start} for text, start in pairs]
    if _is_empty(answers) and ("answer" in row or "answers" not in row):
        _require_fields(row, where, "answer")
        text = _text(row, "answer", where)
        return [{"text": text, "answer_start": row.get("answer_start")}] if text else []
    return _list(row, "answers", where)


def _placed(record: Any, context: str, where: str) -> tuple[GoldAnswer, DataError | None]:
    """An answer where it stands; or, at no place, with what is wrong about its start."""
    text, start = _text(record, "text", where), record.get("answer_start")
    if not text.strip():
        advice = "; a question without an answer has an empty list of answers, or is_impossible"
        raise _problem(where, "an answer has no word", f": {text!r}{advice}")
    lost = GoldAnswer(text, -1)
    first, last = context.find(text), context.rfind(text)
    if _is_empty(start):
        if first == last >= 0:
            return GoldAnswer(text, first), None
        times = "not at all" if first < 0 else "more than once; answer_start says where"
        kind = f"the context has the answer {times}"
        return lost, DataError(f"{where}: the context has {text!r} {times}", kind)
    number = WHOLE_NUMBER.fullmatch(str(start))
    if not number:
        return lost, _problem(where, "'answer_start' is no whole number", f": {start!r:.40}")
    start = int(number[1])
    near = [s for s in (start, start - 1, start + 1) if s >= 0 and context.startswith(text, s)]
    if near[:1] == [start]:
        return GoldAnswer(text, start), None
    if near or first == last >= 0:
        hint = f"it stands at {(near or [first])[0]}"
    else:
        count = context.count(text)
        hint = f"it stands at {count} places" if count else "the context does not have it"
    found = context[max(start, 0) : max(start + len(text), 0)]
    return lost, DataError(
        f"{where}: answer {text!r} is not at answer_start={start}, where {found!r} stands; {hint}",
        "an answer is not at its answer_start",
    )


# --- Cells


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN, which pandas writes, is not itself


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = record.get(name)
    if _is_empty(value):
        return []
    if not isinstance(value, list):
        raise _problem(where, f"{name!r} is {type(value).__name__}, expected a list")
    return value


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    """A cell's text, also of a number; "" when it is empty."""
    value = record.get(name)
    if _is_empty(value):
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _problem(where, f"{name!r} is {type(value).__name__}, expected text")
    return str(value)


def _require_fields(record: Any, where: str, *names: str) -> None:
    if not isinstance(record, Mapping):
        raise _problem(where, f"expected an object, found {type(record).__name__}")
    for name in names:
        if name not in record:
            others = ", ".join(map(repr, record)) or "none"
            raise _problem(where, f"no {name!r}", f"; the fields are: {others:.100}")


def require_unicode(text: str, name: str) -> None:
    """Raises `DataError` for a lone surrogate, as JSON's "\\ud800" gives: no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = "not valid Unicode: it holds a lone surrogate"
        raise DataError(f"{name}: {what}", what) from error


def _problem(where: str, kind: str, detail: str = "") -> DataError:
    """What is wrong at a place; problems of one `kind` are counted together."""
    return DataError(f"{where}: {kind}{detail}", kind)


def validated_example(name: str, question: object, context: object) -> Example:
    """A pair of texts as an example of that name. Raises `InputError` for what is no text."""
    named = f"{name}: " if name else ""
    for kind, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"{named}the {kind} is a {type(text).__name__}; expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # as JSON's "\\ud800" gives
            raise InputError(
                f"{named}the {kind} is not valid Unicode: it holds a lone surrogate"
            ) from error
    return Example(name, str(question), str(context))
