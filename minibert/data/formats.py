"""Files, folders, hub data sets and objects in memory -> rows, each with its place.

`rows.py` says what a row is. The values of a row are checked later, in `examples.py`.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, PretrainedError, first_line
from ..hub import HUB_ID, refuse_pointer
from .rows import FIELDS, Rows, field_name, records, rows_of

if TYPE_CHECKING:
    import datasets

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITERS, *JSON_LINES, ".json", ".parquet")
ACCEPTED = "minibert reads tables (.csv, .tsv, .parquet) and JSON (.json, .jsonl)"

# How the names of a split's files begin; `datasets` knows the same names.
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("dev", "validation", "valid", "val")}
SAVED = ("dataset_dict.json", "state.json")  # `save_to_disk` writes one of these files

# The first bytes of files that are not text, what they are, and what to do.
SIGNATURES = {
    b"%PDF": "a PDF file, not text: pdftotext can save its text",
    b"PK\x03\x04": "a ZIP file, as .xlsx and .docx are, not text: save it as CSV or as text",
    b"\xd0\xcf\x11\xe0": "an old Office file, not text: save it as CSV or as text",
    b"\x1f\x8b": "compressed with gzip: unpack it with gunzip",
    b"ARROW1": "an Arrow file, not text: save it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow file, not text: give the folder that save_to_disk wrote",
}


def read_rows(source: Any, split: str | None) -> tuple[str, Rows]:
    """The source's name, and its rows. Raises `DataError` for a source that cannot be read."""
    if not isinstance(source, str | Path):
        return "the data set", rows_of(_from_object(source, "the data set", split))
    path = Path(source)
    if str(path) == "-":
        return "standard input", rows_of(_from_file(path))
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return str(path), rows_of(_from_object(_from_disk(path), str(path), split))
        first, *others = files = _files_of_split(path, split)
        items = chain.from_iterable(map(_from_file, files))
        return str(path if others else first), rows_of(items if others else _from_file(first))
    if path.is_file():
        return str(path), rows_of(_from_file(path))
    named_as_a_file = _suffix(path) in SUFFIXES or path.suffix == ".gz"
    if named_as_a_file or not HUB_ID.fullmatch(str(source)):
        raise DataError(f"{source}: no such file")
    return str(source), rows_of(_from_hub(str(source), split))


# --- Objects in memory


def _from_object(source: Any, name: str, split: str | None) -> Iterable[Any]:
    if hasattr(source, "with_format"):  # of the library `datasets`
        if isinstance(source, Mapping):
            if split not in source:
                splits = ", ".join(map(repr, source))
                raise DataError(f"{name}: a dict of splits; say which split: {splits}")
            source = source[split]
        items: Iterable[Any] = source.with_format(None)  # values of Python instead of arrays
        return items
    if hasattr(source, "iterrows"):  # a DataFrame of pandas
        _require_once(source.columns, name)
        objects = source.astype(object)
        source = objects.where(objects.notna(), None).to_dict("records")
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        kinds = "a file, a folder, a hub id, a Dataset, a DataFrame or a list of rows"
        raise DataError(f"{name}: a {type(source).__name__}; expected {kinds}")
    return map(_plain, _items(source) if isinstance(source, Mapping) else source)


def _plain(value: Any) -> Any:
    """The value with lists and numbers of Python instead of the arrays and numbers of numpy."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# --- Folders and the hub


def _from_disk(folder: Path) -> Any:
    import datasets  # here, because it takes a second to import

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many types
        raise DataError(
            f"{folder}: not readable as a folder that save_to_disk wrote: {first_line(error)}"
        ) from error


def _files_of_split(folder: Path, split: str | None) -> list[Path]:
    """The file of a split, or several Parquet files, in order."""
    names = SPLIT_NAMES.get(split or "")
    if names is None:
        raise DataError(f"{folder}: a folder; say which split, 'train' or 'validation'")
    readable = sorted(path for path in folder.iterdir() if _suffix(path) in SUFFIXES)
    files = [path for path in readable if re.split("[-_.]", path.name.lower())[0] in names]
    if len(files) == 1 or (files and {_suffix(path) for path in files} == {".parquet"}):
        return files
    listed = ", ".join(path.name for path in files or readable) or "none"
    expected = " or ".join(f"{name}-*" for name in names)
    raise DataError(f"{folder}: expected one {expected} file, got {listed:.200}; {ACCEPTED}")


def _from_hub(name: str, split: str | None) -> "datasets.Dataset":
    import datasets  # here, because it takes a second to import

    if split is None:
        raise DataError(f"{name}: a hub data set; say which split, 'train' or 'validation'")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many types: network, cache, name, split
        reason = f"no file has this name, and the hub gives no such data set: {first_line(error)}"
        raise DataError(f"{name}: {reason}") from error


# --- Files


def _suffix(path: Path) -> str:
    """The suffix that tells the format: `.csv` for "D.CSV" and for "d.csv.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _from_file(path: Path) -> Iterable[Any]:
    """The items of a file, or of standard input for "-"."""
    name, suffix = str(path), _suffix(path)
    try:
        if name == "-":
            name = "standard input"
            if sys.stdin is None:
                raise DataError("standard input is closed")
            raw = sys.stdin.buffer.read()
        else:
            refuse_pointer(path)
            raw = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            raw = gzip.decompress(raw)
        if raw.startswith(b"PAR1") or (suffix == ".parquet" and raw):
            return _parquet_rows(raw, name)
        text = decoded(raw, "utf-8-sig")  # spreadsheet programs write a byte order mark
        del raw  # it takes as much memory as the file
        if not text or text.isspace():
            raise ValueError("the file is empty")
        delimiter = table_delimiter(text)
        if suffix not in SUFFIXES and delimiter:
            suffix = ".csv"
        if suffix in DELIMITERS:
            lines = io.StringIO(text, newline="")
            columns, rows = read_table(lines, delimiter or DELIMITERS[suffix])
            _require_once(columns, name)
            return list(rows)
        return _json_lines(text) if suffix in JSON_LINES else _json_items(text)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        kind = suffix[1:] if suffix in (*DELIMITERS, *JSON_LINES, ".parquet") else "JSON"
        advice = "" if suffix in SUFFIXES else f"; {ACCEPTED}"
        raise DataError(f"{name}: not readable as {kind}: {error}{advice}") from error
    except PretrainedError as error:
        raise DataError(str(error)) from error


def decoded(raw: bytes, encoding: str = "utf-8") -> str:
    """The text of a file. Raises `ValueError`, which says what the bytes are if not UTF-8."""
    for signature, kind in SIGNATURES.items():
        if raw.startswith(signature):
            raise ValueError(f"it is {kind}")
    every_other_is_zero = len(raw) > 3 and not (any(raw[:100:2]) and any(raw[1:100:2]))
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or every_other_is_zero:
        raise ValueError("it is text in UTF-16; save it as UTF-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in raw[:1000]:
            raise ValueError("it is not a text file") from error
        line = raw.count(b"\n", 0, error.start) + 1
        place = f"in line {line}, " if b"\n" in raw[:-1] else ""
        byte = raw[error.start : error.start + 1]
        letter = byte.decode("cp1252", "replace")
        raise ValueError(
            f"it is not UTF-8 but probably Latin-1 or Windows-1252 ({place}the byte "
            f"0x{byte.hex()} would be {letter!r}); save it as UTF-8"
        ) from error


def _parquet_rows(raw: bytes, name: str) -> Iterable[Any]:
    import pyarrow.parquet  # here, because it is large; `datasets` needs it too

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw)).read()
    except pyarrow.ArrowException as error:
        raise ValueError(first_line(error)) from error
    _require_once(table.column_names, name)
    rows: list[Any] = table.to_pylist()
    return rows


def read_table(
    lines: Iterable[str], delimiter: str
) -> tuple[list[str], Iterator[dict[str | Any, str | Any]]]:
    """The names in the header of a table, and its rows, which are read when they are needed.

    Missing cells at the end of a row are None. More cells than the header has are a list under the
    key None. Both parts raise `csv.Error`, and the errors of `lines`.
    """
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)

    def rows() -> Iterator[dict[str | Any, str | Any]]:
        while True:
            with _long_cells():
                row = next(reader, None)
            if row is None:
                return
            yield row

    with _long_cells():
        columns = list(reader.fieldnames or ())
    return columns, rows()


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell have any length. The limit of `csv` (131,072) holds for the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def table_delimiter(text: str, columns: Collection[str] = ("question", "context")) -> str | None:
    """What separates the cells of a table, if the text begins with a header with these columns.

    >>> table_delimiter("ID;Question;Context;Answer")
    ';'
    """
    for delimiter in ",;\t|":  # as spreadsheet programs write them
        lines = io.StringIO(text[:10_000], newline="")
        try:
            header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if set(columns) <= set(map(field_name, header)):
            return delimiter
    return None


def _require_once(columns: Iterable[Any], name: str) -> None:
    """Raise `DataError` if two columns have a name that means something here."""
    counts = Counter(map(field_name, columns))
    for column in FIELDS & {column for column, count in counts.items() if count > 1}:
        raise DataError(f"{name}: two columns are named {column!r}; rename or remove one")


def _json_lines(text: str) -> Iterator[Any]:
    """The value of each line. For a line that is not JSON, the error."""
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                kind = "not readable as JSON"
                yield DataError(f"{kind}: {error}", kind)


def _json_items(text: str) -> Iterable[Any]:
    try:
        return _items(json.loads(text))
    except json.JSONDecodeError as error:
        beginning = text[:1000].lstrip().partition("\n")[0]
        if not beginning.startswith(("{", "[")):
            said = f"it begins with {beginning[:20]!r}, and JSON data begin with {{ or ["
            raise ValueError(said) from error
        if error.msg != "Extra data":
            raise
        return _json_lines(text)  # `Dataset.to_json` writes lines under any file name


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, Mapping) and "question" in value:
        value = records(value)  # a dict of columns
    return value if isinstance(value, list) else [value]
