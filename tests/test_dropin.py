"""The drop-in beside the pipeline that transformers has removed: its shapes, its answers, and, each
named, what is better on purpose."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minibert

HERE = Path(__file__).parent
LAMP = {"question": "Who lit the lamp?", "context": "Ada lit the lamp. Ada slept."}
BELL = {"question": "Who rang the bell?", "context": "Bo rang it at dawn, then Cy rang it again."}


@pytest.fixture(scope="module")
def ours(tiny: Path) -> minibert.QuestionAnsweringPipeline:
    return minibert.pipeline("question-answering", model=tiny, precision="fp32")


@pytest.fixture(scope="module")
def theirs(transformers, tiny: Path) -> Any:
    if not hasattr(transformers, "QuestionAnsweringPipeline"):
        pytest.skip("this transformers has no question-answering pipeline (5.2.0 is the last)")
    return transformers.pipeline("question-answering", model=str(tiny), tokenizer=str(tiny))


def shape(result: Any) -> Any:
    """The result without its figures: dicts as their keys, lists as lists."""
    return [shape(r) for r in result] if isinstance(result, list) else sorted(result)


def both(pair: dict[str, str], key: str) -> list[str]:
    return [pair[key], BELL[key]]


@pytest.mark.parametrize(
    "call",
    [
        LAMP,
        LAMP | {"top_k": 3},
        {key: [LAMP[key]] for key in LAMP},
        {key: [LAMP[key]] for key in LAMP} | {"top_k": 2},
        {key: both(LAMP, key) for key in LAMP},
        {key: both(LAMP, key) for key in LAMP} | {"top_k": 2},
        {"question": both(LAMP, "question"), "context": LAMP["context"]},
        LAMP | {"handle_impossible_answer": True, "top_k": 2},
    ],
)
def test_shapes_are_theirs(ours, theirs, call):
    assert shape(ours(**call)) == shape(theirs(**call))


def test_all_ways_to_ask(ours):
    alone, pair = ours(**LAMP), [ours(**LAMP), ours(**BELL)]
    assert ours(LAMP) == ours([LAMP]) == ours(LAMP["question"], LAMP["context"]) == alone
    assert ours([LAMP, BELL]) == ours(p for p in (LAMP, BELL)) == pair
    assert ours([both(LAMP, "question"), both(LAMP, "context")][0], both(LAMP, "context")) == pair
    assert ours(question=[], context=[]) == ours([]) == []


def test_best_answers_are_theirs(ours, theirs, field_notes):
    """On contexts of one window, aligned and not, whatever else is set. Theirs sums the scores of
    answers that read alike; where no two of its candidates do, the order is the same."""
    compared = 0
    for example in field_notes[::4]:
        context = example.context[:400]
        for align in (True, False):
            call = {"question": example.question, "context": context, "align_to_words": align}
            a, b = ours(**call), theirs(**call)
            if context.lower().count(b["answer"].lower()) == 1:
                spans = theirs(**call, top_k=200)
                if [s["answer"].lower() for s in spans].count(a["answer"].lower()) < 2 and align:
                    continue  # several spans of the same words: summed there, not here
                assert {k: a[k] for k in ("start", "end", "answer")} == {
                    k: b[k] for k in ("start", "end", "answer")
                }
                compared += 1
    assert compared > 20


def test_offsets_are_theirs(ours, theirs, field_notes):
    """Each of their aligned answers is one of ours: the same words make the same place."""
    for example in field_notes[::6]:
        call = {"question": example.question, "context": example.context[:300]}
        places = {(a["start"], a["end"]) for a in ours(**call, top_k=10_000)}
        for answer in theirs(**call, top_k=20):
            assert (answer["start"], answer["end"]) in places


def test_stored_offsets_are_theirs(ours, field_notes):
    """Without transformers too: its answers of `reference/`, widened to words, are places of ours;
    most are our best. Where not, it added up the scores of several spans of those words."""
    rows = json.loads((HERE / "reference" / "pipeline.json").read_text(encoding="utf-8"))["rows"]
    examples = {example.id: example for example in field_notes}
    places, theirs = [], []
    for row in rows:
        example = examples[row["id"]]
        if len(minibert.prepare_features([example], ours.qa.tokenizer)) == 1:
            answers = ours(question=example.question, context=example.context, top_k=10_000)
            places.append([(a["start"], a["end"]) for a in answers])
            theirs.append((row["aligned"]["start"], row["aligned"]["end"]))
    assert all(one in ours for one, ours in zip(theirs, places, strict=True))
    best = [one == ours[0] for one, ours in zip(theirs, places, strict=True)]
    assert (sum(best), len(best)) == (14, 18)


def test_scores_are_no_sums(ours, theirs):
    """On purpose: "Ada" stands twice. Theirs adds up both places and names one; ours has both."""
    call = LAMP | {"top_k": 500, "align_to_words": False}
    names = [a for a in ours(**call) if a["answer"] == "Ada"]
    assert sorted(a["start"] for a in names) == [0, 18]
    assert len([a for a in theirs(**call) if a["answer"] == "Ada"]) == 1
    assert sum(a["score"] for a in ours(**call)) == pytest.approx(1)


def test_widening_never_adds(ours):
    """Spans that are the same words keep the best score of them: less than all of them together."""
    context = "the unbelievably reconsiderable lamplighters"
    call = {"question": "Who?", "context": context, "max_answer_len": 1000}
    apart = ours(**call, align_to_words=False, top_k=10_000)
    together = ours(**call, top_k=10_000)
    words = {(a["start"], a["end"]) for a in together}
    assert len(words) == len(together) == 10 < len(apart)  # 4 words have 10 spans
    assert {a["score"] for a in together} <= {a["score"] for a in apart}
    for a in together:
        assert context[a["start"] : a["end"]] == a["answer"]
        assert f" {a['answer']} " in f" {context} "


def test_k_answers_where_k_exist(ours, theirs):
    """On purpose: theirs looks at the best 2k + 10 spans only, before it joins them to words."""
    context = "Ada met incomprehensibilities."
    call = {"question": "Who lit the lamp?", "context": context, "top_k": 6, "max_answer_len": 40}
    assert (len(ours(**call)), len(theirs(**call))) == (6, 3)


def test_fewer_answers_where_fewer_exist(ours, theirs):
    """On purpose: theirs fills up with answers of score 0, "" and pieces of words."""
    call = {"question": "Who?", "context": "Ada", "top_k": 3}
    assert ours(**call)["answer"] == "Ada"
    assert [(a["answer"], a["score"]) for a in theirs(**call)][1:] == [("", 0.0), ("A", 0.0)]


def test_no_answer(ours):
    call = LAMP | {"handle_impossible_answer": True, "align_to_words": False}
    answers = ours(**call, top_k=500)
    (null,) = [a for a in answers if not a["answer"]]
    assert (null["start"], null["end"]) == (0, 0) and 0 < null["score"] < 1
    assert sum(a["score"] for a in answers) == pytest.approx(1)
    assert len(ours(**call, top_k=3)) == 3


def test_no_answer_is_one_candidate_of_all(ours, theirs):
    """On purpose: theirs gives "" its product of softmaxes in the window where that is least."""
    call = LAMP | {"context": LAMP["context"] * 4, "handle_impossible_answer": True}
    call |= {"max_seq_len": 24, "doc_stride": 4, "top_k": 10_000}
    example = minibert.Example("", call["question"], call["context"])
    windows = ours.qa.logits(minibert.prepare_features([example], ours.qa.tokenizer, 24, 4))
    assert len(windows) > 2

    def share(logits: np.ndarray, null: float) -> float:
        return float(np.exp(null) / (np.exp(null) + np.exp(logits).sum()))

    least = min(
        share(w.start_logits, w.null_logits[0]) * share(w.end_logits, w.null_logits[1])
        for w in windows
    )
    nulls = [a["score"] for a in theirs(**call) if not a["answer"]]  # it fills up with "" too
    assert max(nulls) == pytest.approx(least, rel=1e-4)
    answers = ours(**call, align_to_words=False)
    (null,) = [a for a in answers if not a["answer"]]
    assert null["score"] != pytest.approx(least, rel=0.1)
    assert sum(a["score"] for a in answers) == pytest.approx(1)


def test_a_long_question_is_cut(ours, theirs):
    """On purpose: theirs has the setting and no use for it, and refuses a very long question."""
    short = "Who lit the lamp"
    call = LAMP | {"question": short + ", the lamp" * 30}
    limit = {"max_question_len": len(ours.qa.tokenizer.encode(short).ids)}
    assert theirs(**call, **limit) == theirs(**call)
    with pytest.warns(UserWarning, match="not read is ', the lamp, the lamp"):
        assert ours(**call, **limit) == ours(**call | {"question": short})
    call["question"] *= 10
    with pytest.raises(Exception, match="too short to respect the provided max_length"):
        theirs(**call, **limit)
    with pytest.warns(UserWarning, match="not read is ', the lamp, the lamp"):
        assert ours(**call, **limit)["answer"]


def test_settings(tiny, ours):
    short = minibert.pipeline(model=tiny, precision="fp32", top_k=2, max_answer_len=1)
    assert short(LAMP) == ours(**LAMP, top_k=2, max_answer_len=1)
    assert short(LAMP, top_k=1) == ours(**LAMP, max_answer_len=1)
    assert minibert.pipeline(model=ours.qa)(LAMP) == ours(LAMP)
    cut = {"max_seq_len": 20, "doc_stride": 4}
    score = ours(**BELL, **cut)["score"]
    assert score == pytest.approx(ours(**BELL, **cut, batch_size=1)["score"], rel=1e-5)
    assert score != pytest.approx(ours(**BELL)["score"], rel=1e-5)
    with pytest.warns(UserWarning, match="max_question_len=2: not read is '.*lamp'"):
        ours(question="the lamp" + " lamp" * 5, context="Ada", max_question_len=2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions, but 1 contexts"),
        ({"question": ["Who?", None], "context": "Ada"}, "item 1: the question is a NoneType"),
        ({"question": ["Who?", ""], "context": "Ada"}, "item 1: no words in the question"),
        ({"question": "Who?"}, "item 0: the context is a NoneType"),
        (LAMP | {"top_k": 0}, "top_k=0"),
        (LAMP | {"max_answer_len": -1}, "max_answer_len=-1"),
        (LAMP | {"max_seq_len": 0}, "max_length=0"),
        (LAMP | {"max_question_len": 0}, "max_question_len=0"),
    ],
)
def test_bad_calls_are_named(ours, call, named):
    with pytest.raises(minibert.InputError, match=named):
        ours(**call)


@pytest.mark.parametrize("inputs", [(3,), ("Who?",), (LAMP, LAMP, LAMP), ([LAMP, "Who?"],)])
def test_bad_positions_are_named(ours, inputs):
    with pytest.raises(minibert.InputError, match="expected"):
        ours(*inputs)


def test_another_task_or_setting(tiny):
    with pytest.raises(minibert.InputError, match="task='fill-mask'"):
        minibert.pipeline("fill-mask", model=tiny)
    with pytest.raises(TypeError, match="topk"):
        minibert.pipeline(model=tiny, topk=3)
