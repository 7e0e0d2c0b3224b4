"""Items of a file or data set -> rows: one for each question, with SQuAD's names and its place.

An item is a row already, or an article or a paragraph, as in SQuAD's files. Rows of MRQA, columns,
and answers that were written into one cell of a table get SQuAD's form too.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import DataError

# Each row comes with its place in the source. A row that cannot be read is a `DataError` instead.
Rows: TypeAlias = Iterable[tuple[str, Any]]

# The names that mean something here. In a row, they may be written in capitals.
FIELDS = frozenset(
    [
        *("id", "title", "context", "question", "answer", "answer_start", "answers"),
        *("is_impossible", "paragraphs", "qas", "qid", "detected_answers"),
    ]
)


def rows_of(items: Iterable[Any]) -> Rows:
    """Replace articles with their paragraphs, and paragraphs with their questions. Keep rows."""

    def place(index: int, item: Any) -> str:
        fields = item if isinstance(item, Mapping) else ()
        kind = "article" if "paragraphs" in fields else "paragraph" if "qas" in fields else ""
        return f"{kind} {index}" if kind else f"row {index + 1}"

    named = map(_named, items)
    rows = ((place(k, item), item) for k, item in enumerate(named) if not _is_header(item))
    for where, row in _opened(_opened(rows, "paragraphs", "paragraph"), "qas", "question"):
        yield where, _from_mrqa(row) if isinstance(row, Mapping) else row


def _opened(rows: Rows, field: str, name: str) -> Rows:
    """Replace a row with the items of its list in `field`. They get the row's context and title."""
    for place, row in rows:
        items = records(row.get(field)) if isinstance(row, Mapping) else None
        if not isinstance(items, list):
            yield place, row
            continue
        for index, item in enumerate(map(_named, items)):
            if isinstance(item, Mapping):
                item = {k: row[k] for k in ("context", "title") if k in row} | dict(item)
            yield f"{place}, {name} {index}", item


def records(value: Any) -> Any:
    """A list of objects from one object whose values are lists, or from a single object.

    >>> records({"question": ["Who?", "When?"], "id": [1, 2]})
    [{'question': 'Who?', 'id': 1}, {'question': 'When?', 'id': 2}]
    >>> records({"question": "Who?", "id": 1})
    [{'question': 'Who?', 'id': 1}]
    """
    if not isinstance(value, Mapping):
        return value
    lists = [cells for cells in value.values() if isinstance(cells, list)]
    if len(lists) < len(value) or len({len(cells) for cells in lists}) != 1:
        return [value]
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]


def field_name(name: Any) -> Any:
    """A name of ours without capitals and white space. Any other name stays unchanged."""
    plain = name.strip().lower() if isinstance(name, str) else name
    return plain if plain in FIELDS else name


def _named(item: Any) -> Any:
    """The row with our names for its fields. A name that is ours already has priority."""
    if not isinstance(item, Mapping) or FIELDS.issuperset(item):
        return item
    exact = {name: value for name, value in item.items() if name in FIELDS}
    return {field_name(name): value for name, value in item.items()} | exact


# --- MRQA, and answers that were written into one cell


def _is_header(item: Any) -> bool:
    """The first line of MRQA's files, {"header": {"dataset": ..., "split": ...}}."""
    return isinstance(item, Mapping) and item.keys() == {"header"}


def _from_mrqa(row: Mapping[str, Any]) -> Any:
    """A row of MRQA 2019 (arXiv:1910.09753) with SQuAD's fields. Other rows stay unchanged.

    Each place in `char_spans` becomes an answer. The places are inclusive. The text is the
    context's, because MRQA's `text` is normalised. `answers` also lists texts that the context does
    not have, so it is not used.
    """
    if "detected_answers" not in row:
        return row
    try:
        answers = []
        for answer in records(cell_value(row["detected_answers"])):
            spans = answer["char_spans"]
            if isinstance(spans, Mapping):  # as in the hub's data set
                spans = zip(spans["start"], spans["end"], strict=True)
            for start, end in spans:
                answers.append({"text": row["context"][start : end + 1], "answer_start": start})
    except (KeyError, TypeError, ValueError):
        expected = '[{"char_spans": [[start, end], ...]}, ...], as in MRQA'
        return DataError(f"'detected_answers' is not {expected}", "'detected_answers' is wrong")
    return {"id": row.get("qid")} | row | {"answers": answers}  # type: ignore[operator]


def cell_value(cell: Any) -> Any:
    """The value that a table's cell holds as JSON or as Python's text. Other cells are unchanged.

    >>> cell_value("{'text': array(['Ada'], dtype=object), 'answer_start': array([8])}")
    {'text': ['Ada'], 'answer_start': [8]}
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith(("{", "[")):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_WithoutCalls().visit(ast.parse(cell.strip(), mode="eval")))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return cell


class _WithoutCalls(ast.NodeTransformer):
    """Replace `array([8], dtype=int32)` with `[8]`, and `np.int64(8)` with `8`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        return node.args[0] if node.args and (name == "array" or name.startswith("np.")) else node
