"""Windows: question + context -> overlapping windows -> labels.

A window is `[CLS] question [SEP] part of the context [SEP]`, as in BERT (arXiv:1810.04805v2)
section 4.2. RoBERTa has two separators in the middle. A context that is too long for one window is
cut into several windows that overlap: an answer at the edge of one window is inside another.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .data.examples import Example
from .errors import DataError, InputError
from .settings import MAX_QUESTION_LEN, WindowSettings
from .tokenization import Pieces, Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """One window of one example, without padding.

    All windows of an example share the pieces of its question and of its context.

    >>> import minibert
    >>> tokenizer = minibert.QuestionAnswerer.from_pretrained(precision="fp32").tokenizer
    >>> example = minibert.Example("1", "Who lit it?", "Ada lit the lamp.")
    >>> [feature] = minibert.prepare_features([example], tokenizer)
    >>> len(feature), feature.context_slice
    (12, slice(6, 11, None))
    """

    example_id: str
    window_index: int  # in the list of the example's windows, from 0
    prefix: tuple[int, ...]  # ids of [CLS] question [SEP]; RoBERTa has two [SEP]
    context: Pieces  # of the whole context
    token_start: int  # first piece of the context in this window
    token_end: int  # last piece of the context in this window (inclusive)
    start_position: int | None = None  # label, in tokens of this window; None: no label
    end_position: int | None = None  # inclusive
    context_segment: int = 1  # the question's is 0

    def __len__(self) -> int:
        return len(self.prefix) + self.token_end - self.token_start + 2

    @property
    def context_slice(self) -> slice:
        """The positions of the context among the tokens of this window."""
        return slice(len(self.prefix), len(self) - 1)

    @property
    def input_ids(self) -> list[int]:
        ids = self.context.ids[self.token_start : self.token_end + 1].tolist()
        return [*self.prefix, *ids, self.prefix[-1]]  # the prefix and the window both end in [SEP]

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
    tokens, as in `transformers`. (In google-research/bert the same word means the step.) None means
    min(128, max_length // 2). If a long question leaves no more room than this for the context,
    None means half of this room. A question of more than `max_question_len` tokens is cut, and a
    warning shows the part that is not read. With None, no question is cut. Each different context
    is tokenized once.

    Raises `InputError` for a question or context without words, and for a question that leaves
    less room than doc_stride + 1 tokens of context, because a window could then not advance.

    >>> import minibert
    >>> tokenizer = minibert.QuestionAnswerer.from_pretrained(precision="fp32").tokenizer
    >>> example = minibert.Example("1", "Who lit it?", "Ada lit the lamp. " * 20)
    >>> [len(f) for f in minibert.prepare_features([example], tokenizer, 64, doc_stride=16)]
    [64, 64, 25]
    """
    settings = WindowSettings(max_length, doc_stride, max_question_len)
    rows = example_windows(examples, tokenizer, settings, {})
    return [feature for windows in rows for feature in windows]


def prepare_train_features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int = 384,
    doc_stride: int | None = None,
    skipped: list[DataError] | None = None,
    max_question_len: int | None = MAX_QUESTION_LEN,
) -> list[Feature]:
    """`prepare_features`, with each window labelled with the tokens of an answer.

    These are the tokens that share a character with the answer (`answer_tokens`). If an example has
    several gold answers, each window gets the first answer that it contains whole. If it contains
    none of them whole, the label is [CLS], position 0. The windows equal the output of
    `prepare_train_features` in the `transformers` example scripts. For questions with one answer,
    without white space at its edges, the labels are equal too, with two exceptions. If an answer
    starts in a window's last token of context, HF's start comes after its end. If the first or last
    character of an answer has several pieces (a Hangul syllable can), HF labels only one. Of
    several answers, HF labels only the first.

    An example that no window can hold raises `InputError`, and an answer that no token covers
    raises `DataError`. With a list `skipped`, such an example is left out and its error is added to
    the list, as in `load_squad`. Raises `DataError` if no example is left. Questions are cut as in
    answering, and one warning gives the number of cut questions.

    >>> import minibert
    >>> tokenizer = minibert.QuestionAnswerer.from_pretrained(precision="fp32").tokenizer
    >>> answers = (minibert.GoldAnswer("the lamp", 8),)
    >>> example = minibert.Example("1", "What did Ada light?", "Ada lit the lamp.", answers)
    >>> [feature] = minibert.prepare_train_features([example], tokenizer)
    >>> tokenizer.tokens(feature.context.ids)[2:4], feature.start_position, feature.end_position
    (['the', 'lamp'], 9, 10)
    """
    settings = WindowSettings(max_length, doc_stride, max_question_len)
    features = []
    questions_cut: list[str] = []
    rows = example_windows(examples, tokenizer, settings, {}, skipped, questions_cut.append)
    for example, windows in zip(examples, rows, strict=True):
        try:
            answers = answer_tokens(example, windows[0].context) if windows else []
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(error)
        else:
            features += [label(feature, answers) for feature in windows]
    if questions_cut:
        warnings.warn(
            f"{len(questions_cut)} of {len(examples)} questions are cut at {max_question_len} "
            f"tokens, as in answering; the first: {questions_cut[0]}",
            stacklevel=2,
        )
    if not features:
        raise DataError("no question is left that fits into a window")
    return features


def example_windows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    settings: WindowSettings,
    contexts: dict[str, Pieces],
    skipped: list[DataError] | None = None,
    on_cut: Callable[[str], None] = warnings.warn,
) -> Iterator[list[Feature]]:
    """Yield each example's windows, as in `prepare_features`.

    The error of a bad example is raised when the iterator reaches it. With a list `skipped`, a bad
    example has no windows, and its error is added to the list. `contexts` holds contexts that are
    tokenized already; the others are tokenized and added. `on_cut` is called with a message for
    each question that is cut.
    """
    texts = list(dict.fromkeys(e.context for e in examples if e.context not in contexts))
    contexts.update(zip(texts, tokenizer.encode_batch(texts), strict=True))
    questions = tokenizer.encode_batch([example.question for example in examples])
    for example, question in zip(examples, questions, strict=True):
        context = contexts[example.context]
        try:
            for kind, pieces in (("question", question), ("context", context)):
                if pieces.blank.all():
                    text = getattr(example, kind)[:40]
                    raise InputError(f"{place_of(example)}no words in the {kind} {text!r}")
            read = question.ids[: settings.max_question_len].tolist()
            # [CLS] question [SEP] ... [SEP]
            room = settings.max_length - len(read) - tokenizer.separators - 2
            stride = stride_for(example, settings, len(read), room)
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(DataError(str(error), "no window can hold a question"))
            yield []
            continue
        if len(read) < len(question):
            unread = example.question[question.offsets[len(read), 0] :]
            on_cut(
                f"{place_of(example)}the question has {len(question)} tokens, but "
                f"max_question_len={len(read)}; this part is not read: {unread[:60]!r}"
            )
        prefix = (tokenizer.cls_id, *read, *[tokenizer.sep_id] * tokenizer.separators)
        segment = tokenizer.context_segment
        yield [
            Feature(example.id, k, prefix, context, first, end - 1, context_segment=segment)
            for k, (first, end) in enumerate(window_bounds(len(context), room, stride))
        ]


def place_of(example: Example) -> str:
    """The beginning of a message about an example: its id and ": ", or "" without an id."""
    return f"{example.id}: " if example.id else ""


def stride_for(example: Example, settings: WindowSettings, question_tokens: int, room: int) -> int:
    """The overlap of this example's windows, which hold `room` tokens of context.

    Raises `InputError` if a window could not advance.
    """
    stride = settings.stride()
    if settings.doc_stride is None and stride >= room:
        stride = max(0, room // 2)  # a long question: half of the room that is left
    if room < stride + 1:
        raise InputError(
            f"{place_of(example)}max_length={settings.max_length} leaves room for "
            f"{max(room, 0)} tokens of context, but doc_stride={stride} needs {stride + 1}: "
            f"the question has {question_tokens} tokens: {example.question[:60]!r}"
        )
    return stride


def data_report(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int = 384,
    doc_stride: int | None = 128,
    skipped: list[DataError] | None = None,
) -> dict[str, float]:
    """Counts for a data set, and how much of the data fits into windows of this size.

    `several_answers` counts the questions with different gold answers: another text, or the same
    text at another place. `answers_without_a_window` counts the questions that have answers, but
    none that is completely inside a window. `answers_with_outer_white_space` counts the questions
    that have an answer with white space at its beginning or end. `skipped` works as in
    `prepare_train_features`.
    """
    features = prepare_train_features(examples, tokenizer, max_length, doc_stride, skipped)
    held = {feature.example_id for feature in features if feature.start_position}
    contexts = {feature.context.ids.tobytes(): len(feature.context) for feature in features}
    around = 1 + tokenizer.separators  # [CLS] and [SEP]
    answerable = [example for example in examples if example.answers]
    return {
        "questions": len(examples),
        "unanswerable": len(examples) - len(answerable),
        "several_answers": sum(len(set(example.answers)) > 1 for example in answerable),
        "contexts": len({example.context for example in examples}),
        "longest_context_tokens": max(contexts.values()),
        "longest_question_tokens": max(len(f.prefix) for f in features) - around,
        "windows": len(features),
        "windows_per_question": len(features) / len(examples),
        "answers_without_a_window": sum(example.id not in held for example in answerable),
        "answers_with_outer_white_space": sum(map(has_outer_white_space, answerable)),
    }


def has_outer_white_space(example: Example) -> bool:
    """Whether an answer begins or ends with white space. Labels leave this white space out."""
    return any(answer.text != answer.text.strip() for answer in example.answers)


def answer_tokens(example: Example, context: Pieces) -> list[tuple[int, int]]:
    """For each gold answer, the first and the last piece of the context that share a character
    with it.

    White space at an answer's edges does not change the result, and characters that the tokenizer
    removes do not either. Raises `DataError` if no piece shares a character with an answer, and if
    the position of an answer is unknown.
    """
    starts, ends = context.offsets.T
    tokens = []
    for answer in example.answers:
        # from the first piece that ends after the answer's start
        first = int(ends.searchsorted(answer.char_start, side="right"))
        # to the last piece that starts before its end
        last = int(starts.searchsorted(answer.char_end, side="left")) - 1
        if answer.char_start < 0:
            kind = "the data do not say where the context has the answer"
        elif first > last:
            kind = "no token of the context covers the answer"
        else:
            tokens.append((first, last))
            continue
        raise DataError(f"{place_of(example)}{kind} {answer.text!r}", kind)
    return tokens


def label(feature: Feature, answers: Sequence[tuple[int, int]]) -> Feature:
    """The window with its labels: the positions of the first and last piece of an answer.

    `answers` are such pieces (the last one inclusive), counted in the whole context. The first
    answer that is completely inside the window counts. If there is none, both labels are 0, the
    position of [CLS].
    """
    shift = len(feature.prefix) - feature.token_start
    inside = (
        (first + shift, last + shift)
        for first, last in answers
        if feature.token_start <= first and last <= feature.token_end
    )
    start, end = next(inside, (0, 0))
    return replace(feature, start_position=start, end_position=end)
