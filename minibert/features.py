"""Windows: question + context -> overlapping windows -> labels -> padded batches of like length.

A window is `[CLS] question [SEP] part of the context [SEP]`, as BERT (arXiv:1810.04805v2) section
4.2 packs a pair; RoBERTa has two separators in the middle. A context too long for one is cut into
several that overlap, so that an answer at the edge of one stands inside another.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .data.examples import Example
from .errors import DataError, InputError
from .settings import MAX_QUESTION_LEN
from .tokenization import Pieces, Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """One window of one example, without padding.

    The pieces of question and context are shared by all windows that show them.
    """

    example_id: str
    window_index: int  # among the example's windows, from 0
    prefix: tuple[int, ...]  # ids of [CLS] question [SEP], or of two [SEP]
    context: Pieces  # of the whole context
    token_start: int  # first piece of the context in this window
    token_end: int  # last piece of the context in this window (inclusive)
    start_position: int | None = None  # label, in tokens of this window; None: unlabelled
    end_position: int | None = None  # inclusive
    context_segment: int = 1  # the question's is 0

    def __len__(self) -> int:
        return len(self.prefix) + self.token_end - self.token_start + 2

    @property
    def context_slice(self) -> slice:
        """Where the context stands among the tokens of this window."""
        return slice(len(self.prefix), len(self) - 1)

    @property
    def input_ids(self) -> list[int]:
        ids = self.context.ids[self.token_start : self.token_end + 1].tolist()
        return [*self.prefix, *ids, self.prefix[-1]]  # the prefix ends in [SEP], and so does this

    @property
    def token_type_ids(self) -> list[int]:
        context = len(self) - len(self.prefix)
        return [0] * len(self.prefix) + [self.context_segment] * context


def window_bounds(pieces: int, room: int, doc_stride: int) -> list[tuple[int, int]]:
    """Bounds (first, end exclusive) of windows of `room` pieces overlapping by `doc_stride`.

    >>> window_bounds(10, room=6, doc_stride=2)
    [(0, 6), (4, 10)]
    >>> window_bounds(11, room=6, doc_stride=2)  # the last window may be shorter
    [(0, 6), (4, 10), (8, 11)]
    """
    bounds = [(0, min(room, pieces))]
    while bounds[-1][1] < pieces:
        first = bounds[-1][0] + room - doc_stride
        bounds.append((first, min(first + room, pieces)))
    return bounds


def prepare_features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int = 384,
    doc_stride: int | None = None,
    max_question_len: int | None = None,
) -> list[Feature]:
    """The windows of every example, unlabelled, in the order of the examples.

    `max_length` counts all tokens of a window. `doc_stride` is the *overlap* of two windows in
    tokens, as in `transformers` (in google-research/bert the same word is the step); None means
    min(128, max_length // 2), or half the room where a question leaves no more. A question of more
    than `max_question_len` tokens is cut, and a warning names what is not read; None cuts none.
    Each different context is tokenized once.

    Raises `InputError` for a question or context without a token, and for a question that leaves
    no room for a token of context, or none for doc_stride + 1, so that a window could not advance.
    """
    cut = example_windows(examples, tokenizer, max_length, doc_stride, max_question_len, {})
    return [feature for windows in cut for feature in windows]


def prepare_train_features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int = 384,
    doc_stride: int | None = None,
    skipped: list[DataError] | None = None,
    max_question_len: int | None = MAX_QUESTION_LEN,
) -> list[Feature]:
    """`prepare_features`, each window labelled with the tokens of the example's first answer.

    The answer's tokens are those that share a character with it (`answer_tokens`). A window that
    does not hold them all, or whose example has no answer, is labelled with its [CLS], position 0.
    These are the windows of the `prepare_train_features` in `transformers`' examples, and for tidy
    answers its labels, with two exceptions: for an answer that starts in a window's last token of
    context that function gives a start after the end, and of a character of several pieces at an
    answer's edge, as a Hangul syllable is, it labels one.

    With a list `skipped`, an example that no window can hold is left out, and its error added to
    the list, as `load_squad` does it; raises `DataError` where none is left. The same for an answer
    that no token covers. Questions are cut as in answering, and one warning counts those.
    """
    features = []
    questions_cut: list[str] = []
    cut = example_windows(
        examples,
        tokenizer,
        max_length,
        doc_stride,
        max_question_len,
        {},
        skipped,
        questions_cut.append,
    )
    for example, windows in zip(examples, cut, strict=True):
        try:
            tokens = answer_tokens(example, windows[0].context) if windows else None
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(error)
        else:
            features += [label(feature, tokens) for feature in windows]
    if questions_cut:
        warnings.warn(
            f"{len(questions_cut)} of {len(examples)} questions are cut at {max_question_len} "
            f"tokens, as in answering; the first: {questions_cut[0]}",
            stacklevel=2,
        )
    if not features:
        raise DataError("no question is left that a window can hold")
    return features


def example_windows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
    doc_stride: int | None,
    max_question_len: int | None,
    contexts: dict[str, Pieces],
    skipped: list[DataError] | None = None,
    on_cut: Callable[[str], None] = warnings.warn,
) -> Iterator[list[Feature]]:
    """Each example's windows, as `prepare_features` makes them; a bad one raises when reached.

    Or, with a list `skipped`, has none, and its error is added there. `contexts` holds those that
    are tokenized already; the others are added. `on_cut` is told of each question that is cut.
    """
    if doc_stride is not None and doc_stride < 0:
        raise InputError(f"doc_stride={doc_stride}: an overlap cannot be negative")
    if max_question_len is not None and max_question_len < 1:
        raise InputError(f"max_question_len={max_question_len}: expected 1 or more")
    texts = list(dict.fromkeys(e.context for e in examples if e.context not in contexts))
    contexts.update(zip(texts, tokenizer.encode_batch(texts), strict=True))
    questions = tokenizer.encode_batch([example.question for example in examples])
    for example, question in zip(examples, questions, strict=True):
        context = contexts[example.context]
        try:
            prefix, bounds = cut_context(
                example,
                question,
                context,
                tokenizer,
                max_length,
                doc_stride,
                max_question_len,
                on_cut,
            )
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(DataError(str(error), "no window can hold a question"))
            prefix, bounds = (), []
        window = Feature(
            example.id, 0, prefix, context, 0, 0, context_segment=tokenizer.context_segment
        )
        yield [
            replace(window, window_index=index, token_start=first, token_end=end - 1)
            for index, (first, end) in enumerate(bounds)
        ]


def cut_context(
    example: Example,
    question: Pieces,
    context: Pieces,
    tokenizer: Tokenizer,
    max_length: int,
    doc_stride: int | None,
    max_question_len: int | None,
    on_cut: Callable[[str], None],
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """What all windows of an example begin with, and the bounds of their pieces of the context."""
    name = f"{example.id}: " if example.id else ""
    if question.blank.all():
        raise InputError(f"{name}no words in the question {example.question[:40]!r}")
    if context.blank.all():
        raise InputError(f"{name}no words in the context {example.context[:40]!r}")
    read = question.ids[:max_question_len].tolist()
    room = max_length - len(read) - tokenizer.separators - 2  # [CLS] question [SEP] ... [SEP]
    if doc_stride is None:
        doc_stride = min(128, max_length // 2)
        if doc_stride >= room:  # a long question: windows that advance by half of what is left
            doc_stride = room // 2 if room > 0 else 0
    if room < doc_stride + 1:
        raise InputError(
            f"{name}max_length={max_length} leaves room for {max(room, 0)} tokens of "
            f"context, but doc_stride={doc_stride} needs {doc_stride + 1}: the question has "
            f"{len(read)} tokens: {example.question[:60]!r}"
        )
    if len(read) < len(question):
        unread = example.question[question.offsets[len(read), 0] :]
        on_cut(
            f"{name}the question has {len(question)} tokens, max_question_len={len(read)}: "
            f"not read is {unread[:60]!r}"
        )
    prefix = (tokenizer.cls_id, *read, *[tokenizer.sep_id] * tokenizer.separators)
    return prefix, window_bounds(len(context), room, doc_stride)


def data_report(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int = 384,
    doc_stride: int | None = 128,
    skipped: list[DataError] | None = None,
) -> dict[str, float]:
    """What a data set holds, and what of it windows of this size can hold.

    `answers_without_a_window` counts the questions whose first answer stands whole in no window,
    `answers_with_outer_white_space` those with an answer that begins or ends in white space.
    `skipped` as in `prepare_train_features`.
    """
    features = prepare_train_features(examples, tokenizer, max_length, doc_stride, skipped)
    held = {feature.example_id for feature in features if feature.start_position}
    contexts = {feature.context.ids.tobytes(): len(feature.context) for feature in features}
    around = 1 + tokenizer.separators  # [CLS] and [SEP]
    answerable = [example for example in examples if example.answers]
    return {
        "questions": len(examples),
        "unanswerable": len(examples) - len(answerable),
        "contexts": len({example.context for example in examples}),
        "longest_context_tokens": max(contexts.values()),
        "longest_question_tokens": max(len(f.prefix) for f in features) - around,
        "windows": len(features),
        "windows_per_question": len(features) / len(examples),
        "answers_without_a_window": sum(example.id not in held for example in answerable),
        "answers_with_outer_white_space": sum(map(has_outer_white_space, answerable)),
    }


def has_outer_white_space(example: Example) -> bool:
    """Whether an answer begins or ends in white space, which labels leave out."""
    return any(answer.text != answer.text.strip() for answer in example.answers)


def answer_tokens(example: Example, context: Pieces) -> tuple[int, int] | None:
    """The first and the last piece of the context that share a character with the first answer.

    White space at the answer's edges, or marks that the tokenizer drops, change nothing. None for
    an example without an answer. Raises `DataError` where no piece has a character of it, and for
    one whose place is not known.
    """
    if not example.answers:
        return None
    answer = example.answers[0]
    name = f"{example.id}: " if example.id else ""
    if answer.char_start < 0:
        kind = "no place is known for the answer"
        raise DataError(f"{name}{kind} {answer.text!r}", kind)
    starts, ends = context.offsets.T
    first = int(ends.searchsorted(answer.char_start, side="right"))  # ends after the answer's start
    last = int(starts.searchsorted(answer.char_end, side="left")) - 1  # starts before its end
    if first > last:
        kind = "no token of the context covers the answer"
        raise DataError(f"{name}{kind} {answer.text!r}", kind)
    return first, last


def label(feature: Feature, tokens: tuple[int, int] | None) -> Feature:
    """The window labelled with these pieces of its context; [CLS] where it doesn't hold them all.

    `tokens` are the first and the last (inclusive), counted in the whole context.
    """
    start = end = 0
    if tokens and feature.token_start <= tokens[0] and tokens[1] <= feature.token_end:
        shift = len(feature.prefix) - feature.token_start
        start, end = tokens[0] + shift, tokens[1] + shift
    return replace(feature, start_position=start, end_position=end)
