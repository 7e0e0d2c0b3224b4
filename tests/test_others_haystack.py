"""Our reader in Haystack's own pipelines: it gives the answers of `best_of`."""

import json

import pytest

haystack = pytest.importorskip("haystack", reason="pip install haystack-ai")
pytestmark = [pytest.mark.others, pytest.mark.usefixtures("offline")]

from haystack import Document, ExtractedAnswer, Pipeline
from haystack.components.joiners import AnswerJoiner
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore

import minibert
from minibert.integrations.haystack import ExtractiveReader

QUERY = "Who lit the lamp?"
LAMP = "🦉 At dusk the keeper, Zoë, lit the lamp."
TEXTS = ["Bo rang the fog bell.", "", LAMP, None, "Rain fell in May. " * 20, LAMP, " \u200b"]
DOCUMENTS = [Document(content=text, meta={"number": k}) for k, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def reader() -> ExtractiveReader:
    reader = ExtractiveReader(top_k=5, precision="fp32", device="cpu", max_length=64, doc_stride=16)
    reader.warm_up()
    return reader


def answers_of(reader: ExtractiveReader, no_answer: bool, top_k: int) -> list[ExtractedAnswer]:
    """What `best_of` says, as Haystack's objects."""
    texts = [text or "" for text in TEXTS]
    ranked = reader.qa.best_of(QUERY, texts, top_k=10**6)
    spans = [a for a in ranked if a.passage is not None][:top_k]
    return [
        ExtractedAnswer(
            query=QUERY,
            score=a.score,
            data=a.answer,
            document=DOCUMENTS[a.passage],
            document_offset=ExtractedAnswer.Span(a.start, a.end),
            meta={"document_ids": [DOCUMENTS[k].id for k in a.passages]},
        )
        if a.passage is not None
        else ExtractedAnswer(query=QUERY, score=a.score)
        for a in ranked
        if a in spans or (no_answer and a.passage is None)
    ]


@pytest.mark.parametrize("no_answer", [True, False])
@pytest.mark.parametrize("top_k", [None, 1, 20])
def test_the_answers_are_those_of_best_of(reader, monkeypatch, no_answer, top_k):
    monkeypatch.setattr(reader, "no_answer", no_answer)
    answers = reader.run(QUERY, DOCUMENTS, top_k)["answers"]
    assert answers == answers_of(reader, no_answer, top_k or 5)
    assert len(answers) == (top_k or 5) + no_answer
    assert sum(answer.data is None for answer in answers) == no_answer
    best = answers[0]
    assert best.data == "Zoë" and best.document is DOCUMENTS[2]
    assert best.meta["document_ids"] == [DOCUMENTS[2].id, DOCUMENTS[5].id]
    for answer in answers:
        if answer.data is not None:
            span = answer.document_offset
            assert answer.document.content[span.start : span.end] == answer.data
        assert ExtractedAnswer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer


def test_a_pipeline_with_a_retriever_and_the_pipeline_from_its_text(reader):
    store = InMemoryDocumentStore()
    store.write_documents([document for document in DOCUMENTS if document.content])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=3))
    pipeline.add_component("reader", ExtractiveReader.from_dict(reader.to_dict()))
    pipeline.add_component("joiner", AnswerJoiner())
    pipeline.connect("retriever.documents", "reader.documents")
    pipeline.connect("reader.answers", "joiner.answers")
    asked = {"retriever": {"query": QUERY}, "reader": {"query": QUERY, "top_k": 2}}
    result = pipeline.run(asked, include_outputs_from={"retriever"})
    answers, documents = result["joiner"]["answers"], result["retriever"]["documents"]
    assert [answer.data for answer in answers][:1] == ["Zoë"] and len(answers) == 3
    assert answers == reader.run(QUERY, documents, 2)["answers"]

    text = pipeline.dumps()
    with pytest.raises(DeserializationError, match="allowed_modules"):
        Pipeline.loads(text)
    again = Pipeline.loads(text, allowed_modules=["minibert"])
    assert again.get_component("reader").to_dict() == reader.to_dict()
    assert again.run(asked)["joiner"]["answers"] == answers


def test_without_text_there_are_no_answers(reader):
    for documents in ([], [Document(content=None)], [Document(content=t) for t in (" ", "\u200b")]):
        assert reader.run(QUERY, documents) == {"answers": []}


def test_bad_input_is_named(reader):
    with pytest.raises(minibert.InputError, match="no words in the question"):
        reader.run(" ", DOCUMENTS)
    with pytest.raises(minibert.InputError, match="top_k=0"):
        reader.run(QUERY, DOCUMENTS, top_k=0)
    with pytest.raises(TypeError, match="score_threshold"):
        ExtractiveReader(score_threshold=0.5)


def test_it_loads_its_model_when_it_is_warmed_up(tiny, tmp_path):
    missing = ExtractiveReader(str(tmp_path / "none"))
    with pytest.raises(minibert.PretrainedError, match="none"):
        missing.warm_up()
    given = ExtractiveReader(str(tiny), top_k=3, no_answer=False, max_answer_len=4, device="cpu")
    again = ExtractiveReader.from_dict(given.to_dict())
    assert again.to_dict() == given.to_dict()
    answers = again.run(QUERY, DOCUMENTS)["answers"]
    ranked = again.qa.best_of(QUERY, [text or "" for text in TEXTS], 9, max_answer_len=4)
    assert [a.data for a in answers] == [a.answer for a in ranked if a.passage is not None][:3]
