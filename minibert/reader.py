"""The reader: question and context in, `Answer` out.

text -> windows -> encoder -> S and E -> spans -> the context's own characters. BERT
(arXiv:1810.04805v2) section 4.2.
"""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from .answers import Answer, answers_of
from .config import Attention, BertConfig
from .data.examples import Example, validated_example
from .engine import Engine, OnBatch, OnProgress, ignore
from .errors import InputError, PretrainedError
from .explain.explanation import Explanation, explain
from .fast.probe import fastest_precision
from .fast.processor import VARIABLE, Precision, choose_device, choose_precision, faster_attention
from .fast.quantized import prepare_for_reading
from .fast.ranges import stored_ranges
from .files import complete_files
from .hub import pinned
from .passages import PassageAnswer, best_of
from .pretrained import prefix_errors, read_config
from .qa import BertForQuestionAnswering
from .settings import MAX_QUESTION_LEN, UNCALIBRATED, AnswerSettings, Calibration, WindowSettings
from .their_objects import loaded_name, model_of, their_config
from .tokenization import Tokenizer
from .tokenizer_files import TOKENIZER_FILES

# The checkpoint that comes with the package: MiniLM, fine-tuned on SQuAD v1.1.
BUNDLED = Path(__file__).parent / "checkpoints" / "minilm-squad"


class QuestionAnswerer(Engine):
    """Answers questions with parts of the text itself.

    >>> import minibert
    >>> qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    >>> answer = qa("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp.")
    >>> answer.answer, answer.start, answer.end
    ('Ada', 20, 23)
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = MAX_QUESTION_LEN,
        batch_size: int | None = None,
        precision: Precision = "fp32",
        calibration: Calibration = UNCALIBRATED,
        reason: str = "",
        source: tuple[str | Path, str | None] | None = None,
    ) -> None:
        """`WindowSettings` explains `max_length` (None means 384, or fewer if model or tokenizer
        allow only fewer), `doc_stride` and `max_question_len`. `source` is the folder or hub id
        that holds the model, and its revision: see `model_to_save`. `Engine` explains the other
        arguments and the errors.
        """
        if max_length is None:
            max_length = min(384, model.config.max_length, tokenizer.max_length or 384)
        settings = WindowSettings(max_length, doc_stride, max_question_len)
        super().__init__(
            model, tokenizer, settings, batch_size, precision, calibration, reason, source
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | nn.Module = BUNDLED,
        attention: Attention | None = None,
        device: str = "auto",
        max_length: int | None = None,
        doc_stride: int | None = None,
        precision: Precision = "auto",
        revision: str | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        batch_size: int | None = None,
    ) -> "QuestionAnswerer":
        """From a folder or hub id that has a trained span head; by default the bundled one.

        `revision` is the hub id's branch, tag or commit. `tokenizer` is a `Tokenizer`, or the
        folder or hub id to load one from (its newest revision). None means the model's own.
        `source` can also be a loaded PyTorch model of `transformers`, with a `tokenizer`. Its
        weights are copied. `Engine` explains `batch_size`.

        `device` and `precision` are explained at `choose_device` and `choose_precision`. With
        bfloat16 and float16, the weights have this type too. On a CPU, `fuse` (for "int8",
        `quantize`) gives the layers a faster implementation. It holds copies of the weights, so
        such a model can't be trained. `precision` "auto" is the fastest precision that costs at
        most 0.1 F1. On a CPU it is measured once (`fastest_precision`). `attention` None is the
        faster one (see `faster_attention`). The calibration is read from `config.json`, if there is
        one. Raises `PretrainedError`, and `InputError` for an unusable device or precision.
        """
        chosen = choose_device(device)
        computed = choose_precision(precision, chosen)
        reason = VARIABLE if precision == "auto" and os.environ.get(VARIABLE) else ""
        origin = None
        if isinstance(source, nn.Module):
            name, config = loaded_name(source), their_config(source)
            if tokenizer is None or revision is not None:
                raise InputError(f"{name}: give tokenizer= too, and no revision=")
            load = partial(model_of, source, config)
        else:
            revision = pinned(source, revision)  # weights, tokenizer, calibration from one commit
            name, config = str(source), read_config(source, revision)
            load = partial(BertForQuestionAnswering.from_pretrained, source, revision=revision)
            origin = (source, revision)
        with prefix_errors(name):
            stored = stored_calibration(config)
            # a model in memory may have other weights than the folder from which it came
            ranges = None if origin is None else stored_ranges(config)
            if computed == "auto":
                computed = fastest_precision(BertConfig.from_dict(config), ranges)
                reason = "the fastest here"
        model = load(attention or faster_attention(computed, chosen))
        if not isinstance(tokenizer, Tokenizer):
            place = origin if tokenizer is None else (tokenizer, None)
            assert place is not None  # see above: a model in memory comes with a tokenizer
            tokenizer = Tokenizer.from_pretrained(*place)
        with prefix_errors(name):
            prepare_for_reading(model, computed, chosen, ranges)
            return cls(
                model,
                tokenizer,
                max_length,
                doc_stride,
                batch_size=batch_size,
                precision="fp32",  # the weights have their precision already
                calibration=stored,
                reason=reason,
                source=origin,
            )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write model (in `dtype`), calibration and tokenizer in Hugging Face's format.

        Loading in bfloat16 rounds the weights. If they have not changed since, the weights of the
        source are written, which are not rounded. Otherwise a warning says what is written. No file
        changes before all are complete. Raises `InputError` if they cannot be written.
        """
        model = self.model_to_save()
        with complete_files(folder, TOKENIZER_FILES) as draft:
            model.save_pretrained(draft, dtype)
            self.tokenizer.save_pretrained(draft)
            if self.calibration != UNCALIBRATED:
                path = draft / "config.json"
                config = json.loads(path.read_text(encoding="utf-8"))
                config["minibert"] = asdict(self.calibration)  # transformers ignores this key
                path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def model_to_save(self) -> BertForQuestionAnswering:
        """The model, or one with the same weights before they were rounded."""
        weights, dtype = self.model.state_dict(), self.model.head.S.dtype
        if dtype in (torch.float32, torch.float64):
            return self.model
        if self.source is not None:
            source, revision = self.source
            with suppress(PretrainedError):  # the source may have been removed or replaced
                exact = BertForQuestionAnswering.from_pretrained(source, revision=revision)
                read = exact.state_dict()
                if read.keys() == weights.keys() and all(
                    torch.equal(tensor.to(dtype), weights[name].cpu())
                    for name, tensor in read.items()
                ):
                    return exact
        warnings.warn(
            f"the weights that are saved were rounded to {dtype}: before you change and save a "
            "model, load it with precision='fp32'",
            stacklevel=3,
        )
        return self.model

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        top_k: Literal[1] = 1,
        max_answer_len: int = 30,
        no_answer: bool = False,
        text_score: bool = False,
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        top_k: int,
        max_answer_len: int = 30,
        no_answer: bool = False,
        text_score: bool = False,
    ) -> Answer | list[Answer]: ...

    def __call__(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_answer_len: int = 30,
        no_answer: bool = False,
        text_score: bool = False,
    ) -> Answer | list[Answer]:
        """The best answer; for `top_k` > 1 a list of the best ones, or of all if there are fewer.

        `max_answer_len` counts tokens. With `no_answer`, "" (the context has no answer) can be an
        answer: it is the best one if its logit exceeds the best span's by more than
        `calibration.null_threshold`. With `text_score`, each answer has a `text_score`. Raises
        `InputError` for a question or a context without words, and for a question too long for a
        window.
        """
        settings = AnswerSettings(top_k, max_answer_len, no_answer, text_score=text_score)
        example = validated_example("", question, context)
        answers = next(self.answer_examples([example], settings))[:top_k]
        return answers if top_k > 1 else answers[0]

    def answer_many(
        self,
        pairs: Iterable[tuple[str, str]],
        max_answer_len: int = 30,
        no_answer: bool = False,
        on_batch: OnBatch = ignore,
        text_score: bool = False,
    ) -> Iterator[Answer]:
        """Yield the best answer to each (question, context), in the same order.

        A list is checked before any work starts. Of an iterator, only a limited amount of text is
        read ahead, and the error of a bad item comes after the answers to the items before it.
        Errors name the item by its index. Otherwise this works like `__call__`. `on_batch` is
        called with the number of windows that have just been read.
        """

        def examples() -> Iterator[Example]:
            for index, pair in enumerate(pairs):
                if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                    raise InputError(f"item {index}: expected a question and a context")
                yield validated_example(f"item {index}", *pair)

        settings = AnswerSettings(1, max_answer_len, no_answer, text_score=text_score)
        if isinstance(pairs, Sequence):
            self.require_readable(examples())
        answered = self.answer_examples(examples(), settings, on_batch)
        return (answers[0] for answers in answered)

    def answer_examples(
        self,
        examples: Iterable[Example],
        settings: AnswerSettings = AnswerSettings(),
        on_batch: OnBatch = ignore,
    ) -> Iterator[list[Answer]]:
        """Yield the answers to each example (see `answers_of`), in order. For errors see `read`."""
        readings = self.read(examples, on_batch)
        return (answers_of(reading, settings) for reading in readings)

    def best_of(
        self,
        question: str,
        passages: Iterable[str],
        top_k: int = 5,
        max_answer_len: int = 30,
        on_batch: OnBatch = ignore,
    ) -> list[PassageAnswer]:
        """The best answers to one question in many passages: see `passages.best_of`."""
        return best_of(self, question, passages, AnswerSettings(top_k, max_answer_len), on_batch)

    def explain(
        self,
        question: str,
        context: str,
        top_k: int = 10,
        max_answer_len: int = 30,
        no_answer: bool = False,
        attribution: bool = True,
        on_progress: OnProgress = ignore,
    ) -> Explanation:
        """Explain the best answer: plain data, which a notebook shows as a page. See `explain/`."""
        settings = AnswerSettings(top_k, max_answer_len, no_answer)
        return explain(self, question, context, settings, attribution, on_progress)


def stored_calibration(config: Mapping[str, Any]) -> Calibration:
    """The calibration in a `config.json`, under "minibert". Raises `PretrainedError`."""
    stored = config.get("minibert", {})
    if not isinstance(stored, dict):
        raise PretrainedError(f"config: minibert={stored!r}; expected an object")
    stored = {name: value for name, value in stored.items() if name != "ranges"}
    if unknown := stored.keys() - Calibration.__dataclass_fields__.keys():
        raise PretrainedError(f"config: minibert has no setting {', '.join(sorted(unknown))}")
    try:
        return Calibration(**stored)
    except InputError as error:
        raise PretrainedError(f"config: minibert: {error}") from error
