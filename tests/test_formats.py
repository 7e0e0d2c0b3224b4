"""Data as people have it: files of other programs, tables in memory, files that hold no data."""

import csv
import gzip
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from test_cli import run as run_command  # the fixture

from minibert import DataError, Example, GoldAnswer, load_squad
from minibert.data.formats import read_table
from minibert.data.rows import cell_value

run = run_command

CONTEXT = 'At dusk Ada ("the keeper"),\nnot Bo, lit 20 lamps.'
ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "Who?", "context": CONTEXT, "answers": ["Ada", "the keeper"]},
    {"id": "b", "question": "How many?", "context": CONTEXT, "answers": ["20"]},
    {"id": "c", "question": "Where?", "context": CONTEXT, "answers": []},
]
for row in ROWS:
    starts = [CONTEXT.index(text) for text in row["answers"]]
    row["answers"] = {"text": row["answers"], "answer_start": starts}

EXPECTED = [
    Example(
        row["id"],
        row["question"],
        CONTEXT,
        tuple(GoldAnswer(text, CONTEXT.index(text)) for text in row["answers"]["text"]),
        not row["answers"]["text"],
    )
    for row in ROWS
]


def data_set() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


# ---------------------------------------------------------------------------- tables in memory

OBJECTS: dict[str, Callable[[], Any]] = {
    "a list of rows": lambda: ROWS,
    "a dict of columns": lambda: data_set().to_dict(),
    "a dict with data": lambda: {"data": ROWS},
    "Dataset, numpy": lambda: data_set().with_format("numpy"),
    "Dataset, torch": lambda: data_set().with_format("torch"),
    "Dataset, pandas": lambda: data_set().with_format("pandas"),
    "IterableDataset, numpy": lambda: data_set().to_iterable_dataset().with_format("numpy"),
    "DatasetDict": lambda: datasets.DatasetDict(train=data_set(), other=data_set().select([0])),
    "DatasetDict, numpy": lambda: datasets.DatasetDict(train=data_set()).with_format("numpy"),
    "DataFrame": lambda: pandas.DataFrame(ROWS),
    "DataFrame of a Dataset": lambda: data_set().to_pandas(),
    "DataFrame with pandas' types": lambda: pandas.DataFrame(ROWS).convert_dtypes(),
    "DataFrame with an index": lambda: pandas.DataFrame(ROWS, index=[9, 9, 7]),
    "rows of numpy": lambda: list(data_set().with_format("numpy")),
    "rows of pandas": lambda: data_set().to_pandas().to_dict("records"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_in_memory(kind):
    assert load_squad(OBJECTS[kind](), "train") == EXPECTED


def test_empty_cells_of_a_data_frame():
    """NaN, NA and None are empty, whatever the column's type. Floats are whole numbers."""
    table = pandas.DataFrame(
        {
            "question": ["When?", "Who?", "Who?"],
            "context": ["In 1912.", "At dusk.", "Ada"],
            "answer": [1912.0, np.nan, np.nan],
            "answer_start": pandas.array([3, None, None], dtype="Int64"),
            "id": pandas.array(["x", None, None], dtype="string"),
        }
    )
    assert [(e.id, [a.text for a in e.answers]) for e in load_squad(table)] == [
        ("x", ["1912"]),
        ("row 2", []),
        ("row 3", []),
    ]


def test_what_is_no_data_set_says_what_is_read():
    splits = datasets.DatasetDict(train=data_set(), test=data_set())
    for split in (None, "validation"):
        with pytest.raises(DataError, match=r"say which split: 'train', 'test'$"):
            load_squad(splits, split)
    for wrong in (7, None, b"x"):
        with pytest.raises(DataError, match="expected a file, a folder, a hub id, a Dataset"):
            load_squad(wrong)


# ------------------------------------------------------------------------------ Parquet, folders


def test_parquet(tmp_path, run, tiny):
    """As `datasets` and pandas write it, under any name, also compressed."""
    data_set().to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "B.PARQUET", index=True)
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.bin").write_bytes(raw)
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress(raw))
    for name in ("a.parquet", "B.PARQUET", "c.bin", "d.parquet.gz"):
        assert load_squad(tmp_path / name) == EXPECTED, name
    code, out, err = run("check-data", tmp_path / "a.parquet", "--tokenizer", tiny)
    assert code == 0 and "questions                      3" in out and "warning" not in err


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and more that is cut", b"no Parquet"])
def test_broken_parquet(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: not readable as parquet: ") as told:
        load_squad(path)
    assert "\n" not in str(told.value)


def test_folders_of_files(tmp_path):
    """A split may be several Parquet files, as on the hub. Other formats have one file."""
    for k in range(3):
        data_set().select([k]).to_parquet(tmp_path / f"train-{k:05d}-of-00003.parquet")
    assert load_squad(tmp_path, "train") == EXPECTED
    with pytest.raises(DataError, match=r"expected one dev-\* or .* got train-00000-of-00003"):
        load_squad(tmp_path, "validation")
    data_set().to_json(tmp_path / "validation.jsonl")
    assert load_squad(tmp_path, "validation") == EXPECTED
    data_set().to_json(tmp_path / "dev-v1.json")
    with pytest.raises(DataError, match=r"got dev-v1.json, validation.jsonl"):
        load_squad(tmp_path, "validation")


def test_a_file_name_belongs_to_the_row_of_one_file_only(tmp_path):
    wrong = data_set().select([0]).map(lambda row: {"question": ""})
    wrong.to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet: row 1 \(a\): the question is empty"):
        load_squad(tmp_path, "train")
    data_set().select([1]).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"row 1 \(a\)") as told:
        load_squad(tmp_path, "train")
    assert str(told.value).startswith(f"{tmp_path}: row 1")


def test_a_folder_that_save_to_disk_wrote(tmp_path, run, tiny):
    data_set().save_to_disk(tmp_path / "one")
    assert load_squad(tmp_path / "one") == load_squad(tmp_path / "one", "train") == EXPECTED
    splits = datasets.DatasetDict(train=data_set(), validation=data_set().select([1]))
    splits.save_to_disk(tmp_path / "two")
    assert load_squad(tmp_path / "two", "validation") == EXPECTED[1:2]
    with pytest.raises(DataError, match=r"two: a dict of splits; say which split: 'train', 'val"):
        load_squad(tmp_path / "two")
    code, out, err = run("check-data", tmp_path / "two", "--split", "train", "--tokenizer", tiny)
    assert code == 0 and "questions                      3" in out and "warning" not in err
    for file in (tmp_path / "one").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match="not readable as a folder that save_to_disk wrote"):
        load_squad(tmp_path / "one")


# ------------------------------------------------------------------------------------------- CSV


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoted", [False, True])
def test_the_delimiter_is_the_one_that_the_header_has(tmp_path, suffix, delimiter, quoted):
    table = as_csv([row | {"answers": json.dumps(row["answers"])} for row in ROWS], delimiter)
    if quoted:
        header, rest = table.split("\n", 1)
        names = delimiter.join(f'"{name}"' for name in header.strip().split(delimiter))
        table = f"{names}\r\n{rest}"
    path = tmp_path / f"d{suffix}"
    path.write_bytes(table.encode())
    assert load_squad(path) == EXPECTED


CELLS: dict[str, Callable[[Any], Any]] = {
    "JSON": json.dumps,
    "JSON of a list": lambda a: json.dumps(
        [{"text": t, "answer_start": s} for t, s in zip(*a.values(), strict=True)]
    ),
    "a dict of Python": str,
    "a dict of arrays": lambda a: str(
        {"text": np.array(a["text"], object), "answer_start": np.array(a["answer_start"])}
    ),
    "numbers of numpy": lambda a: str(
        {"text": a["text"], "answer_start": [np.int64(s) for s in a["answer_start"]]}
    ),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_cell_may_hold_the_answers(tmp_path, kind, suffix):
    rows = [row | {"answers": CELLS[kind](row["answers"])} for row in ROWS]
    path = tmp_path / f"d{suffix}"
    table = pandas.DataFrame(rows)
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    assert load_squad(path) == EXPECTED


def test_csv_as_pandas_and_datasets_write_it(tmp_path):
    data_set().to_csv(tmp_path / "a.csv")
    data_set().to_pandas().to_csv(tmp_path / "b.csv")
    pandas.DataFrame(ROWS).to_csv(tmp_path / "c.csv", sep=";", index=False)
    for name in "abc":
        assert load_squad(tmp_path / f"{name}.csv") == EXPECTED, name


@pytest.mark.parametrize("cell", ["Ada", "{", "{'a': open('x')}", "[x for x in y]", "[" * 10**5])
def test_a_cell_that_holds_no_answers_is_text(tmp_path, cell):
    assert cell_value(cell) == cell
    path = tmp_path / "d.csv"
    path.write_text(as_csv([ROWS[0] | {"answers": cell}]), encoding="utf-8")
    with pytest.raises(DataError, match="'answers' is str, expected a list"):
        load_squad(path)


@pytest.mark.parametrize("change", [str.upper, str.title, lambda name: f" {name} "])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_in_capitals(tmp_path, change, suffix):
    rows = [{change(k): v for k, v in row.items()} for row in ROWS]
    path = tmp_path / f"d{suffix}"
    if suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif suffix == ".csv":
        path.write_text(as_csv(rows), encoding="utf-8", newline="")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert load_squad(path) == EXPECTED


@pytest.mark.parametrize("second", ["answer", "ANSWER", " Answer "])
def test_a_column_that_occurs_twice_is_refused(tmp_path, second):
    """Other columns may: spreadsheet programs leave several without a name."""
    path = tmp_path / "d.csv"
    path.write_text(f"question,context,answer,{second}\nWho?,Ada and Bo,Ada,Bo\n", "utf-8")
    with pytest.raises(DataError, match=r"d.csv: two columns are named 'answer'"):
        load_squad(path)
    path.write_text("question,context,answer,,,x,x\nWho?,Ada,Ada,,,1,2\n", encoding="utf-8")
    assert load_squad(path)[0].answers == (GoldAnswer("Ada", 0),)
    table = pandas.DataFrame([["Who?", "Ada", "Ada", "Bo"]])
    table.columns = ["question", "context", "answer", second]
    with pytest.raises(DataError, match=r"the data set: two columns are named 'answer'"):
        load_squad(table)
    if second != "answer":
        table.to_parquet(tmp_path / "d.parquet")
        with pytest.raises(DataError, match=r"d.parquet: two columns are named 'answer'"):
            load_squad(tmp_path / "d.parquet")


# ------------------------------------------------------------------------- MRQA; `qas` as an object


def mrqa() -> list[dict[str, Any]]:
    """Lines of MRQA: a header, then paragraphs. Its places are inclusive."""
    context = "[PAR] The lamp, a brass lamp, was lit."
    detected = [
        {"text": "the lamp", "char_spans": [[10, 13], [24, 27]], "token_spans": [[2, 2], [7, 7]]},
        {"text": "Brass lamp", "char_spans": [[18, 27]], "token_spans": [[6, 7]]},
    ]
    question: dict[str, Any] = {"qid": "7f", "question": "What was lit?"}
    question |= {"detected_answers": detected, "answers": ["the lamp", "Brass lamp", "a light"]}
    return [
        {"header": {"dataset": "X", "split": "train"}},
        {"id": "", "context": context, "context_tokens": [], "qas": [question]},
    ]


def test_lines_of_mrqa(tmp_path):
    lines = mrqa()
    path = tmp_path / "SQuAD.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    (example,) = load_squad(path)
    answers = (GoldAnswer("lamp", 10), GoldAnswer("lamp", 24), GoldAnswer("brass lamp", 18))
    assert example == Example("7f", "What was lit?", lines[1]["context"], answers)

    # the same question as a row of the hub's data set
    row = lines[1]["qas"][0] | {"context": lines[1]["context"], "subset": "X"}
    spans = [{"start": [10, 24], "end": [13, 27]}, {"start": [18], "end": [27]}]
    row["detected_answers"] = {"text": ["the lamp", "Brass lamp"], "char_spans": spans}
    assert load_squad(datasets.Dataset.from_list([row])) == [example]
    assert load_squad([row]) == [example]
    row["detected_answers"] = []
    assert load_squad([row])[0].is_impossible


@pytest.mark.parametrize("wrong", [None, 7, ["the lamp"], [{"text": "lamp"}], [{"char_spans": 3}]])
def test_wrong_answers_of_mrqa_are_named(wrong):
    row = mrqa()[1]
    row["qas"][0]["detected_answers"] = wrong
    with pytest.raises(DataError, match=r"paragraph 0, question 0: 'detected_answers' is not \[{"):
        load_squad([row])


def test_questions_as_an_object():
    questions = [{k: v for k, v in row.items() if k != "context"} for row in ROWS]
    single = [{"context": CONTEXT, "qas": question} for question in questions]
    assert load_squad(single) == EXPECTED
    columns = {name: [question[name] for question in questions] for name in questions[0]}
    assert load_squad({"data": [{"paragraphs": {"context": CONTEXT, "qas": columns}}]}) == EXPECTED
    by_id = {question["id"]: question for question in questions}
    with pytest.raises(DataError, match=r"question 0: no 'question'; the fields are: .*'a', 'b'"):
        load_squad([{"context": CONTEXT, "qas": by_id}])


# ----------------------------------------------------------------- files that are something else

TABLE = "question,context,answer\nWho?,Zoë lit it.,Zoë\n"
OTHERS: dict[str, tuple[str, bytes, str]] = {
    "PDF": ("paper.pdf", b"%PDF-1.7\n%\xe2\xe3", "it is a PDF file, not text: pdftotext"),
    "a PDF with another name": ("d.csv", b"%PDF-1.7\n%\xe2\xe3", "it is a PDF file, not text"),
    "Excel": ("d.xlsx", b"PK\x03\x04\x14\0", "it is a ZIP file, as .xlsx and .docx are"),
    "old Excel": ("d.xls", b"\xd0\xcf\x11\xe0\xa1", "it is an old Office file"),
    "gzip without the name": ("d.csv", gzip.compress(b"x"), "compressed with gzip: unpack"),
    "Arrow": ("d.arrow", b"\xff\xff\xff\xff\x10\0", "it is an Arrow file, not text: give the fold"),
    "a picture": ("d.json", b"\x89PNG\r\n\x1a\n\0\0\0\r", "it is not a text file"),
    "UTF-16": ("d.csv", TABLE.encode("utf-16"), "it is text in UTF-16; save it as UTF-8"),
    "UTF-16, big end": ("d.csv", b"\xfe\xff" + TABLE.encode("utf-16-be"), "it is text in UTF-16;"),
    "UTF-16 without a mark": ("d.json", '{"a": 1}'.encode("utf-16-le"), "it is text in UTF-16;"),
    "Latin-1": (
        "d.csv",
        TABLE.encode("latin-1"),
        "it is not UTF-8 but probably Latin-1 or Windows-1252 (in line 2, the byte 0xeb would be "
        "'ë'); save it as UTF-8",
    ),
    "lines in Latin-1": ("d.jsonl", '{"a": "é"}\n'.encode("latin-1"), "(the byte 0xe9 would be"),
    "text": ("notes.txt", b"Ada lit it.\nBo slept.", "it begins with 'Ada lit it.', and JSON data"),
    "a list of steps": ("notes.txt", b"1. Light it.", "it begins with '1. Light it.', and JSON"),
    "empty": ("d.csv", b"", "the file is empty"),
    "empty JSON": ("d.json", b" \n", "the file is empty"),
    "empty lines": ("d.jsonl", b"\xef\xbb\xbf\n", "the file is empty"),
    "empty gzip": ("d.tsv.gz", gzip.compress(b""), "the file is empty"),
    "a pointer": (
        "d.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "a Git LFS pointer, not the file: git lfs pull gets it",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_something_else_says_what_it_is(run, tmp_path, tiny, kind):
    name, content, told = OTHERS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith(f"error: {path}: ") and told in err and "codec" not in err
    unknown = path.suffix in (".pdf", ".xlsx", ".xls", ".arrow", ".txt")
    assert ("minibert reads tables (.csv, .tsv, .parquet) and JSON" in err) is unknown


def test_an_empty_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "train-v1.json").touch()
    with pytest.raises(DataError, match=r"train-v1.json: not readable as JSON: the file is empty"):
        load_squad(tmp_path, "train")
    (tmp_path / "header.csv").write_text("question,context,answer\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"header.csv: holds no question"):
        load_squad(tmp_path / "header.csv")


def test_reading_warns_of_nothing(tmp_path):
    data_set().to_parquet(tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (tmp_path / "a.parquet", data_set(), pandas.DataFrame(ROWS)):
            load_squad(source)


@pytest.mark.parametrize("kind", ["JSON", "lines", "CSV", "Parquet", "PDF", "nothing"])
def test_standard_input(monkeypatch, tmp_path, kind):
    """What it holds decides how it is read. The same holds for a file with an unknown name."""
    rows = [row | {"answers": json.dumps(row["answers"])} for row in ROWS]
    data_set().to_parquet(tmp_path / "a.parquet")
    content = {
        "JSON": json.dumps({"data": ROWS}).encode(),
        "lines": "\n".join(map(json.dumps, ROWS)).encode(),
        "CSV": as_csv(rows, ";").encode(),
        "Parquet": (tmp_path / "a.parquet").read_bytes(),
        "PDF": b"%PDF-1.7",
        "nothing": b"",
    }[kind]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    for source, name in (("-", "standard input"), (path, str(path))):
        if kind in ("PDF", "nothing"):
            with pytest.raises(
                DataError, match=f"{re.escape(name)}: not readable as JSON: (it is a PDF|the)"
            ):
                load_squad(source)
        else:
            assert load_squad(source) == EXPECTED
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        load_squad("-")


def test_a_zero_character_is_text(tmp_path):
    path: Path = tmp_path / "d.jsonl"
    row = {"question": "\0?", "context": "\0Ada\0", "answer": "Ada"}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert load_squad(path)[0].answers == (GoldAnswer("Ada", 1),)


def test_a_table_is_read_row_by_row():
    """Cells may be long, and the limit that `csv` has for the whole process stays as it was."""
    limit, read = csv.field_size_limit(), []

    def lines():
        for line in (
            "question,context\n",
            f"Who?,{'Ada ' * 50_000}\n",
            'Who?,"Ada\n',
            'lit it."\n',
        ):
            read.append(line)
            yield line

    columns, rows = read_table(lines(), ",")
    assert columns == ["question", "context"] and len(read) == 1
    assert next(rows) == {"question": "Who?", "context": "Ada " * 50_000} and len(read) == 2
    assert csv.field_size_limit() == limit
    assert list(rows) == [{"question": "Who?", "context": "Ada\nlit it."}]
