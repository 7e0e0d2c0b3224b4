"""The question-answering pipeline that `transformers` had until 5.2, under its names.

What it takes and returns is what that pipeline took and returned, with its defaults. What is better
on purpose (one probability, no answers merged by their text, k answers where k exist) stands in the
README.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import InputError
from .fast.processor import Precision
from .reader import BATCH_SIZE, BUNDLED, QuestionAnswerer, validated_example
from .squad import Example


@dataclass(frozen=True)
class PipelineSettings:
    """What a call may set, and a pipeline may set for all its calls."""

    top_k: int = 1
    doc_stride: int | None = None  # tokens that two windows share; None: min(128, max_seq_len // 2)
    max_answer_len: int = 15  # tokens
    max_seq_len: int | None = None  # tokens a window; None: 384, or what the model can read
    max_question_len: int = 64  # tokens; a longer question is cut, with a warning
    handle_impossible_answer: bool = False  # "" may be the answer
    align_to_words: bool = True  # answers are widened to whole words, after scoring
    batch_size: int = BATCH_SIZE  # windows of full length that are read at once


def pipeline(
    task: str = "question-answering",
    model: str | Path | QuestionAnswerer = BUNDLED,
    device: str | int = "cpu",
    precision: Precision = "auto",
    **settings: Any,
) -> "QuestionAnsweringPipeline":
    """A pipeline for "question-answering", the one task there is.

    `model` is a folder, a hub id or a `QuestionAnswerer`; `device` a name ("cpu", "cuda:1", "auto")
    or the number of a GPU, -1 being the CPU. `settings` are defaults for the calls, as in
    `PipelineSettings`. Raises `InputError` for another task, and what loading raises.
    """
    if task != "question-answering":
        raise InputError(f"task={task!r}: expected 'question-answering'")
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    if not isinstance(model, QuestionAnswerer):
        model = QuestionAnswerer.from_pretrained(model, device=device, precision=precision)
    return QuestionAnsweringPipeline(model, PipelineSettings(**settings))


class QuestionAnsweringPipeline:
    """Questions and contexts in, dicts with `score`, `start`, `end` and `answer` out."""

    def __init__(self, qa: QuestionAnswerer, settings: PipelineSettings) -> None:
        self.qa = qa
        self.settings = settings

    def __call__(
        self,
        *inputs: Any,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        **settings: Any,
    ) -> Any:
        """Answer: `question` and `context`, each a string or a list of them; or both in one place:
        dicts with these two keys, a list of such dicts, or two strings.

        One context goes with all questions. An answer is a dict; with `top_k` > 1 a list of them,
        but for a context with a single span. For one question that is the result, also when it came
        in a list; for several, a list of such. Everything is checked before any work starts: raises
        `InputError` naming the index of the item, `TypeError` for a setting that does not exist.
        """
        chosen = replace(self.settings, **settings)
        examples = list(read_inputs(inputs, question, context))
        qa = QuestionAnswerer(
            self.qa.model,
            self.qa.tokenizer,
            self.qa.max_length if chosen.max_seq_len is None else chosen.max_seq_len,
            chosen.doc_stride,
            chosen.max_question_len,
            chosen.batch_size,
            self.qa.precision,
        )
        n_best = qa.n_best(
            examples,
            chosen.top_k,
            chosen.max_answer_len,
            chosen.handle_impossible_answer,
            align_to_words=chosen.align_to_words,
        )
        results = [
            [
                {"score": a.score, "start": a.start, "end": a.end, "answer": a.answer}
                for a in answers[: chosen.top_k]
            ]
            for answers in n_best
        ]
        shaped = [answers if len(answers) > 1 else answers[0] for answers in results]
        return shaped[0] if len(shaped) == 1 else shaped


def read_inputs(
    inputs: tuple[Any, ...], question: str | list[str] | None, context: str | list[str] | None
) -> Iterator[Example]:
    """What a call was given, as examples named by their index. Raises `InputError`."""
    if len(inputs) == 2 and question is None and context is None:
        question, context = inputs
        inputs = ()
    pairs: Iterable[Any]
    if len(inputs) == 1 and question is None and context is None:
        pairs = [inputs[0]] if isinstance(inputs[0], Mapping) else inputs[0]
        if not isinstance(pairs, Iterable) or isinstance(pairs, str | bytes):
            raise InputError(f"expected dicts, found a {type(pairs).__name__}")
    elif inputs:
        raise InputError("expected question and context, or dicts that hold both")
    else:
        questions = question if isinstance(question, list) else [question]
        contexts = context if isinstance(context, list) else [context] * len(questions)
        if len(questions) != len(contexts):
            raise InputError(f"{len(questions)} questions, but {len(contexts)} contexts")
        pairs = ({"question": q, "context": c} for q, c in zip(questions, contexts, strict=True))
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Mapping) or not {"question", "context"} <= pair.keys():
            raise InputError(f"item {index}: expected a dict with 'question' and 'context'")
        yield validated_example(f"item {index}", pair["question"], pair["context"])
