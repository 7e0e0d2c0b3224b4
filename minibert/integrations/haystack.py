"""In place of Haystack's `ExtractiveReader`. It needs the package `haystack-ai`."""

from inspect import signature
from typing import Any

from haystack import Document, ExtractedAnswer, component, default_from_dict, default_to_dict

from ..passages import best_of, different_passages
from ..reader import BUNDLED, QuestionAnswerer
from ..settings import AnswerSettings


@component
class ExtractiveReader:
    """`model` is a folder or a hub id; None is the bundled model. `options` are other arguments of
    `QuestionAnswerer.from_pretrained`, for example `device="cpu"`."""

    def __init__(
        self, model: str | None = None, top_k: int = 20, no_answer: bool = True,
        max_answer_len: int = 30, **options: Any,
    ) -> None:  # fmt: skip
        signature(QuestionAnswerer.from_pretrained).bind(model, **options)  # an early TypeError
        self.model, self.no_answer, self.options = model, no_answer, options
        self.limits: dict[str, Any] = {"top_k": top_k, "max_answer_len": max_answer_len}

    def to_dict(self) -> dict[str, Any]:
        settings = self.limits | {"model": self.model, "no_answer": self.no_answer} | self.options
        return dict(default_to_dict(self, **settings))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model, once. Raises the errors of `QuestionAnswerer.from_pretrained`."""
        if not hasattr(self, "qa"):
            self.qa = QuestionAnswerer.from_pretrained(self.model or BUNDLED, **self.options)

    @component.output_types(answers=list[ExtractedAnswer])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> Any:
        """The `top_k` best answers; with `no_answer` one more, whose `data` is None. Best first.

        They are the answers of `passages.best_of`, or none if no document has words.
        `meta["document_ids"]` names all documents with the same text. Raises `InputError`.
        """
        self.warm_up()
        limits = self.limits if top_k is None else self.limits | {"top_k": top_k}
        texts = [document.content or "" for document in documents]
        if not any(different_passages(self.qa, query, texts, [])):
            return {"answers": []}
        answers = []
        for a in best_of(self.qa, query, texts, AnswerSettings(**limits, no_answer=True)):
            place: dict[str, Any] = {}  # "no answer" has none
            if a.passage is not None:
                place["data"], place["document"] = a.answer, documents[a.passage]
                place["document_offset"] = ExtractedAnswer.Span(a.start, a.end)
                place["meta"] = {"document_ids": [documents[k].id for k in a.passages]}
            if place or self.no_answer:
                answers.append(ExtractedAnswer(query=query, score=a.score, **place))
        return {"answers": answers}
