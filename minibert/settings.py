"""Settings as objects: each is frozen, and checked once, where it is made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .errors import InputError

# At most this many tokens of a question are read, in training and in answering: the
# `max_query_length` of google-research/bert, and the default of the pipeline of `transformers`.
# SQuAD's longest question has 61 tokens.
MAX_QUESTION_LEN = 64


def setting(default: Any, help: str) -> Any:
    """A field of a settings class. `help` is for the option; the default `...` means no default."""
    default = dataclasses.MISSING if default is ... else default
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class WindowSettings:
    """How a long context is cut into overlapping windows.

    Raises `InputError` for a value out of range.

    >>> import minibert
    >>> minibert.WindowSettings(max_length=128).stride()
    64
    """

    max_length: int = setting(384, "Tokens in one window.")
    # The *overlap* of two windows, as in `transformers`. In google-research/bert the same word
    # means the step from one window to the next.
    doc_stride: int | None = setting(None, "Tokens that two neighbouring windows share.")
    max_question_len: int | None = setting(
        MAX_QUESTION_LEN, "Tokens of a question that are read; None: all of them."
    )

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise InputError(f"max_length={self.max_length}: expected 1 or more")
        if self.doc_stride is not None and self.doc_stride < 0:
            raise InputError(f"doc_stride={self.doc_stride}: an overlap cannot be negative")
        if self.max_question_len is not None and self.max_question_len < 1:
            raise InputError(f"max_question_len={self.max_question_len}: expected 1 or more")

    def stride(self) -> int:
        """The overlap to use: `doc_stride`. None means 128 tokens, or half of a shorter window."""
        return min(128, self.max_length // 2) if self.doc_stride is None else self.doc_stride


@dataclass(frozen=True)
class AnswerSettings:
    """Which answers are chosen from the logits. Raises `InputError` for a value out of range.

    >>> import minibert
    >>> minibert.AnswerSettings(top_k=0)
    Traceback (most recent call last):
    minibert.errors.InputError: top_k=0: expected 1 or more
    """

    top_k: int = setting(1, "How many answers, best first.")
    max_answer_len: int = setting(30, "Longest answer, in tokens (words and parts of words).")
    no_answer: bool = setting(False, 'Allow the answer "": the context has no answer.')
    align_to_words: bool = setting(False, "Widen answers to whole words, after scoring.")
    text_score: bool = setting(
        False, "Also give the probability of the answer's text, wherever it occurs."
    )

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")


@dataclass(frozen=True)
class Calibration:
    """Three numbers that correct a model's scores, and say when to give no answer.

    `calibrate` fits them. The defaults change nothing. There are two temperatures, because a span
    is right less often than its text: the annotator may have marked the same words in another
    place. Raises `InputError` for a temperature that is not positive, and for a value that is not a
    finite number.

    >>> import minibert
    >>> minibert.Calibration(temperature=1.5, null_threshold=-2.0)
    Calibration(temperature=1.5, null_threshold=-2.0, text_temperature=1.0)
    """

    temperature: float = 1.0  # logits are divided by it before the softmax; above 1 is less sure
    # "No answer" is chosen if its null odds exceed this: its logit minus the logit of the best span
    null_threshold: float = 0.0
    text_temperature: float = 1.0  # the same, for the softmax behind `Answer.text_score`

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            positive = name.endswith("temperature")
            if not number or not math.isfinite(value) or (positive and value <= 0):
                wanted = "a number above 0" if positive else "a number"
                raise InputError(f"{name}={value!r}: expected {wanted}")


UNCALIBRATED = Calibration()
