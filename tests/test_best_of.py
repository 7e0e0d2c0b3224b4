"""One question, many passages: one probability over all of them."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import minibert
from minibert import QuestionAnswerer
from minibert.cli import app
from minibert.passages import best_of
from minibert.settings import AnswerSettings
from minibert.spans import Calibration

QUESTION = "Who lit the lamp?"
PASSAGES = [
    "Ada lit the lamp at dusk.",
    "Rain fell in May. " * 9,  # several windows below
    "The keeper slept; nobody lit the lamp.",
]


@pytest.fixture(scope="module")
def qa(tiny: Path) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(
        tiny, attention="eager", precision="fp32", max_length=40, doc_stride=10
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["Ada", "lit", "lamp", "é", "🦉", "."]), min_size=1, max_size=30
        ).map(" ".join),
        min_size=1,
        max_size=5,
    )
)
def test_an_answer_is_text_of_its_passage_and_the_scores_are_one_probability(qa, passages):
    answers = qa.best_of(QUESTION, passages, top_k=10**6, max_answer_len=4)
    assert sum(a.score for a in answers) == pytest.approx(1.0)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert len({(a.passage, a.start, a.end) for a in answers}) == len(answers)
    for a in answers:
        if a.passage is None:
            assert (a.answer, a.start, a.end) == ("", 0, 0)
        else:
            assert a.answer and passages[a.passage][a.start : a.end] == a.answer
    assert sum(a.passage is None for a in answers) == 1
    assert qa.best_of(QUESTION, passages, top_k=3, max_answer_len=4) == answers[:3]


@pytest.mark.parametrize("top_k", [1, 3, 9, 10**6])
def test_the_switch_for_no_answer_keeps_it_in_the_list(qa, top_k):
    """ "No answer" is one candidate for all passages together, never one more for each of them."""
    every = best_of(qa, QUESTION, PASSAGES, AnswerSettings(top_k=10**6))
    best = [answer for answer in every if answer.passage is not None][:top_k]
    [null] = [answer for answer in every if answer.passage is None]
    switched = best_of(qa, QUESTION, PASSAGES, AnswerSettings(top_k=top_k, no_answer=True))
    assert switched == sorted([*best, null], key=every.index)
    assert best_of(qa, QUESTION, PASSAGES, AnswerSettings(top_k=top_k)) == every[:top_k]


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(0.7, 1.5)])
def test_beside_a_plain_softmax_over_each_passage_s_spans(qa, calibration):
    reader = QuestionAnswerer(qa.model, qa.tokenizer, 40, 10, calibration=calibration)
    logits, nulls = {}, []
    for index, passage in enumerate(PASSAGES):
        for a in reader(QUESTION, passage, 10**6, no_answer=True):
            if a.answer:
                logits[index, a.start, a.end] = a.start_logit + a.end_logit
            else:
                nulls.append(a.start_logit + a.end_logit)
    weights = {k: math.exp(x / calibration.temperature) for k, x in logits.items()}
    weights[None, 0, 0] = math.exp(
        (min(nulls) - calibration.null_threshold) / calibration.temperature
    )
    total = sum(weights.values())
    answers = reader.best_of(QUESTION, PASSAGES, top_k=len(weights))
    assert {(a.passage, a.start, a.end): a.score for a in answers} == pytest.approx(
        {key: weight / total for key, weight in weights.items()}, rel=1e-3
    )  # another batch sums in another order


def test_one_passage_is_one_context(qa):
    alone = qa.best_of(QUESTION, PASSAGES[:1], top_k=4)
    context = qa(QUESTION, PASSAGES[0], 4, no_answer=True)
    for ours, theirs in zip(alone, context, strict=False):
        assert (ours.answer, ours.start, ours.end) == (theirs.answer, theirs.start, theirs.end)
        assert ours.score == pytest.approx(theirs.score)
    assert {a.passage for a in alone} <= {0, None} and isinstance(alone[0], minibert.Answer)


def test_the_order_of_the_passages_moves_only_their_indices(qa):
    answers = qa.best_of(QUESTION, PASSAGES, top_k=8)
    turned = qa.best_of(QUESTION, PASSAGES[::-1], top_k=8)
    for a, b in zip(answers, turned, strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-3)
        if a.passage is not None:
            assert b.passage == len(PASSAGES) - 1 - a.passage


@pytest.mark.parametrize("kind", [list, iter])
def test_equal_passages_count_once(qa, kind):
    """The probability is not split between them, and the answer names all their places."""
    once = qa.best_of(QUESTION, kind(PASSAGES), top_k=10**6)
    repeated = [PASSAGES[0], *PASSAGES, PASSAGES[2], PASSAGES[0]]
    places = {0: (0, 1, 5), 1: (2,), 2: (3, 4), None: ()}
    answers = qa.best_of(QUESTION, kind(repeated), top_k=10**6)
    for ours, plain in zip(answers, once, strict=True):
        assert ours.passages == places[plain.passage]
        assert ours.passage == (None if plain.passage is None else ours.passages[0])
        assert (ours.answer, ours.start, ours.end) == (plain.answer, plain.start, plain.end)
        assert ours.score == plain.score
        for place in ours.passages:
            assert repeated[place][ours.start : ours.end] == ours.answer
    assert {place for answer in once for place in answer.passages} == {0, 1, 2}


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("blank", ["", " \n", "\u200b\u200b", "\x00"])
def test_blank_passages_are_skipped(qa, kind, blank):
    """Also a text that has characters, but no words. The other passages keep their indices."""
    plain = qa.best_of(QUESTION, kind(PASSAGES), top_k=10**6)
    places = {0: 1, 1: 2, 2: 4, None: None}
    answers = qa.best_of(
        QUESTION, kind([blank, *PASSAGES[:2], blank, PASSAGES[2], blank]), top_k=10**6
    )
    assert [places[a.passage] for a in plain] == [a.passage for a in answers]
    assert [a.score for a in plain] == [a.score for a in answers]


def test_an_iterator_is_enough_and_batches_are_shared(qa):
    seen = []
    answers = qa.best_of(QUESTION, iter(PASSAGES), on_batch=seen.append)
    assert answers == qa.best_of(QUESTION, PASSAGES)
    assert len(answers) == 5 and len(seen) < sum(seen)


@pytest.mark.parametrize(
    ("question", "passages", "named"),
    [
        ("", PASSAGES, "no words in the question"),
        ("Who?", [], "no passages"),
        ("Who?", ["", " ", "\u200b"], "no passages with words"),
        ("Who?", iter([" "]), "no passages with words"),
        ("Who?", ["Ada", None], "passage 1: the context is a NoneType"),
        ("Who?", "Ada lit it", "passages is a str"),
    ],
)
def test_bad_input_is_named(qa, question, passages, named):
    with pytest.raises(minibert.InputError, match=named):
        qa.best_of(question, passages)
    with pytest.raises(minibert.InputError, match="top_k=0"):
        qa.best_of("Who?", PASSAGES, top_k=0)


def run(*arguments: object, text: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=text)
    return result.exit_code, result.stdout


def test_the_command(tiny, tmp_path):
    rows = [{"context": PASSAGES[0]}, {"context": PASSAGES[1], "id": 7}, PASSAGES[2]]
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    options = ("answer", "--question", QUESTION, "--model", tiny, "--top-k", 4)
    code, output = run(*options, "--passages", path, "--json")
    assert code == 0
    answers = json.loads(output)
    reader = QuestionAnswerer.from_pretrained(tiny)
    expected = reader.best_of(QUESTION, PASSAGES, top_k=4)
    assert [(a["passage"], a["passages"], a["answer"]) for a in answers] == [
        (a.passage, list(a.passages), a.answer) for a in expected
    ]
    code, table = run(*options, "--passages", "-", text=path.read_text("utf-8"))
    assert code == 0
    assert table.splitlines()[0].split() == ["passage", "score", "start", "end", "answer"]
    assert len(table.strip().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "text", "named"),
    [
        (("--passages", "-"), '"Ada lit it."\n{"text": 5}', "-: line 2: expected a string, or"),
        (("--passages", "-"), "Ada", "-: line 1: not readable as JSON"),
        (("--passages", "-"), "", "no passages"),
        (("--passages", "-", "--context", "Ada"), "", "give one of"),
        (("--passages", "none.jsonl"), "", "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_with_passages_is_named(tiny, arguments, text, named):
    asked = ["answer", "--model", str(tiny), "--question", "Who?", *arguments]
    result = CliRunner().invoke(app, asked, input=text)
    assert isinstance(result.exception, minibert.InputError) and named in str(result.exception)
    assert result.stdout == ""
