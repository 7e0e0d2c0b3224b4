"""Examples: files, data sets and tables -> validated questions with answers.

`formats.py` reads the rows of tables, data sets and SQuAD's formats. Here each row is checked.
SQuAD v1.1 is arXiv:1606.05250. SQuAD v2.0, with questions that have no answer, is arXiv:1806.03822.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import regex

from ..errors import DataError, InputError, summaries, summary
from .formats import read_rows
from .rows import cell_value

if TYPE_CHECKING:
    import datasets
    import pandas


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An annotator's answer: `context[char_start:char_end] == text`.

    >>> import minibert
    >>> minibert.GoldAnswer("Ada", 20).char_end
    23
    """

    text: str
    char_start: int  # code points; -1: not known, see the argument `misplaced` of `load_squad`

    @property
    def char_end(self) -> int:  # exclusive
        return self.char_start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a context, with the annotators' answers. Without answers: unanswerable.

    >>> import minibert
    >>> answers = (minibert.GoldAnswer("Ada", 20),)
    >>> context = "At dusk the keeper, Ada, lit the lamp."
    >>> example = minibert.Example("1", "Who lit the lamp?", context, answers)
    >>> example.context[answers[0].char_start : answers[0].char_end]
    'Ada'
    """

    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] = ()
    is_impossible: bool = False
    title: str = ""  # the title of the context's article, if the data has it


def load_squad(
    source: "str | Path | datasets.Dataset | datasets.DatasetDict | pandas.DataFrame | list[Any]",
    split: str | None = None,
    skipped: list[DataError] | None = None,
    misplaced: list[DataError] | None = None,
    doubtful: list[DataError] | None = None,
) -> list[Example]:
    """Examples from a file, a folder, a hub id, or an object in memory.

    - A file is a table (`.csv` or `.tsv` with a header, `.parquet`), JSON lines (`.jsonl`), or
      JSON: a list of rows, or articles as in SQuAD v1.1 and v2.0. It may be gzipped (`.csv.gz`). A
      table may be separated by commas, semicolons, tabs or bars. "-" is standard input.
    - A folder has files named `train-*` and `dev-*` (as in SQuAD) or `validation-*`, or
      `save_to_disk` of the library `datasets` wrote it.
    - An object is a `Dataset`, a `DatasetDict`, a `DataFrame` of pandas, or the content of a JSON
      file.

    `split` is "train" or "validation". A folder, a hub data set and a `DatasetDict` need it.

    All formats follow the same rule. A row has `question`, `context`, and either `answer` and
    `answer_start`, or `answers`: a list of {"text", "answer_start"}, or one such object whose
    values are lists. A cell of a table may hold this list or object as text: as JSON, or as pandas
    writes it. The lines of MRQA have `detected_answers` instead. Articles (`paragraphs`) and
    paragraphs (`context`, `qas`) are split into rows. All these names may be in capitals.

    A cell is empty when it is missing, null, NaN or "". An empty answer means that the context does
    not answer the question. If `is_impossible` is true, the question has no answer, whatever the
    answers say. A row without an `id` gets its place as the id, such as "row 3". A number may be
    given as text ("20", also "20.0"), and a text as a number (1998).

    The start may be empty if the context has the answer exactly once. Whole words are searched
    first, and parts of words only if there is no whole word. If the context does not have "20.0",
    "20" is the answer.

    A row is wrong if a field is missing or has the wrong type, if question or context is empty, if
    an answer has no words or is not at its `answer_start`, if `is_impossible` is false without
    answers, or if the id occurs twice. The first wrong row raises `DataError`, with the number of
    others. With a list `skipped`, wrong rows are left out instead, and their errors are added to
    this list. A source that cannot be read, or has no valid row, always raises `DataError`.

    Scoring does not need `answer_start`. With a list `misplaced`, an answer that is not at its
    `answer_start` is kept with `char_start` -1, and the error is added to this list.

    A row is doubtful if an answer without a start is only a part of a word, or if `is_impossible`
    is true and the row has answers or no field for answers. Such a row is kept. One warning for
    each reason names the first row and the number of others. With a list `doubtful`, there is no
    warning, and an error for each doubtful row is added to this list.

    >>> import minibert
    >>> answers = {"text": ["Ada"], "answer_start": [0]}
    >>> row = {"id": "1", "question": "Who lit it?", "context": "Ada lit it.", "answers": answers}
    >>> minibert.load_squad([row])[0].answers
    (GoldAnswer(text='Ada', char_start=0),)
    """
    examples: list[Example] = []
    problems: list[DataError] = []
    doubts: list[DataError] = []
    ids = set()
    name, rows = read_rows(source, split)
    for place, row in rows:
        where = f"{name}: {place}"
        try:
            checked = _validated(row, place, where)
            if checked.wrong_starts and misplaced is None:
                raise checked.wrong_starts[0]
            if checked.example.id in ids:
                raise _problem(where, "the id occurs twice", f": {checked.example.id!r}")
        except DataError as error:
            problems.append(error)
        else:
            ids.add(checked.example.id)
            examples.append(checked.example)
            doubts += checked.doubts
            if misplaced is not None:
                misplaced += checked.wrong_starts
    if skipped is not None:
        skipped += problems
    if problems and (skipped is None or not examples):
        raise summary(problems) from problems[0]
    if not examples:
        raise DataError(f"{name}: holds no question")
    if doubtful is not None:
        doubtful += doubts
    else:
        for doubt in summaries(doubts):
            warnings.warn(str(doubt), stacklevel=2)
    return examples


def doubts_report(doubtful: Iterable[DataError]) -> dict[str, int]:
    """How many rows are doubtful, and why. `doubtful` is the list of `load_squad`."""
    kinds = Counter(doubt.kind for doubt in doubtful)
    return {
        "answers_inside_a_word": kinds[INSIDE_A_WORD],
        "unanswerable_by_is_impossible": kinds[WITH_ANSWERS] + kinds[WITHOUT_ANSWERS],
    }


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


# --- Rows: the same rule for all formats

# The kinds of doubtful rows
INSIDE_A_WORD = "the answer is only a part of a word"
WITH_ANSWERS = "is_impossible is true, so the answers are ignored"
WITHOUT_ANSWERS = "is_impossible is true without a field 'answers', which means no answer"

# A column of whole numbers with empty cells is often written as 20.0.
WHOLE_NUMBER = re.compile(r"\s*(-?[0-9]{1,40})(\.0*)?\s*")
IMPOSSIBLE = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Checked(NamedTuple):
    """A row as an example, the errors in its answers' starts, and the reasons for doubt."""

    example: Example
    wrong_starts: list[DataError]
    doubts: list[DataError]


def _validated(row: Any, place: str, where: str) -> Checked:
    """Check a row. An error that is not about an answer's start is raised."""
    if isinstance(row, DataError):
        raise DataError(f"{where}: {row}", row.kind)
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
    title = row["title"] if isinstance(row.get("title"), str) else ""
    if is_impossible:
        example = Example(identity, question, context, (), True, title)
        return Checked(example, [], _doubts_of_impossible(row, where))
    answers, wrong_starts, doubts = [], [], []
    for record in _answers(row, where):
        _require_fields(record, where, "text")
        answer, problem = _placed(record, context, where)
        answers.append(answer)
        if problem:
            wrong_starts.append(problem)
        elif _is_empty(record.get("answer_start")) and _is_part_of_a_word(answer, context):
            doubts.append(_problem(where, INSIDE_A_WORD, f": {answer.text!r}"))
    if is_impossible is False and not answers:
        kind = "is_impossible contradicts the answers"
        raise _problem(where, kind, ": is_impossible=False with 0 answers")
    example = Example(identity, question, context, tuple(answers), not answers, title)
    return Checked(example, wrong_starts, doubts)


def _doubts_of_impossible(row: Mapping[str, Any], where: str) -> list[DataError]:
    if "answers" not in row and "answer" not in row:
        return [_problem(where, WITHOUT_ANSWERS)]
    for record in _answers(row, where):
        _require_fields(record, where, "text")
        if not _is_empty(record["text"]):  # some annotation tools write "" for "no answer"
            return [_problem(where, WITH_ANSWERS, f": {record['text']!r:.40}")]
    return []


def _answers(row: Mapping[str, Any], where: str) -> Sequence[Any]:
    """A row's answers as a list of {"text", "answer_start"}, as in SQuAD's files."""
    answers = cell_value(row.get("answers"))
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
    return _list({"answers": answers}, "answers", where)


def _placed(record: Any, context: str, where: str) -> tuple[GoldAnswer, DataError | None]:
    """The answer at its start, and None. If the start is wrong: at -1, and the error."""
    text, start = _text(record, "text", where), record.get("answer_start")
    if not text.strip():
        advice = "; without an answer, `answers` is an empty list or `is_impossible` is true"
        raise _problem(where, "an answer has no words", f": {text!r}{advice}")
    unplaced = GoldAnswer(text, -1)
    if _is_empty(start):
        choice = _likeliest_places(text, context)
        if len(choice) == 1:
            return choice[0], None
        problem = "the context does not have {}"
        if choice:
            problem = "the context has {} more than once; answer_start must say where"
        kind = problem.format("the answer")
        return unplaced, DataError(f"{where}: {problem.format(repr(text))}", kind)
    number = WHOLE_NUMBER.fullmatch(str(start))
    if not number:
        return unplaced, _problem(where, "'answer_start' is not a whole number", f": {start!r:.40}")
    start = int(number[1])
    for spelling in _spellings(text):
        if start >= 0 and context.startswith(spelling, start):
            return GoldAnswer(spelling, start), None
    return unplaced, _misplaced(text, start, context, where)


def _misplaced(text: str, start: int, context: str, where: str) -> DataError:
    """The error for an answer that is not at its start. It says where the context has the text."""
    near = [s for s in (start - 1, start + 1) if s >= 0 and context.startswith(text, s)]
    first, last, count = context.find(text), context.rfind(text), context.count(text)
    where_else = f"but at {count} other places" if count else "nor elsewhere in the context"
    if near or first == last >= 0:
        where_else = f"but at {(near or [first])[0]}"
    there = context[max(start, 0) : max(start + len(text), 0)]
    return DataError(
        f"{where}: answer {text!r} is not at answer_start={start} (the text there is {there!r}), "
        f"{where_else}",
        "an answer is not at its answer_start",
    )


# --- Answers without a start

# A place between two letters or digits of one word or number. Scripts without spaces between words
# (Chinese, Japanese, Thai) have no such places. Unicode's Annex 14 defines the classes (lb).
_LETTER = r"[[\p{L}\p{M}\p{N}]--[\p{lb=ID}\p{lb=CJ}\p{lb=SA}]]"
INSIDE_WORD = regex.compile(
    rf"(?V1)(?<={_LETTER})(?={_LETTER})"
    r"|(?<=\p{Nd}[.,])(?=\p{Nd})|(?<=\p{Nd})(?=[.,]\p{Nd})"  # 20.5 is one number
)


def _likeliest_places(text: str, context: str) -> list[GoldAnswer]:
    """The answer at its places in the context: whole words, or parts of words if there are none.

    >>> _likeliest_places("art", "party, art")
    [GoldAnswer(text='art', char_start=7)]
    >>> _likeliest_places("20.0", "in 2020, 20 lamps")
    [GoldAnswer(text='20', char_start=9)]
    """
    written = [[GoldAnswer(t, k) for k in _starts(t, context)] for t in _spellings(text)]
    whole = [[a for a in answers if not _is_part_of_a_word(a, context)] for answers in written]
    return next((answers for answers in (*whole, *written) if answers), [])


def _spellings(text: str) -> list[str]:
    """The text, and if it is a whole number such as "20.0", also "20"."""
    number = WHOLE_NUMBER.fullmatch(text)
    return [text, number[1]] if number and number[1] != text else [text]


def _starts(text: str, context: str) -> Iterator[int]:
    start = context.find(text)
    while start >= 0:
        yield start
        start = context.find(text, start + 1)


def _is_part_of_a_word(answer: GoldAnswer, context: str) -> bool:
    ends = (answer.char_start, answer.char_end)
    return any(INSIDE_WORD.match(context, end) is not None for end in ends)


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
