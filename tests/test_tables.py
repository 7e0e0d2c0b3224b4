"""Data as programs and people write it: all kinds of table follow the same rule. And the messages
for wrong data."""

import csv
import gzip
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import run as run_command  # the fixture

import minibert
from minibert import DataError, Example, GoldAnswer, InputError, load_squad
from minibert.data.metric import best_thresholds, squad_metrics
from minibert.scoring.evaluation import with_nulls

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
run = run_command
NOTES = Path(__file__).parent / "data" / "field_notes.json"

Row = dict[str, Any]  # id (or None), question, context, answer ("": none), answer_start (or None)

# ------------------------------------------------------------------------------ kinds of table


def rows_of_answers(rows: list[Row]) -> list[Row]:
    """As in hub data sets: `answers` has a list of texts and a list of starts."""

    def answers(row: Row) -> Row:
        fields = (("text", "answer"), ("answer_start", "answer_start"))
        return {theirs: [row[ours]] if row["answer"] else [] for theirs, ours in fields}

    kept = ("id", "question", "context")
    return [{name: row[name] for name in kept} | {"answers": answers(row)} for row in rows]


def without_ids(rows: list[Row]) -> list[Row]:
    """The rows without the field `id`, if it has no value."""
    return [{k: v for k, v in row.items() if k != "id" or v is not None} for row in rows]


def nested(rows: list[Row]) -> list[Row]:
    """Paragraphs with one question, as in SQuAD."""

    def question(row: Row) -> Row:
        answer = {"text": row["answer"], "answer_start": row["answer_start"]}
        kept = {"question": row["question"], "id": row["id"], "is_impossible": not row["answer"]}
        return kept | {"answers": [answer] if row["answer"] else []}

    return [{"context": row["context"], "qas": [question(row)]} for row in rows]


def of_floats(rows: list[Row]) -> list[Row]:
    """Starts are floats, and empty cells are NaN."""
    starts = [math.nan if row["answer_start"] is None else row["answer_start"] for row in rows]
    return [
        row | {"answer": row["answer"] or math.nan, "answer_start": float(start)}
        for row, start in zip(rows, starts, strict=True)
    ]


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def frame(rows: list[Row]) -> pandas.DataFrame:
    """Missing starts make the column one of floats. Missing answers are null."""
    table = pandas.DataFrame(without_ids(rows))
    table["answer"] = table["answer"].replace("", None)
    table["answer_start"] = table["answer_start"].astype(float)
    return table


def pandas_csv(rows: list[Row]) -> bytes:
    return str(frame(rows).to_csv(quoting=csv.QUOTE_NONNUMERIC)).encode()


def pandas_json(rows: list[Row], **how: Any) -> bytes:
    return str(frame(rows).to_json(orient="records", **how)).encode()


def from_datasets(rows: list[Row]) -> bytes:
    file = io.BytesIO()
    datasets.Dataset.from_list(without_ids(rows_of_answers(rows))).to_json(file)
    return file.getvalue()


BOM = b"\xef\xbb\xbf"
FILES: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "csv": ("d.csv", as_csv),
    "CSV, upper case, with a byte order mark": ("D.CSV", lambda rows: BOM + as_csv(rows)),
    "tsv": ("d.tsv", lambda rows: as_csv(rows, "\t")),
    "csv.gz": ("d.csv.gz", lambda rows: gzip.compress(as_csv(rows))),
    "csv by pandas": ("d.csv", pandas_csv),
    "lines": ("d.jsonl", as_lines),
    "lines, upper case, with a byte order mark": ("D.JSONL", lambda rows: BOM + as_lines(rows)),
    "lines.gz": ("d.jsonl.gz", lambda rows: gzip.compress(as_lines(rows))),
    "lines by pandas": ("d.jsonl", lambda rows: pandas_json(rows, lines=True)),
    "lines of floats and NaN": ("d.jsonl", lambda rows: as_lines(of_floats(rows))),
    "lines of answers": ("d.jsonl", lambda rows: as_lines(rows_of_answers(rows))),
    "lines by datasets": ("d.jsonl", from_datasets),
    "lines by datasets, named json": ("d.json", from_datasets),
    "a list of rows": ("d.json", lambda rows: as_json(without_ids(rows))),
    "a list of rows by pandas": ("d.json", pandas_json),
    "data: rows": ("d.json", lambda rows: as_json({"data": rows})),
    "data: rows by pandas": ("d.json", lambda rows: as_json(json.loads(str(
        frame(rows).to_json(orient="table", index=False)
    )))),
    "data: rows of answers": ("d.json", lambda rows: as_json({"data": rows_of_answers(rows)})),
}  # fmt: skip
NESTED: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "SQuAD": ("d.json", lambda rows: as_json({"data": [{"paragraphs": nested(rows)}]})),
    "SQuAD, with a byte order mark": (
        "d.JSON",
        lambda rows: BOM + as_json({"data": [{"paragraphs": nested(rows)}]}),
    ),
    "a list of articles": ("d.json", lambda rows: as_json([{"paragraphs": nested(rows)}])),
    "a list of paragraphs": ("d.json", lambda rows: as_json(nested(rows))),
    "data: paragraphs": ("d.json", lambda rows: as_json({"data": nested(rows)})),
    "lines of paragraphs": ("d.jsonl", lambda rows: as_lines(nested(rows))),
}

LETTERS = st.sampled_from([*"abé,;\"'\t\n\\ 7", "\u2028", "cafe\u0301", "灯", "\U0001f468", "\r\n"])
TEXTS = st.lists(LETTERS, min_size=1, max_size=12).map("".join).filter(str.strip)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(TEXTS)
        start = draw(st.integers(0, len(context) - 1))
        answer = context[start : draw(st.integers(start, len(context)))]
        if not answer.strip():
            answer = ""
        once = context.count(answer) == 1 and context.find(answer) == context.rfind(answer)
        known = answer and not (once and draw(st.booleans()))
        rows.append(
            {"question": draw(TEXTS), "context": context, "answer": answer}
            | {"answer_start": start if known else None}
        )
    kind = draw(st.sampled_from(["text", "number", "none"]))
    for k, row in enumerate(rows):
        row["id"] = {"text": f"q{k}", "number": k, "none": None}[kind]
    return rows


def expected(rows: list[Row]) -> list[Example]:
    examples = []
    for k, row in enumerate(rows, start=1):
        start = row["answer_start"]
        if start is None:
            start = row["context"].find(row["answer"])
        answers = (GoldAnswer(row["answer"], start),) if row["answer"] else ()
        identity = f"row {k}" if row["id"] is None else str(row["id"])
        examples.append(Example(identity, row["question"], row["context"], answers, not answers))
    return examples


@QUIET
@given(rows=tables())
def test_every_kind_of_table_gives_the_same_examples(tmp_path, rows):
    wanted = expected(rows)
    for kind, (name, write) in FILES.items():
        path = tmp_path / name
        path.write_bytes(write(rows))
        assert load_squad(path, doubtful=[]) == wanted, kind
    assert load_squad(datasets.Dataset.from_list(rows_of_answers(rows)), doubtful=[]) == wanted
    assert load_squad(datasets.Dataset.from_list(rows), doubtful=[]) == wanted
    for kind, (name, write) in NESTED.items():
        path = tmp_path / name
        path.write_bytes(write(rows))
        examples = load_squad(path, doubtful=[])
        if rows[0]["id"] is None:  # then the id is the place in the file
            assert len({e.id for e in examples}) == len(rows)
            assert all("paragraph" in e.id and "question 0" in e.id for e in examples)
            examples = [
                Example(w.id, e.question, e.context, e.answers, e.is_impossible)
                for e, w in zip(examples, wanted, strict=True)
            ]
        assert examples == wanted, kind


def test_ids_become_their_text(tmp_path):
    rows = [
        {"id": 5, "question": "Who?", "context": "Ada", "answer": "Ada"},
        {"id": 0, "question": "Who?", "context": "Ada", "answer": "Ada"},
        {"id": None, "question": "Who?", "context": "Ada", "answer": "Ada"},
        {"id": "", "question": "Who?", "context": "Ada", "answer": "Ada"},
        {"question": "Who?", "context": "Ada", "answer": "Ada"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    assert [e.id for e in load_squad(path)] == ["5", "0", "row 3", "row 4", "row 5"]
    for wrong in (True, [1], {"a": 1}):
        path.write_bytes(as_lines([rows[0] | {"id": wrong}]))
        with pytest.raises(DataError, match="row 1: 'id' is"):
            load_squad(path)


def test_a_table_s_numbers_are_their_text(tmp_path):
    """A column of years, as pandas reads and writes it."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines([{"question": "When?", "context": "In 1912.", "answer": 1912}]))
    assert load_squad(path)[0].answers == (GoldAnswer("1912", 3),)


# ------------------------------------------------------------------------- answers without words


def one(tmp_path: Path, **question: Any) -> Path:
    return one_of(tmp_path, {"context": "At dusk Ada lit the lamp."} | question)


def one_of(tmp_path: Path, row: Row) -> Path:
    path = tmp_path / "one.json"
    path.write_bytes(as_json([{"id": "q", "question": "Who?"} | row]))
    return path


@pytest.mark.parametrize("start", [-1, 0, None])
@pytest.mark.parametrize("text", ["", None])
def test_an_annotation_tool_s_no_answer(tmp_path, text, start):
    gold = [{"text": text, "answer_start": start}]
    for answers in (gold, {"text": [text], "answer_start": [start]}):
        (example,) = load_squad(one(tmp_path, is_impossible=True, answers=answers))
        assert example.is_impossible and example.answers == ()
        for said in ({}, {"is_impossible": False}):
            with pytest.raises(DataError, match=r"row 1 \(q\): .* has no word"):
                load_squad(one(tmp_path, answers=answers, **said))


@pytest.mark.parametrize("text", [" ", "\n\t", "\u00a0"])
def test_white_space_is_no_answer(tmp_path, text):
    context = f"At dusk{text}Ada lit it."
    for row in (
        {"answers": [{"text": text, "answer_start": 7}]},
        {"answer": text, "answer_start": 7},
    ):
        with pytest.raises(DataError, match=r"row 1 \(q\): .* has no word"):
            load_squad(one(tmp_path, context=context, **row))


@pytest.mark.parametrize(
    ("said", "answer", "impossible"),
    [
        (True, "", True), ("True", "", True), ("true", "", True), (1, "", True), (1.0, "", True),
        (False, "Ada", False), ("False", "Ada", False), ("0", "Ada", False), (0.0, "Ada", False),
        (None, "", True), (math.nan, "Ada", False), ("", "", True),
    ],
)  # fmt: skip
def test_is_impossible_as_tables_write_it(tmp_path, said, answer, impossible):
    (example,) = load_squad(one(tmp_path, is_impossible=said, answer=answer))
    assert example.is_impossible is impossible
    if said not in (None, "") and said == said:
        if answer:
            with pytest.raises(DataError, match="is_impossible"):
                load_squad(one(tmp_path, is_impossible=said, answer=""))
        else:
            with pytest.warns(UserWarning, match="is_impossible"):
                (example,) = load_squad(one(tmp_path, is_impossible=said, answer="Ada"))
            assert example.is_impossible and not example.answers


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            {"answer": "Ada", "is_impossible": "no"},
            "'is_impossible' is neither true nor false: 'no'",
        ),
        (
            {"answer": "Ada", "answer_start": "eight"},
            "'answer_start' is not a whole number: 'eight'",
        ),
        ({"answer": "Ada", "answer_start": 8.5}, "'answer_start' is not a whole number: 8.5"),
        ({"answer": "Ada", "answer_start": True}, "'answer_start' is not a whole number: True"),
        ({"answer": ["Ada"]}, "'answer' is list"),
        ({"answers": "Ada"}, "'answers' is str"),
        ({"answers": ["Ada"]}, "expected an object, got str"),
        ({"answers": {"text": "Ada", "answer_start": 8}}, "'text' is str"),
        (
            {"answers": {"text": ["Ada", "Ada"], "answer_start": [8]}},
            "not as many answer starts as texts: 2 and 1",
        ),
        ({}, "no 'answer'"),
        ({"answer": "Ada", "question": None}, "the question is empty"),
        ({"answer": "Ada", "question": ["Who?"]}, "'question' is list"),
    ],
)
def test_the_problem_in_a_row_is_named(tmp_path, row, named):
    with pytest.raises(DataError, match=f"row 1.*{named}"):
        load_squad(one(tmp_path, **row))


# ----------------------------------------------------------------------- answers that are ignored


IGNORED = [
    {"answers": [{"text": "Ada", "answer_start": 8}]},
    {"answers": {"text": ["Ada"], "answer_start": [99]}},  # plausible answers may be anywhere
    {"answer": "Bo"},
    {"title": "no field for answers"},
]


@pytest.mark.parametrize("row", IGNORED)
def test_is_impossible_means_that_there_is_no_answer(tmp_path, row):
    rows = [{"question": "Who?", "context": "At dusk Ada lit it.", "is_impossible": True} | row] * 3
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    with pytest.warns(UserWarning) as warned:
        examples = load_squad(path)
    assert [(e.is_impossible, e.answers) for e in examples] == [(True, ())] * 3
    [message] = [str(warning.message) for warning in warned]  # once for all rows
    assert "row 1: is_impossible is true" in message and "and 2 more of this kind" in message
    doubtful: list[DataError] = []
    assert load_squad(path, doubtful=doubtful) == examples and len(doubtful) == 3


def test_check_data_counts_what_is_impossible_says_alone(run, tmp_path, tiny):
    plain = {"question": "Who?", "context": "At dusk Ada lit it."}
    rows = [plain | {"is_impossible": True} | row for row in IGNORED]
    rows += [plain | {"is_impossible": True, "answers": []}, plain | {"answer": "Ada"}]
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    report = dict(line.split() for line in out.splitlines())
    assert code == 0 and err.count("warning: ") == 2  # with answers; without a field
    assert report["unanswerable_by_is_impossible"] == "4" and report["unanswerable"] == "5"


# ------------------------------------------------------------------------ answers without a start


@pytest.mark.parametrize(
    ("context", "answer", "start", "text"),
    [
        ("The party of modern art.", "art", 20, "art"),
        ("finance, then nan", "nan", 14, "nan"),
        ("20.5 lamps, or 20 lamps", "20", 15, "20"),
        ("1,912 lamps in 1912.", "912", 2, None),  # nowhere a whole number, and twice a part
        ("In 1912.", "1912.0", 3, "1912"),
        ("In 1912.", 1912.0, 3, "1912"),
        ("In 1912 or 1912.0.", "1912.0", 11, "1912.0"),
        ("In 2020, 20 lamps", "20.0", 9, "20"),
        ("It cost -5 pounds", "-5.0", 8, "-5"),
        ("Zoe\u0301 saw Zoe", "Zoe", 9, "Zoe"),
        ("state-of-the-art, party", "art", 13, "art"),
        ("Ada's lamp", "Ada", 0, "Ada"),
        ("灯台の灯は明るい", "明", 5, "明"),  # no spaces between words
        ("ประเทศไทยสวย", "ไทย", 6, "ไทย"),
    ],
)
def test_an_answer_is_searched_as_a_whole_word_first(tmp_path, context, answer, start, text):
    doubtful: list[DataError] = []
    path = one(tmp_path, context=context, answer=answer)
    if text is None:
        with pytest.raises(DataError, match="more than once"):
            load_squad(path)
    else:
        (example,) = load_squad(path, doubtful=doubtful)
        assert example.answers == (GoldAnswer(text, start),) and not doubtful
        # a start that is given says the same
        (example,) = load_squad(one(tmp_path, context=context, answer=answer, answer_start=start))
        assert example.answers == (GoldAnswer(text, start),)


@pytest.mark.parametrize(
    ("context", "answer"),
    [("A party at dusk", "art"), ("in finance", "nan"), ("20.5 lamps", "20"),
     ("in 2020a", "2020.0"), ("Zoe\u0301 came", "Zoe"), ("서울에서", "서울")],
)  # fmt: skip
def test_a_part_of_a_word_is_an_answer_with_a_warning(tmp_path, context, answer):
    path = one(tmp_path, context=context, answer=answer)
    with pytest.warns(UserWarning, match=r"row 1 \(q\): the answer is only a part of a word"):
        (example,) = load_squad(path)
    (gold,) = example.answers
    assert context[gold.char_start : gold.char_end] == gold.text == answer.removesuffix(".0")
    start = gold.char_start
    assert load_squad(one(tmp_path, context=context, answer=answer, answer_start=start)) == [
        example
    ]


def test_check_data_counts_parts_of_words_and_several_answers(run, tmp_path, tiny):
    context = "A party, and another party, at dusk in finance."
    plain = {"question": "When?", "context": context}
    twice = [{"text": "party", "answer_start": start} for start in (2, 21)]
    rows = [
        plain | {"answer": "nan"},
        plain | {"answer": "nan", "answer_start": context.index("nan")},
        plain | {"answer": "financ"},
        plain | {"answers": twice},
        plain | {"answers": twice[:1] * 2},  # two annotators agree
        plain | {"answers": [*twice[:1], {"text": "dusk"}]},
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    report = dict(line.split() for line in out.splitlines())
    assert code == 0 and report["answers_inside_a_word"] == "2"
    assert report["several_answers"] == "2"
    told = f"warning: {path}: row 1: the answer is only a part of a word: 'nan' (and 1 more of"
    assert err.startswith(told) and err.count("\n") == 1


# ---------------------------------------------------------------------------------- wrong starts


@pytest.mark.parametrize(
    ("context", "start", "said"),
    [
        ("At dusk Ada lit it.", 3, "not at answer_start=3 (the text there is 'dus'), but at 8"),
        ("Ada saw Ada and Ada.", 9, "(the text there is 'da '), but at 8"),
        ("Ada saw Ada and Ada.", 15, "(the text there is ' Ad'), but at 16"),
        ("Ada saw Ada and Ada.", 12, "(the text there is 'and'), but at 3 other places"),
        ("At dusk Bo lit it.", 8, "(the text there is 'Bo '), nor elsewhere in the context"),
    ],
)
def test_a_wrong_start_says_where_the_text_is(tmp_path, context, start, said):
    with pytest.raises(DataError) as caught:
        load_squad(one(tmp_path, context=context, answer="Ada", answer_start=start))
    assert str(caught.value).endswith(said)


def shifted(tmp_path: Path, seed: int) -> Path:
    """The field notes, with a wrong or missing start in every third gold answer."""
    generator = random.Random(seed)
    data = json.loads(NOTES.read_text(encoding="utf-8"))
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                for answer in question["answers"][::3]:
                    answer["answer_start"] = generator.choice([-1, 0, 7, 10**6, None, "seven"])
    path = tmp_path / "shifted.json"
    path.write_bytes(as_json(data))
    return path


def test_scoring_needs_no_starts(tmp_path, tiny, field_notes):
    """Wrong starts give the same figures as right ones. They are counted and named."""
    path = shifted(tmp_path, seed=0)
    with pytest.raises(DataError, match="not at answer_start"):
        load_squad(path)
    misplaced: list[DataError] = []
    examples = load_squad(path, misplaced=misplaced)
    assert len(misplaced) > 20 and all(str(e).startswith(f"{path}: article ") for e in misplaced)
    assert [e.id for e in examples] == [e.id for e in field_notes]
    texts = [[a.text for a in e.answers] for e in examples]
    assert texts == [[a.text for a in e.answers] for e in field_notes]
    for example in examples:  # a start is right or -1
        for a in example.answers:
            assert a.char_start == -1 or example.context.startswith(a.text, a.char_start)
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    assert minibert.evaluate(qa, examples) == minibert.evaluate(qa, field_notes)


def test_evaluate_with_wrong_starts(run, tmp_path, tiny):
    arguments = ("evaluate", "--model", tiny, "--output")
    code, out, err = run(*arguments, tmp_path / "wrong", "--data", shifted(tmp_path, seed=1))
    assert code == 0 and "not at answer_start=" in err and "texts are scored" in err
    code, right, err = run(*arguments, tmp_path / "right", "--data", NOTES)
    assert code == 0 and json.loads(out) == json.loads(right) and "answer_start" not in err


def test_evaluate_skips_invalid_questions_on_request(run, tmp_path, tiny):
    rows = [
        {"question": "Who lit it?", "context": f"Ada {k} lit it.", "answer": "Ada"}
        for k in range(4)
    ]
    rows[1]["question"] = None
    rows[2]["answer"] = "Bo"
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    arguments = ("evaluate", "--model", tiny, "--data", path, "--output", tmp_path / "out")
    code, out, err = run(*arguments)
    assert code == 2 and not out and "row 2: the question is empty" in err
    code, out, err = run(*arguments, "--skip-invalid")
    assert code == 0 and json.loads(out)["total"] == 3
    assert "row 2: the question is empty" in err and "row 3" in err


def test_a_dev_file_with_wrong_starts_does_not_stop_training(tmp_path, tiny):
    config = minibert.TrainingConfig(
        init=str(tiny), train_file=str(NOTES), dev_file=str(shifted(tmp_path, seed=2)),
        output_dir=str(tmp_path / "run"), epochs=0.1, max_length=128, doc_stride=32,
        max_train_examples=48, progress=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"scored by their text: .*is not at answer_start=.*more"):
        assert minibert.train(config)["total"] == 120


# ------------------------------------------------------------------ the same reason is given once


def bad_ids(path: Path, count: int, good: int = 0) -> Path:
    rows = [
        {"id": [k], "question": "Who?", "context": "Ada lit it.", "answer": "Ada"}
        for k in range(count)
    ]
    rows += [row | {"id": f"good {k}"} for k, row in enumerate(rows[:good])]
    path.write_bytes(as_lines(rows))
    return path


def test_one_reason_for_all_rows_is_given_once(run, tmp_path, tiny):
    path = bad_ids(tmp_path / "d.jsonl", 1380)
    for skipped in (None, []):
        with pytest.raises(
            DataError, match=r"row 1: 'id' is list.* \(and 1,379 more of this kind"
        ) as told:
            load_squad(path, skipped=skipped)
        assert len(str(told.value)) < 300
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and out.count("\n") <= 1 and err.count("\n") == 1
    assert "row 1: 'id' is list" in err and "1,379 more of this kind" in err


@pytest.mark.parametrize("count", [1, 21, 1380])
def test_one_reason_is_given_once_beside_good_rows(run, tmp_path, tiny, count):
    """Up to 20 rows are listed. More than 20 rows with the same error are one line."""
    path = bad_ids(tmp_path / "d.jsonl", count, good=1)
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and err.count("\n") == 1
    if count == 1:
        assert out.startswith(f"{path}: row 1: 'id' is list") and "questions  " in out
        assert err == f"error: {path}: 1 question has an error\n"
    else:
        assert not out and f"row 1: 'id' is list, expected text (and {count - 1:,} more" in err


def test_one_reason_without_a_window_is_given_once(run, tmp_path, tiny):
    row = {"question": "\u200b", "context": "Ada lit it.", "answer": "Ada"}
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines([row] * 30))
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and not out and err.count("\n") == 1
    assert "row 1: no words in the question" in err and "and 29 more of this kind" in err


def test_check_data_prints_twenty_of_a_kind(run, tmp_path, tiny):
    path = bad_ids(tmp_path / "d.jsonl", 50, good=1)
    text = path.read_text(encoding="utf-8")
    other = {"question": "Who?", "context": "Ada lit it.", "answer": "Bo"}
    path.write_text(text + 3 * (json.dumps(other) + "\n"), encoding="utf-8")
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and "53 questions have errors" in err
    assert out.count("row 1: 'id' is list") == 1 and "and 30 more: 'id' is list" in out
    assert out.count("'id' is list") == 20 + 1
    assert out.count("the context does not have 'Bo'") == 3
    code, out, err = run("check-data", path, "--tokenizer", tiny, "--all")
    assert code == 2 and out.count("'id' is list") == 50 and "more" not in out


def test_check_data_warns_of_white_space_around_answers(run, tmp_path, tiny):
    rows = [
        {"question": "Who?", "context": "By Ada , at dusk", "answer": "Ada ", "answer_start": 3},
        {"question": "Who?", "context": "By Ada , at dusk", "answer": "Ada", "answer_start": 3},
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(as_lines(rows))
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    report = dict(line.split() for line in out.splitlines())
    assert code == 0 and report["answers_with_outer_white_space"] == "1"
    assert err.startswith("warning: ") and "'Ada '" in err and "row 1" in err
    code, out, err = run("check-data", NOTES, "--tokenizer", tiny)
    assert code == 0 and not err and "answers_with_outer_white_space 0" in out


# ------------------------------------------------------------------------------------ thresholds


def test_a_threshold_needs_no_answer(tiny, field_notes):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    for settings_ in ({"tune_threshold": True}, {"null_threshold": 1.0}):
        with pytest.raises(InputError, match="need no_answer"):
            minibert.evaluate(qa, field_notes, **settings_)


@QUIET
@given(data=st.data())
def test_the_best_threshold_gives_the_best_figures(data):
    """Compared with every possible threshold. Some odds are equal, some predictions lack words."""
    texts = st.sampled_from(["Ada", "the lamp", "Ada lamp", "the", ",", "dusk"])
    examples, predictions, odds = [], {}, {}
    for k in range(data.draw(st.integers(1, 7))):
        golds = data.draw(st.lists(texts, max_size=2))
        answers = tuple(GoldAnswer(text, -1) for text in golds)
        examples.append(Example(str(k), "?", "", answers, not answers))
        predictions[str(k)] = data.draw(texts)
        odds[str(k)] = data.draw(st.sampled_from([-2.5, -1.0, 0.0, 1.0, 3.25]))
    examples.append(Example("none", "?", "", (), True))  # the rules are v2.0's
    predictions["none"], odds["none"] = "Ada", data.draw(st.sampled_from([-1.0, 3.25]))

    def figures(threshold: float) -> dict[str, float | int]:
        return squad_metrics(with_nulls(predictions, odds, threshold), examples)

    best = best_thresholds(predictions, odds, examples)
    tried = [figures(threshold) for threshold in (-1e9, *odds.values())]
    for name in ("exact", "f1"):
        highest = max(metrics[name] for metrics in tried)
        assert best[f"best_{name}"] == pytest.approx(highest)
        assert figures(best[f"best_{name}_thresh"])[name] == pytest.approx(highest)
