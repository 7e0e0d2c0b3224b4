"""Calibration: the figures against plain loops, and that what is fitted is what is used."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import minibert
from minibert import QuestionAnswerer
from minibert.cli import app
from minibert.cli.lines import identity
from minibert.data.metric import exact_match
from minibert.reader import BUNDLED
from minibert.scoring import calibration as fitting
from minibert.scoring import evaluation
from minibert.scoring.calibration import (
    TEMPERATURES,
    auroc,
    calibrate,
    coverage_at,
    expected_calibration_error,
    fit_temperatures,
    risk_coverage,
    save_calibrated,
    threshold_at_loss,
)
from minibert.settings import AnswerSettings, Calibration
from minibert.spans import WindowLogits, best_spans, candidate_grid, scores_of_best, text_scores

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")
SCORES = st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda n: n / 10))
PAIRS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.integers(1, 12))
def test_calibration_error_is_a_mean_over_bins(pairs, bins):
    scores, right = zip(*pairs, strict=True)
    total = 0.0
    for k in range(bins):
        inside = [(s, r) for s, r in pairs if k < math.ceil(s * bins) <= k + 1 or (k == s == 0)]
        if inside:
            confidence = sum(s for s, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(confidence - accuracy)
    assert expected_calibration_error(scores, right, bins) == pytest.approx(total, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_auroc_counts_pairs(pairs):
    scores, right = zip(*pairs, strict=True)
    if len(set(right)) < 2:
        with pytest.raises(minibert.InputError, match="both kinds"):
            auroc(scores, right)
        return
    above = [s for s, positive in pairs if positive]
    below = [s for s, positive in pairs if not positive]
    wins = [1.0 if a > b else 0.5 * (a == b) for a in above for b in below]
    assert auroc(scores, right) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.floats(0, 1))
def test_risk_and_coverage(pairs, accuracy):
    scores, right = zip(*pairs, strict=True)
    coverage, risk = risk_coverage(scores, right)
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    reached = 0.0
    for k in range(1, len(pairs) + 1):
        wrong = sum(not r for _, r in ordered[:k])
        assert coverage[k - 1] == k / len(pairs) and risk[k - 1] == wrong / k
        if 1 - wrong / k >= accuracy - 1e-12:
            reached = k / len(pairs)
    assert coverage_at(accuracy, scores, right) == reached


LOGIT = st.floats(-8, 8, width=32)


@st.composite
def windows(draw):
    """One or two windows, overlapping by a token."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=2))
    found, start = [], 0
    for size in sizes:
        logits = [draw(st.lists(LOGIT, min_size=size, max_size=size)) for _ in range(2)]
        arrays = [np.array(values, dtype=np.float32) for values in logits]
        found.append(WindowLogits(start, *arrays, (draw(LOGIT), draw(LOGIT))))
        start += size - 1
    return found


@settings(max_examples=100, deadline=None)
@given(windows(), st.floats(0.1, 8), st.floats(-6, 6))
def test_temperature_and_threshold_beside_a_plain_softmax(found, temperature, threshold):
    """The order of spans never changes; "no answer" leads exactly beyond the threshold."""
    calibration = Calibration(temperature, threshold)
    plain = best_spans(found, AnswerSettings(1000, 4))
    spans = best_spans(found, AnswerSettings(1000, 4, no_answer=True), calibration=calibration)
    null = next(span for span in spans if span.is_null)
    others = [span for span in spans if not span.is_null]
    assert [(s.token_start, s.token_end) for s in others] == [
        (s.token_start, s.token_end) for s in plain
    ]
    logits = [span.start_logit + span.end_logit for span in others]
    null_logit = min(sum(window.null_logits) for window in found)
    assert null.start_logit + null.end_logit == null_logit  # the logits stay the model's own
    weights = [math.exp(x / temperature) for x in logits]
    null_weight = math.exp((null_logit - threshold) / temperature)
    total = sum(weights) + null_weight
    assert null.score == pytest.approx(null_weight / total)
    assert [s.score for s in others] == pytest.approx([w / total for w in weights])
    assert sum(span.score for span in spans) == pytest.approx(1.0)
    odds = null_logit - logits[0]
    if abs(odds - threshold) > 1e-9:
        assert spans[0].is_null == (odds > threshold)


@settings(max_examples=100, deadline=None)
@given(windows(), st.lists(st.sampled_from(["Ada", "the", "lamp", "lamp."]), min_size=40))
def test_the_scores_of_the_best_are_those_of_the_search(found, words):
    """Of its text too, at many temperatures at once."""
    context, ends = " ".join(words), np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack((ends - [len(word) for word in words], ends), axis=1)
    offsets = offsets[: max(w.token_start + len(w.start_logits) for w in found)]
    temperatures = np.array([0.5, 1.0, 3.0])
    expected = []
    for t in temperatures.tolist():
        calibration = Calibration(t)
        (span,) = best_spans(found, AnswerSettings(1, 4), offsets, calibration=calibration)
        text = context[offsets[span.token_start, 0] : offsets[span.token_end, 1]]
        grid, _ = candidate_grid(found, 4, offsets)
        expected.append([span.score, *text_scores([text], grid, -math.inf, context, offsets, t)])
    scores = scores_of_best(found, temperatures, context, offsets, 4)
    assert scores.tolist() == pytest.approx(np.array(expected).T)


@pytest.fixture(scope="module")
def notes(field_notes) -> list[minibert.Example]:
    """The questions of two articles: 40, 8 to 10 of them unanswerable."""
    return [example for example in field_notes if example.title in ("Lighthouses", "Tides")]


@pytest.fixture
def few_are_enough(monkeypatch) -> None:
    """Fit on the few questions of a test."""
    monkeypatch.setattr(fitting, "MIN_QUESTIONS", 1)
    monkeypatch.setattr(evaluation, "MIN_OF_EACH_KIND", 1)


@pytest.fixture(scope="module")
def qa() -> QuestionAnswerer:
    """The bundled model without its calibration."""
    loaded = QuestionAnswerer.from_pretrained(precision="fp32")
    return QuestionAnswerer(loaded.model, loaded.tokenizer)


def test_without_calibration_nothing_changes(qa, field_notes):
    assert qa.calibration == Calibration(1.0, 0.0)
    example = field_notes[0]
    answers = qa(example.question, example.context, 5, no_answer=True)
    qa_same = replace_calibration(qa, Calibration())
    assert answers == qa_same(example.question, example.context, 5, no_answer=True)


def replace_calibration(qa: QuestionAnswerer, calibration: Calibration) -> QuestionAnswerer:
    return QuestionAnswerer(qa.model, qa.tokenizer, calibration=calibration)


def test_what_is_fitted_is_stored_and_used(qa, few_are_enough, notes, tmp_path):
    """Fitted with answers and without; saved in a copy; read back; used by reader and pipeline."""
    calibration, report = calibrate(qa, notes)
    assert report["questions"] == len(notes) and report["ece_before"] >= 0
    copy = tmp_path / "copy"
    save_calibrated(BUNDLED, copy, calibration)
    again = QuestionAnswerer.from_pretrained(copy, precision="fp32")
    assert again.calibration == calibration != Calibration()
    stored = json.loads((copy / "config.json").read_text("utf-8"))
    bundled = json.loads((BUNDLED / "config.json").read_text("utf-8"))
    assert stored.pop("minibert") == {
        "ranges": bundled.pop("minibert")["ranges"],  # the weights are the same
        "temperature": calibration.temperature,
        "null_threshold": calibration.null_threshold,
        "text_temperature": calibration.text_temperature,
    }
    assert stored == bundled
    for path in BUNDLED.iterdir():
        if path.is_file() and path.name != "config.json":
            assert (copy / path.name).read_bytes() == path.read_bytes()

    metrics = minibert.evaluate(again, notes, no_answer=True)
    assert metrics["f1"] == pytest.approx(metrics["best_f1"])
    pipeline = minibert.pipeline(model=again, handle_impossible_answer=True, max_answer_len=30)
    said_no = 0
    for example in notes[::3]:
        answer = again(example.question, example.context, no_answer=True)
        assert answer.answer == pipeline(example.question, example.context)["answer"]
        said_no += not answer.answer
    assert said_no > 0


def test_the_fit_is_the_best_of_a_plain_search(qa, few_are_enough, notes):
    """Log loss of the forced answers, and of their texts, at each temperature, one at a time."""
    calibration, report = calibrate(qa, notes)
    answerable = [example for example in notes if example.answers]
    losses = {"score": {}, "text_score": {}}
    fitted = {"score": calibration.temperature, "text_score": calibration.text_temperature}
    for temperature in (0.5, 2**-0.25, 1.0, 2**0.25, 2.0, *fitted.values()):
        reader = replace_calibration(qa, Calibration(temperature, text_temperature=temperature))
        pairs = [(e.question, e.context) for e in answerable]
        answers = list(reader.answer_many(pairs, text_score=True))
        for name, by_temperature in losses.items():
            loss = 0.0
            for example, answer in zip(answerable, answers, strict=True):
                right = any(exact_match(answer.answer, gold.text) for gold in example.answers)
                score = min(getattr(answer, name), 1 - 1e-12)  # a sum may round to 1
                loss -= math.log(score if right else 1 - score)
            by_temperature[temperature] = loss
    for name, prefix in (("score", ""), ("text_score", "text_")):
        assert min(losses[name].values()) == losses[name][fitted[name]]
        assert report[f"{prefix}log_loss_after"] == pytest.approx(
            losses[name][fitted[name]] / len(answerable), rel=1e-6
        )


def test_without_unanswerable_questions_some_are_made(qa, few_are_enough, notes):
    answerable = [example for example in notes if example.answers]
    calibration, report = calibrate(qa, answerable)
    assert report["unanswerable"] == report["negatives_made"] > 0.9 * len(answerable)
    assert report["f1_forced"] - 1 <= report["f1_answerable"] <= report["f1_forced"]
    reader = replace_calibration(qa, calibration)
    metrics = minibert.evaluate(reader, answerable, no_answer=True)
    one = 100 / len(answerable)  # the one at the threshold: other batches, other last bits
    assert metrics["f1"] == pytest.approx(report["f1_answerable"], abs=one)
    _, report = calibrate(qa, notes)
    assert report["negatives_made"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_refuses_all_that_it_can_afford(seed):
    """Beside trying every threshold that divides the questions otherwise, ties among them."""
    random = np.random.default_rng(seed)
    odds = random.integers(-6, 6, 60).astype(float)
    f1 = random.choice([0.0, 0.0, 40.0, 100.0], 60)
    threshold = threshold_at_loss(odds.tolist(), f1.tolist(), 5.0)
    losses = {t: f1[odds > t].sum() / 60 for t in sorted(set(odds))}
    assert threshold == min(t for t, lost in losses.items() if lost <= 5.0)


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ([], "minibert=\\[\\]; expected an object"),
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temperature": True}, "temperature=True"),
        ({"text_temperature": -1.0}, "text_temperature=-1.0"),
        ({"null_threshold": float("nan")}, "null_threshold=nan"),
        ({"temperatur": 1.0}, "temperatur"),
    ],
)
def test_a_bad_calibration_is_named(tiny, tmp_path, stored, named):
    save_calibrated(tiny, tmp_path / "copy", Calibration(2.0, 1.0))
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"minibert": stored}), "utf-8")
    with pytest.raises(minibert.PretrainedError, match=f"copy: .*{named}"):
        QuestionAnswerer.from_pretrained(tmp_path / "copy")


def test_a_copy_goes_into_a_new_folder(tiny, tmp_path):
    with pytest.raises(minibert.InputError, match="already has files"):
        save_calibrated(tiny, tiny, Calibration())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(minibert.InputError, match="already has files"):
        save_calibrated(tiny, tmp_path / "full", Calibration())


@pytest.fixture(scope="module")
def random_qa(tiny) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(tiny, precision="fp32")


def copies(examples: list[minibert.Example], count: int) -> list[minibert.Example]:
    """This many examples, with different ids."""
    return [
        replace(examples[k % len(examples)], id=f"{k} {bool(examples[0].answers)}")
        for k in range(count)
    ]


@pytest.mark.parametrize(
    ("answerable", "unanswerable", "named"),
    [
        (0, 10, "^0 questions with an answer: a temperature needs 200 or more$"),
        (3, 0, "^3 questions with an answer: a temperature needs 200 or more$"),
        (199, 100, "^199 questions with an answer: a temperature needs 200 or more$"),
        (200, 49, "^the data has 49 questions without an answer: a threshold needs 50 or more$"),
        (200, 1, "^the data has 1 questions without an answer: a threshold needs 50 or more$"),
    ],
)
def test_nothing_is_fitted_on_a_few_questions(random_qa, notes, answerable, unanswerable, named):
    kinds = [[e for e in notes if bool(e.answers) is wanted] for wanted in (True, False)]
    examples = copies(kinds[0], answerable) + copies(kinds[1], unanswerable)
    with pytest.raises(minibert.InputError, match=named):
        calibrate(random_qa, examples)


@pytest.mark.filterwarnings("ignore:.*at the edge")
def test_the_least_numbers_of_questions_are_enough(random_qa, notes):
    kinds = [[e for e in notes if bool(e.answers) is wanted] for wanted in (True, False)]
    _, report = calibrate(random_qa, copies(kinds[0], 200) + copies(kinds[1], 50))
    assert (report["questions"], report["unanswerable"]) == (250, 50)


def test_a_temperature_at_the_edge_is_a_warning():
    """The best value of those that were tried can be far from the best value."""
    k = np.arange(len(TEMPERATURES))
    inside = 1 / (1 + np.exp(-1 / TEMPERATURES))  # 0.5 to 0.98
    sure = 0.9 - 0.01 * k  # the lowest temperature is the surest
    right = [True] * 9 + [False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_temperatures(np.tile(inside, (10, 2, 1)), right)
    for outcome, edge in ((True, "0.25"), (False, "4")):
        with pytest.warns(
            UserWarning, match=rf"^(text_)?temperature={edge} is at the edge"
        ) as told:
            fit_temperatures(np.tile(sure, (10, 2, 1)), [outcome] * 10)
        assert [str(w.message).partition(" ")[0] for w in told] == [
            f"temperature={edge}", f"text_temperature={edge}",
        ]  # fmt: skip


def test_repeated_ids_are_refused(random_qa, notes, tmp_path):
    """As in files: the predictions are named by ids, so one of them would be lost."""
    examples = [*notes, replace(notes[3], question="Who?"), notes[5]]
    named = f"the id occurs twice: '{min(notes[3].id, notes[5].id)}' and 1 more"
    for work in (calibrate, minibert.evaluate):
        with pytest.raises(minibert.DataError, match=named):
            work(random_qa, examples)


def test_a_copy_is_the_same_model(tiny, tmp_path, transformers):
    """For transformers, which ignores our key; for a reader that saves; not for a job to resume."""
    reader = QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    tuned = QuestionAnswerer(reader.model, reader.tokenizer, calibration=Calibration(2.0, 1.0, 3.0))
    tuned.save_pretrained(tmp_path / "saved")
    save_calibrated(tiny, tmp_path / "copy", Calibration(2.0, 1.0, 3.0))
    ids = torch.arange(5, 25)[None]
    original, copy = (
        transformers.BertForQuestionAnswering.from_pretrained(folder)(ids).start_logits
        for folder in (tiny, tmp_path / "copy")
    )
    assert torch.equal(original, copy)
    for name in ("saved", "copy"):
        again = QuestionAnswerer.from_pretrained(tmp_path / name)
        assert again.calibration == Calibration(2.0, 1.0, 3.0)
    assert identity(tuned, AnswerSettings()) != identity(reader, AnswerSettings())


def test_the_commands(tiny, few_are_enough, tmp_path):
    """`calibrate` writes a copy, which `inspect` shows; a folder that is full is met first."""
    arguments = ["calibrate", "--model", str(tiny), "--data", NOTES, "--output"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "copy")])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    stored = QuestionAnswerer.from_pretrained(tmp_path / "copy").calibration
    assert figures["temperature"] == stored.temperature and figures["questions"] == 120
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "copy")]).stdout
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if " " in line)
    assert float(lines["temperature"]) == stored.temperature
    assert float(lines["null_threshold"]) == stored.null_threshold
    assert float(lines["text_temperature"]) == stored.text_temperature
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "copy")])
    assert isinstance(result.exception, minibert.InputError)
    assert "already has files" in str(result.exception)
