"""SQuAD in all its forms; the official metric compared with stored figures of its scripts."""

import csv
import gzip
import itertools
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from machine import needs_proc

import minibert
from minibert.data.examples import load_squad
from minibert.data.metric import best_thresholds, normalize_answer, squad_metrics
from minibert.scoring import evaluation
from minibert.scoring.evaluation import with_nulls
from minibert.settings import Calibration

HERE = Path(__file__).parent


def file_with(tmp_path: Path, question: dict[str, Any], context: Any = "The lamp is lit.") -> Path:
    path = tmp_path / "data.json"
    data = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


GOOD = {"id": "q1", "question": "What is lit?", "answers": [{"text": "lamp", "answer_start": 4}]}


def test_own_data_holds_its_answers(field_notes):
    assert len(field_notes) == 120
    assert sum(example.is_impossible for example in field_notes) == 28
    assert len({example.id for example in field_notes}) == 120
    for example in field_notes:
        for answer in example.answers:
            assert example.context[answer.char_start : answer.char_end] == answer.text


def test_whole_squad(squad):
    train, dev = load_squad(squad, "train"), load_squad(squad, "validation")
    assert (len(train), len(dev)) == (87_599, 10_570)
    assert sum(len(e.answers) for e in dev) == 34_726
    assert not any(e.is_impossible for e in train + dev)


def test_every_form_gives_the_same_examples(tmp_path, field_notes):
    plain = HERE / "data" / "field_notes.json"
    packed = tmp_path / "dev-notes.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = [
        {
            "id": e.id,
            "title": e.title,
            "context": e.context,
            "question": e.question,
            "answers": {
                "text": [a.text for a in e.answers],
                "answer_start": [a.char_start for a in e.answers],
            },
        }
        for e in field_notes
    ]
    for source in (str(plain), packed, datasets.Dataset.from_list(rows)):
        assert load_squad(source) == field_notes
    assert load_squad(tmp_path, "validation") == field_notes


def test_hub_ids_go_through_datasets(monkeypatch, field_notes):
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        row = {"id": "q", "context": "a lamp", "question": "What?"}
        return datasets.Dataset.from_list(
            [row | {"answers": {"text": ["lamp"], "answer_start": [2]}}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (example,) = load_squad("rajpurkar/squad", "train")
    assert asked == [("rajpurkar/squad", "train")] and example.answers[0].text == "lamp"
    with pytest.raises(minibert.DataError, match="say which split"):
        load_squad("rajpurkar/squad")

    def unreachable(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(minibert.DataError, match=r"no such data set: Couldn't reach the hub$"):
        load_squad("rajpurkar/squad", "train")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"answers": [{"text": "lamp", "answer_start": 3}]},
            r"q1.*'lamp' is not at answer_start=3",
        ),
        ({"answers": [{"text": "lamp", "answer_start": -12}]}, "answer_start=-12"),
        ({"answers": [{"text": "", "answer_start": 999}]}, "an answer has no word"),
        ({"answers": [{"text": "lamp", "answer_start": "x"}]}, "not a whole number: 'x'"),
        ({"answers": [{"text": "lamp", "answer_start": True}]}, "not a whole number: True"),
        ({"answers": [{"text": None, "answer_start": 4}]}, "an answer has no word"),
        ({"answers": [{"answer_start": 4}]}, "no 'text'"),
        ({"answers": "lamp"}, "'answers' is str"),
        ({"answers": ["lamp"]}, "expected an object, got str"),
        ({"question": [7]}, "'question' is list"),
        ({"id": [7]}, "'id' is list"),
        ({"is_impossible": False, "answers": []}, "is_impossible=False with 0 answers"),
        ({"is_impossible": "no"}, "neither true nor false: 'no'"),
    ],
)
def test_a_bad_question_is_named_with_its_place(tmp_path, change, named):
    path = file_with(tmp_path, GOOD | change)
    with pytest.raises(minibert.DataError, match=named) as caught:
        load_squad(path)
    assert "article 0, paragraph 0, question 0" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.json", b'{"data": [', "not readable as JSON"),
        ("x.json", b"\xff\xfe", "not readable as JSON"),
        ("x.json", b"[[]]", "row 1: expected an object, got list"),
        ("x.json", b"{}", "row 1: no 'context'"),
        ("x.json", b'{"data": []}', "holds no question"),
        ("x.json", b'{"data": [{}]}', "row 1: no 'context'"),
        ("x.json.gz", b"no gzip", "not readable as JSON"),
        ("x.json.gz", gzip.compress(b'{"data": []}', mtime=0)[:-9], "not readable as JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(minibert.DataError, match=named):
        load_squad(tmp_path / name)


@pytest.mark.slow
@needs_proc
def test_a_file_of_300_mb_stays_within_its_budget(tmp_path, field_notes):
    """Ten times SQuAD's size, in its own process: up to 2.5 GB. We measured 2.0 GB here, because
    contexts are shorter and so there are more objects, and 1.75 GB for ten copies of SQuAD."""
    path = tmp_path / "ten.json"
    written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"data": [{"paragraphs": [')
        for k in itertools.count():
            context = f"{field_notes[k % 120].context} {k}"
            answers = [{"text": str(k), "answer_start": len(context) - len(str(k))}]
            question = {"question": "Which?", "answers": answers}
            questions = [question | {"id": f"{k}-{n}"} for n in range(5)]
            row = json.dumps({"context": context, "qas": questions})
            written += file.write(row if k == 0 else f",{row}")
            if written > 300e6:
                break
        file.write("]}]}")
    code = (
        "import re, sys; from minibert.data.examples import load_squad; load_squad(sys.argv[1]);"
        # in kB; ru_maxrss would start with the parent's value
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert int(run.stdout) < 2_500_000, run.stderr


def broken_file(tmp_path: Path) -> Path:
    """Ten questions. Their ids name the problems."""
    good = {"question": "What is lit?", "answers": [{"text": "lamp", "answer_start": 4}]}
    shifted = {"question": "What is lit?", "answers": [{"text": "lamp", "answer_start": 5}]}
    paragraphs = [
        {
            "context": "The lamp is lit.",
            "qas": [good | {"id": "good"}, shifted | {"id": "shifted"}],
        },
        {"context": "The lamp is lit.", "qas": [good | {"id": "good"}, good | {"id": [7]}, "text"]},
        {"context": " ", "qas": [{"id": "empty", "question": "What?", "answers": []}]},
        {"context": None, "qas": [good | {"id": "lost"}]},
        {"context": "The lamp is lit."},
        {"context": "The lamp is lit.", "qas": [good | {"id": "also good"}]},
    ]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}, {"paragraphs": 3}]}))
    return path


def test_the_first_problem_is_named_and_the_others_counted(tmp_path):
    path = broken_file(tmp_path)
    named = r"article 0, paragraph 0, question 1 \(shifted\): answer .* \(and 7 other problems\)"
    with pytest.raises(minibert.DataError, match=named):
        load_squad(path)


def test_what_is_skipped_is_named(tmp_path):
    skipped: list[minibert.DataError] = []
    examples = load_squad(broken_file(tmp_path), skipped=skipped)
    assert [example.id for example in examples] == ["good", "also good"]
    wanted = ("shifted", "'id' is list", "got str", "(empty): the context", "(lost): the context")
    wanted += (
        "paragraph 4: no 'question'",
        "article 1: no 'context'; the fields are: 'paragraphs'",
    )
    messages = [str(error) for error in skipped]
    assert len(messages) == 8 and any("the id occurs twice" in m for m in messages)
    for word in wanted:
        assert any(word in message for message in messages), word


ROWS = [
    {"question": "What is lit?", "context": "The lamp is lit.\r\nAgain!", "answer": "lamp"},
    {"question": 'When, "then"?', "context": "At dusk, or at dusk", "answer": "dusk"},
    {"question": "Who?", "context": "No one\u2028is named.", "answer": ""},
]


def table(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_gives_the_same_examples(tmp_path, suffix):
    """With a start, or without one if the answer occurs once. No character of the text changes."""
    starts = [None, 15, None]
    rows = [row | {"answer_start": start} for row, start in zip(ROWS, starts, strict=True)]
    examples = load_squad(table(tmp_path, suffix, rows))
    assert [(e.question, e.context) for e in examples] == [
        (row["question"], row["context"]) for row in ROWS
    ]
    assert [[(a.text, a.char_start) for a in e.answers] for e in examples] == [
        [("lamp", 4)],
        [("dusk", 15)],
        [],
    ]
    assert [e.id for e in examples] == ["row 1", "row 2", "row 3"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"answer": "at"}, "row 1: the context does not have 'at'"),
        ({"answer_start": "four"}, "row 1: 'answer_start' is not a whole number: 'four'"),
        ({"answer_start": 5}, "row 1.*not at answer_start=5"),
        ({"context": "lamp lamp"}, "row 1: the context has 'lamp' more than once"),
        ({"context": "", "answer": ""}, "row 1.*the context is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, suffix, change, named):
    row = ROWS[0] | {"answer_start": ""} | change
    with pytest.raises(minibert.DataError, match=named):
        load_squad(table(tmp_path, suffix, [row]))


def test_missing_files_and_splits(tmp_path):
    for source in (tmp_path / "none.json", "none.json", "a/b/c"):
        with pytest.raises(minibert.DataError, match="no such file"):
            load_squad(source)
    with pytest.raises(minibert.DataError, match="which split"):
        load_squad(tmp_path)
    with pytest.raises(minibert.DataError, match="expected one train-"):
        load_squad(tmp_path, "train")


def examples_of(cases: list[Any]) -> tuple[dict[str, str], list[minibert.Example]]:
    examples = [
        minibert.Example(
            str(k), "?", "", tuple(minibert.GoldAnswer(t, 0) for t in texts), not texts
        )
        for k, (texts, _) in enumerate(cases)
    ]
    return {str(k): text for k, (_, text) in enumerate(cases) if text is not None}, examples


STORED = json.loads((HERE / "reference" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_metric_equals_the_official_script(version):
    """Each adversarial prediction alone, then all together. 1e-9, because a sum's order differs."""
    assert len(STORED[version]) > 30
    for group in STORED[version]:
        metrics = squad_metrics(*examples_of(group["cases"]))
        for name, value in group["figures"].items():
            assert metrics[name] == pytest.approx(value, abs=1e-9), (name, group["cases"])


def test_the_versions_differ_where_a_gold_answer_normalises_to_nothing():
    example = minibert.Example("a", "?", "", (minibert.GoldAnswer("the", 0),))
    impossible = minibert.Example("b", "?", "", (), True)
    alone = squad_metrics({"a": "a"}, [example])
    assert (alone["exact_match"], alone["f1"]) == (100.0, 0.0)
    both = squad_metrics({"a": "a", "b": ""}, [example, impossible])
    assert (both["HasAns_exact"], both["HasAns_f1"]) == (100.0, 100.0)


def test_a_missing_prediction_scores_0():
    answered = minibert.Example("a", "?", "", (minibert.GoldAnswer("x", 0),))
    impossible = minibert.Example("b", "?", "", (), True)
    assert squad_metrics({}, [answered]) == {"exact_match": 0.0, "f1": 0.0, "total": 1}
    metrics = squad_metrics({"a": "x"}, [answered, impossible])
    assert metrics["exact_match"] == metrics["exact"] == 50.0
    assert metrics["NoAns_exact"] == 0.0 and metrics["NoAns_total"] == 1
    assert squad_metrics({}, [])["total"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_best_thresholds_equal_the_reference(transformers, seed, field_notes):
    """The official search, from the copy in transformers, on random answers and odds."""
    from transformers.data.metrics.squad_metrics import squad_evaluate

    generator = random.Random(seed)
    examples = generator.sample(field_notes, 60)
    predictions = {}
    for example in examples:
        # The reference counts a prediction that normalises to nothing, such as "The", as wrong.
        words = [w for w in example.context.split()[:12] if normalize_answer(w)]
        gold = example.answers[0].text if example.answers else words[0]
        predictions[example.id] = generator.choice([gold, gold + " at last", words[1]])
    # No two odds are equal: the reference separates equal ones, see tests/test_tables.py.
    odds = {e.id: generator.gauss(2 * e.is_impossible - 1, 2) for e in examples}
    theirs = [
        SimpleNamespace(qas_id=e.id, answers=[{"text": a.text} for a in e.answers])
        for e in examples
    ]
    expected = squad_evaluate(theirs, predictions, odds)
    best = best_thresholds(predictions, odds, examples)
    assert best == pytest.approx({name: expected[name] for name in best}, abs=1e-9)
    chosen = with_nulls(predictions, odds, best["best_f1_thresh"])
    assert squad_metrics(chosen, examples)["f1"] == pytest.approx(best["best_f1"])


def test_it_can_be_best_never_to_answer():
    """Then the threshold is below all odds. It is 0 if this is low enough."""
    impossible = [minibert.Example(str(k), "?", "a", (), True) for k in range(3)]
    predictions = dict.fromkeys("012", "a")
    for odds in ({"0": -1, "1": 0, "2": 1}, {"0": 0.5, "1": 1, "2": 1}):
        best = best_thresholds(predictions, odds, impossible)
        assert best["best_f1"] == 100.0 and best["best_f1_thresh"] < min(odds.values())
    assert best["best_f1_thresh"] == 0.0


def test_tables_as_other_programs_write_them(tmp_path):
    """A start that is a float, an empty id, and a context longer than csv's limit."""
    path = tmp_path / "table.csv"
    context = "a lamp " * 30_000 + "at last"
    header = "id,question,context,answer,answer_start"
    path.write_text(f"{header}\n,Who?,{context},at last,{len(context) - 7}.0\n", encoding="utf-8")
    limit = csv.field_size_limit()
    (example,) = load_squad(path)
    assert example.id == "row 1" and example.answers[0].char_start == len(context) - 7
    assert csv.field_size_limit() == limit


def test_one_bad_line_leaves_the_others(tmp_path):
    path = tmp_path / "lines.jsonl"
    good = '{"question": "Who?", "context": "a lamp", "answer": "lamp"}'
    path.write_text(f"{good}\n{{\n{good}\n", encoding="utf-8")
    skipped: list[minibert.DataError] = []
    assert [example.id for example in load_squad(path, skipped=skipped)] == ["row 1", "row 3"]
    assert "row 2: not readable as JSON" in str(skipped[0])


@pytest.fixture(scope="module")
def qa(tiny) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")


def with_threshold(qa: minibert.QuestionAnswerer, threshold: float) -> minibert.QuestionAnswerer:
    calibration = Calibration(1.5, threshold)
    return minibert.QuestionAnswerer(qa.model, qa.tokenizer, calibration=calibration)


def files_in(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.iterdir()}


def test_unanswerable_questions_let_no_answer_compete(qa, field_notes, tmp_path):
    """Otherwise their figures are 0, whatever the model. One line says so."""
    for threshold in (-1000.0, 1000.0):
        reader = with_threshold(qa, threshold)
        folders = [tmp_path / f"{threshold} {name}" for name in ("by itself", "on request")]
        with pytest.warns(UserWarning, match="^28 of 120 questions have no answer") as told:
            metrics = minibert.evaluate(reader, field_notes, folders[0])
        assert sum("have no answer" in str(warning.message) for warning in told) == 1
        assert (metrics["NoAns_exact"] == 100.0) == (threshold < 0) and "best_f1" in metrics
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*have no answer")
            assert minibert.evaluate(reader, field_notes, folders[1], no_answer=True) == metrics
        assert files_in(folders[0]) == files_in(folders[1])
        assert len(files_in(folders[0])["null_odds"]) == 120
    answerable = [example for example in field_notes if example.answers]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*have no answer")
        metrics = minibert.evaluate(with_threshold(qa, -1000.0), answerable, tmp_path / "forced")
    assert metrics.keys() == {"exact_match", "f1", "total"}
    assert "null_odds" not in files_in(tmp_path / "forced")
    assert all(files_in(tmp_path / "forced")["predictions"].values())


@pytest.mark.parametrize("given", [{}, {"null_threshold": -0.4}, {"tune_threshold": True}])
def test_all_files_use_one_threshold(qa, field_notes, tmp_path, monkeypatch, given):
    """The first of the n-best answers is the prediction. All are as a reader with this threshold
    gives them."""
    monkeypatch.setattr(evaluation, "MIN_OF_EACH_KIND", 1)
    reader = with_threshold(qa, 0.3)
    metrics = minibert.evaluate(reader, field_notes, tmp_path, 7, no_answer=True, **given)
    files = files_in(tmp_path)
    threshold = metrics["tuned"]["threshold"] if "tuned" in metrics else given.get("null_threshold")
    reader = with_threshold(qa, 0.3 if threshold is None else threshold)
    texts, odds = files["predictions"], files["null_odds"]
    assert {k for k, text in texts.items() if not text} == {
        k for k, value in odds.items() if value > reader.calibration.null_threshold
    }
    settings = minibert.AnswerSettings(7, no_answer=True)
    answered = reader.answer_examples(field_notes, settings)
    for example, expected in zip(field_notes, answered, strict=True):
        rows = files["nbest_predictions"][example.id]
        assert rows[0]["answer"] == texts[example.id]
        assert [row["answer"] for row in rows] == [answer.answer for answer in expected]
        assert [r["score"] for r in rows] == pytest.approx([a.score for a in expected], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"null_threshold": 0.0}, "need no_answer"),
        ({"null_threshold": -1.0}, "need no_answer"),
        ({"tune_threshold": True}, "need no_answer"),
        ({"no_answer": True, "tune_threshold": True, "null_threshold": 0.0}, "leave out"),
        ({"no_answer": True, "null_threshold": float("nan")}, "null_threshold=nan: expected a n"),
    ],
)
def test_a_threshold_without_effect_is_refused(qa, field_notes, arguments, named):
    with pytest.raises(minibert.InputError, match=named):
        minibert.evaluate(qa, field_notes, **arguments)


def test_no_threshold_is_tuned_on_a_few_questions(qa, field_notes, monkeypatch):
    tune = {"no_answer": True, "tune_threshold": True}
    with pytest.raises(
        minibert.InputError, match=r"has 4\d questions with an answer: .* 50 or mor"
    ):
        minibert.evaluate(qa, field_notes, **tune)
    monkeypatch.setattr(evaluation, "MIN_OF_EACH_KIND", 20)
    with pytest.raises(minibert.InputError, match=r"has 1\d questions without an answer: .* 20"):
        minibert.evaluate(qa, field_notes, **tune)
    monkeypatch.setattr(evaluation, "MIN_OF_EACH_KIND", 0)
    one = [example for example in field_notes if example.context == field_notes[0].context]
    with pytest.raises(minibert.InputError, match="two contexts or more"):
        minibert.evaluate(qa, one, **tune)
