"""The question-answering pipeline that `transformers` had until 5.2, under its names.

It takes and returns what that pipeline took and returned, with the same defaults. It differs on
purpose in a few points: there is one probability over all windows, answers are not merged by their
text, and `top_k=k` gives k answers if so many exist. `notebooks/from-transformers.md` lists all
differences.
"""

import math
import operator
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .answers import Answer, answers_of
from .data.examples import Example, validated_example
from .engine import Engine
from .errors import InputError
from .fast.processor import Precision
from .qa import BertForQuestionAnswering
from .reader import BUNDLED, QuestionAnswerer
from .settings import MAX_QUESTION_LEN, AnswerSettings, WindowSettings
from .their_objects import PipelineTokenizer, is_their_model, is_their_tokenizer, tokenizer_of
from .tokenization import Tokenizer

PRECISIONS: dict[str, Precision] = {
    "auto": "auto", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"
}  # fmt: skip

# Arguments of the transformers pipeline that have no effect here, whatever their value.
WITHOUT_EFFECT = ("padding", "num_workers", "use_fast", "trust_remote_code", "binary_output")

# Arguments that are accepted only if they are empty (None, False, {}), or if their value is what
# minibert does anyway: name -> this value, and what to do instead of giving another value.
INSTEAD: dict[str, tuple[Any, str]] = {
    "framework": ("pt", "minibert computes in PyTorch"),
    "device_map": ("auto", "a model is on one device; give device="),
    "config": (None, "the configuration is read from where the model is"),
    "model_kwargs": (None, "give dtype=, device= or revision= themselves"),
    "token": (True, "set HF_TOKEN, or run `hf auth login`"),
    "local_files_only": (None, "set HF_HUB_OFFLINE=1"),
}


# The settings of a call, with that pipeline's defaults. A pipeline can have its own defaults.
DEFAULTS: dict[str, Any] = {
    "top_k": 1,
    "doc_stride": None,  # None: see `WindowSettings`
    "max_answer_len": 15,
    "max_seq_len": None,  # `WindowSettings.max_length`; None: the model's own
    "max_question_len": MAX_QUESTION_LEN,
    "handle_impossible_answer": False,  # `AnswerSettings.no_answer`
    "align_to_words": True,
    "batch_size": None,  # the `QuestionAnswerer`'s own
    "allow_blank": False,  # the answer for a context without words is "", instead of an error
}


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that these arguments give; None means "not given".

    Raises `InputError` for an argument that doesn't exist, and for a value that asks for something
    that minibert doesn't do.
    """
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in INSTEAD:
            harmless, instead = INSTEAD[name]
            if value and value != harmless:  # the value is not shown: it may be a secret
                raise InputError(f"{name}= is not supported: {instead}")
        elif name not in DEFAULTS and name not in WITHOUT_EFFECT:
            raise InputError(f"{name}=: no such argument; expected {', '.join(DEFAULTS)}")
        elif name in DEFAULTS and value is not None:
            switch = isinstance(DEFAULTS[name], bool)
            given[name] = bool(value) if switch else whole_number(name, value)
    return given


def whole_number(name: str, value: Any) -> int:
    least = 0 if name == "doc_stride" else 1
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise InputError(f"{name}={value!r}: expected a whole number, {least} or more")
    return number


def pipeline(
    task: str | None = "question-answering",
    model: str | Path | QuestionAnswerer | nn.Module | None = None,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    **settings: Any,
) -> "QuestionAnsweringPipeline":
    """A pipeline for "question-answering", the only task.

    `model` is a folder, a hub id (at `revision`), a `QuestionAnswerer`, or a loaded PyTorch model
    of `transformers`, whose weights are copied; None is the bundled model. `tokenizer` is a folder,
    a hub id, a `Tokenizer`, or a loaded fast tokenizer of `transformers`; None is the model's own.
    `device` is a name ("cpu", "cuda:1"), the number of a GPU (-1: the CPU) or a `torch.device`;
    None is the GPU if the machine has one. `dtype` (formerly `torch_dtype`) is "float32",
    "bfloat16", "float16" (only on a GPU) or "auto", which is the fastest precision of this machine.
    `settings` are defaults for the calls: see `DEFAULTS`. Raises `InputError` for another task or
    argument, and the errors of loading.

    >>> from minibert import pipeline
    >>> reader = pipeline("question-answering", dtype="float32")
    >>> context = "At dusk the keeper, Ada, lit the lamp."
    >>> result = reader(question="Who lit the lamp?", context=context)
    >>> result["answer"], result["start"], result["end"]
    ('Ada', 20, 23)
    """
    if task not in (None, "question-answering"):
        raise InputError(f"task={task!r}: expected 'question-answering'")
    defaults = checked(settings)
    if isinstance(model, QuestionAnswerer):
        if any(x is not None for x in (tokenizer, revision, device, dtype, torch_dtype)):
            unused = "tokenizer=, revision=, device= and dtype="
            raise InputError(f"model= is already loaded: leave out {unused}")
        return QuestionAnsweringPipeline(model, defaults)
    if model is None and tokenizer is not None:
        raise InputError("tokenizer= needs model=, because a tokenizer belongs to a model")
    if isinstance(tokenizer, tuple) and len(tokenizer) == 2:  # with arguments, such as use_fast
        tokenizer, arguments = tokenizer
        checked(arguments)
    for name, value, ours, is_theirs, theirs in (
        ("model", model, QuestionAnswerer, is_their_model, "PyTorch model"),
        ("tokenizer", tokenizer, Tokenizer, is_their_tokenizer, "fast tokenizer"),
    ):
        if not isinstance(value, str | Path | ours | None) and not is_theirs(value):
            raise InputError(
                f"{name}= is a {type(value).__name__}: expected a folder, a hub id, a minibert "
                f"{ours.__name__}, or a loaded {theirs} of transformers; "
                f"{name}.save_pretrained(FOLDER) makes such a folder"
            )
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    precision = str(dtype or torch_dtype or "auto").removeprefix("torch.")
    if precision not in PRECISIONS:
        raise InputError(f"dtype={precision}: expected {', '.join(PRECISIONS)}")
    qa = QuestionAnswerer.from_pretrained(
        BUNDLED if model is None else model,
        device=str(device or "auto"),
        precision=PRECISIONS[precision],
        tokenizer=tokenizer_of(tokenizer) if is_their_tokenizer(tokenizer) else tokenizer,
        revision=revision,
    )
    return QuestionAnsweringPipeline(qa, defaults)


class QuestionAnsweringPipeline:
    """Questions and contexts in, dicts with `score`, `start`, `end` and `answer` out.

    It has the attributes of the pipeline of `transformers` that other programs read. They cannot be
    set: `pipeline` makes another object for another device or model.

    >>> import minibert
    >>> reader = minibert.pipeline("question-answering", dtype="float32")
    >>> isinstance(reader, minibert.QuestionAnsweringPipeline)
    True
    >>> row = {"question": "Who lit the lamp?", "context": "At dusk the keeper, Ada, lit the lamp."}
    >>> [result["answer"] for result in reader([row, row])]
    ['Ada', 'Ada']
    """

    task = "question-answering"
    framework = "pt"

    def __init__(self, qa: QuestionAnswerer, defaults: Mapping[str, Any]) -> None:
        self.qa = qa
        self.defaults = DEFAULTS | dict(defaults)

    @property
    def model(self) -> BertForQuestionAnswering:
        """The model, with its sizes in `config`. It takes the tensors of `tokenizer`."""
        return self.qa.model

    @property
    def tokenizer(self) -> PipelineTokenizer:
        """The tokenizer under the names of `transformers`; `qa.tokenizer` is minibert's own."""
        return PipelineTokenizer(self.qa.tokenizer, self.qa.model.config.max_length)

    @property
    def device(self) -> torch.device:
        return self.qa.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights. `qa.precision` is the precision of the computation."""
        return self.qa.model.head.S.dtype

    torch_dtype = dtype

    def save_pretrained(self, save_directory: str | Path) -> None:
        """See `QuestionAnswerer.save_pretrained`."""
        self.qa.save_pretrained(save_directory)

    def predict(self, X: Any) -> Any:
        """The same as calling the object; scikit-learn has this name."""
        return self(X)

    transform = predict

    def __call__(
        self,
        *inputs: Any,
        question: str | Iterable[str] | None = None,
        context: str | Iterable[str] | None = None,
        data: Any = None,
        **settings: Any,
    ) -> Any:
        """Answer the pairs that `read_inputs` reads (`data` can replace the first of `inputs`).

        An answer is a dict; with `top_k` > 1, a list of dicts. The result for one question is one
        answer, for several questions a list, for a stream an iterator. Everything but a stream is
        checked before any work starts. Raises `InputError`, which names the index of the item. For
        a stream, the error comes after the results of the items before it.
        """
        chosen = self.defaults | checked(settings)
        pairs, kind = read_inputs(inputs if data is None else (*inputs, data), question, context)
        engine, wanted = self.reading(chosen)
        blank: deque[bool] = deque()  # for each pair read but not yet answered: is it left out?

        def examples() -> Iterator[Example]:
            """The examples that have words to read."""
            for index, pair in enumerate(pairs):
                example = to_example(f"item {index}", pair)
                pieces = engine.tokenizer.encode(example.context)
                blank.append(chosen["allow_blank"] and bool(pieces.blank.all()))
                if not blank[-1]:
                    yield example

        readings = engine.read(examples() if kind == "stream" else list(examples()))

        def answers() -> Iterator[list[Answer]]:
            """The answers to these examples, and "" for the others, in the order of the pairs."""
            # a context without words has no spans: with `no_answer`, "" has probability 1, else 0
            nothing = Answer("", float(wanted.no_answer), 0, 0, -math.inf, -math.inf)
            for reading in readings:
                while blank.popleft():
                    yield [nothing]
                yield answers_of(reading, wanted)
            yield from ([nothing] for _ in blank)

        results = (shaped(best, wanted.top_k) for best in answers())
        if kind == "stream":
            return results
        return next(results) if kind == "one" else list(results)

    def reading(self, chosen: Mapping[str, Any]) -> tuple[Engine, AnswerSettings]:
        """What these settings of a call mean: how to read, and which answers are wanted.

        `chosen` has all of `DEFAULTS`. Raises `InputError` for values that do not fit together.
        """
        qa, no_answer = self.qa, chosen["handle_impossible_answer"]
        length = chosen["max_seq_len"] or qa.window_settings.max_length
        stride = chosen["doc_stride"]
        stride = qa.window_settings.doc_stride if stride is None else stride
        windows = WindowSettings(length, stride, chosen["max_question_len"])
        size = chosen["batch_size"] or qa.batch_size
        # the weights stay as they are
        engine = Engine(qa.model, qa.tokenizer, windows, size, qa.autocast, qa.calibration)
        wanted = AnswerSettings(
            chosen["top_k"], chosen["max_answer_len"], no_answer, chosen["align_to_words"]
        )
        return engine, wanted


def read_inputs(
    inputs: tuple[Any, ...], question: Any, context: Any
) -> tuple[Iterable[Any], Literal["one", "several", "stream"]]:
    """The pairs in the arguments of a call, and their kind: "one", "several" or "stream".

    The arguments can be a question and a context, by name or by position: two texts, two columns of
    texts, or a column of questions about one context. They can be one dict with these. Or they can
    be one or several pairs, alone or in a collection such as a `datasets.Dataset`. A pair is a dict
    or a `SquadExample`. A generator and a torch data set are streams, which are read item by item.
    A single pair in a collection is "one", but a dict of columns with one row is "several". Raises
    `InputError`.
    """
    if len(inputs) == 2 and all(isinstance(one, str | list) for one in inputs):
        question, context = inputs
        inputs = ()
    elif inputs and (question is not None or context is not None):
        raise InputError("expected question= and context=, or dicts that hold both, but got both")
    given: Any = inputs[0] if len(inputs) == 1 else list(inputs)
    if isinstance(given, Generator | IterableDataset):
        return given, "stream"
    if isinstance(given, Dataset):  # torch requires only these two methods
        size = len(cast(Sized, given))
        return (given[index] for index in range(size)), "stream"
    columns = isinstance(given, Mapping) and is_column(given.get("question"))
    if columns:
        question, context = given["question"], given.get("context")
    elif inputs:
        pairs = list(given) if is_column(given) else [given]
        return pairs, "one" if len(pairs) == 1 else "several"
    questions = list(question) if is_column(question) else [question]
    contexts = list(context) if is_column(context) else [context] * len(questions)
    if len(questions) != len(contexts):
        raise InputError(f"{len(questions)} questions, but {len(contexts)} contexts")
    pairs = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    return pairs, "one" if len(pairs) == 1 and not columns else "several"


def is_column(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def shaped(answers: list[Answer], top_k: int) -> Any:
    """The best answer as a dict, or for `top_k` > 1 a list of dicts."""
    dicts = [
        {"score": a.score, "start": a.start, "end": a.end, "answer": a.answer}
        for a in answers[:top_k]
    ]
    return dicts if top_k > 1 else dicts[0]


def to_example(name: str, pair: Any) -> Example:
    """A pair as an example with this name. Raises `InputError`."""
    if hasattr(pair, "question_text") and hasattr(pair, "context_text"):  # a SquadExample
        return validated_example(name, pair.question_text, pair.context_text)
    if not isinstance(pair, Mapping) or not {"question", "context"} <= pair.keys():
        kind = type(pair).__name__
        raise InputError(f"{name}: expected a dict with 'question' and 'context', got a {kind}")
    return validated_example(name, pair["question"], pair["context"])
