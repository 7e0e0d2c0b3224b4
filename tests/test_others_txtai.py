"""Our `Questions` in txtai's own objects: it gives the answers of our pipeline."""

import pytest

txtai = pytest.importorskip("txtai", reason="pip install txtai")
pytestmark = [pytest.mark.others, pytest.mark.usefixtures("offline")]

from txtai.app import Application
from txtai.pipeline import RAG, Extractor
from txtai.pipeline import Questions as Theirs

import minibert
from minibert.integrations.txtai import LEAST_SCORE, Questions

QUESTION = "Who lit the lamp?"
TEXTS = [
    "Bo rang the fog bell until the boats were home.",
    "At dusk the keeper, Ada, lit the lamp.",
    "The lighthouse has 120 steps.",
]


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions(minibert.QuestionAnswerer.from_pretrained(device="cpu", precision="fp32"))


def test_the_answers_are_those_of_the_pipeline(questions, field_notes):
    examples = field_notes[:12]
    asked, contexts = [e.question for e in examples], [e.context for e in examples]
    reader = questions.reader.qa
    ours = minibert.pipeline(model=reader)(question=asked, context=contexts)
    answers = questions(asked, contexts)
    assert answers == [a["answer"] if a["score"] >= LEAST_SCORE else None for a in ours]
    assert sum(answer is not None for answer in answers) > 8
    plain = reader.answer_many(zip(asked, contexts, strict=True), max_answer_len=15)
    for answer, one in zip(answers, plain, strict=True):  # the same before it is widened to words
        assert answer is None or one.answer in answer


def test_what_cannot_be_answered_is_none(questions):
    asked = [QUESTION, "", None, QUESTION, QUESTION, QUESTION]
    contexts = [TEXTS[1], TEXTS[1], TEXTS[1], None, "", " \u200b"]
    assert questions(asked, contexts) == ["Ada", None, None, None, None, None]
    assert questions([], []) == []
    with pytest.raises(minibert.InputError, match="item 1: no words in the question"):
        questions([QUESTION, " "], [TEXTS[1], TEXTS[1]])


def test_an_unlikely_answer_is_none(tiny):
    """To a model with random weights, all spans are about equally likely."""
    questions = Questions(tiny, gpu=False)
    context = " ".join(TEXTS * 9)
    best = questions.reader(question=QUESTION, context=context)
    assert 0 < best["score"] < LEAST_SCORE
    assert questions([QUESTION], [context]) == [None]


def test_the_whole_context_is_read(questions):
    context = " ".join(TEXTS[::2] * 80 + [TEXTS[1]])
    assert len(questions.reader.qa.tokenizer.encode(context)) > 1000
    assert questions([QUESTION], [context]) == ["Ada"]


@pytest.mark.parametrize("kind", [RAG, Extractor])
def test_rag_takes_it_with_its_own_index(questions, kind):
    index = txtai.Embeddings(content=True, keyword=True)
    index.index(TEXTS)
    rag = kind(index, questions)
    assert isinstance(questions, Theirs)
    asked = [("text", "lamp", QUESTION, False), ("snippet", "lamp", QUESTION, True)]
    assert rag(asked) == [("text", "Ada"), ("snippet", TEXTS[1])]
    assert rag({"query": "lamp", "question": QUESTION}) == {"answer": "Ada"}


def test_an_application_makes_it_by_its_name():
    name = "minibert.integrations.txtai.Questions"
    app = Application(f"{name}:\n  gpu: false\n  quantize: true\n  batch: 4\n  max_answer_len: 3")
    assert app.pipeline(name, ([QUESTION, QUESTION], TEXTS[:2]))[1] == "Ada"
    qa = app.pipelines[name].reader.qa
    assert qa.computes_with.startswith("cpu, int8") and qa.batch_size == 4
    assert app.pipelines[name].reader.defaults["max_answer_len"] == 3
