"""Why this span: question and context in, an `Explanation` out, which is plain data for a page.

Except for the attribution, everything is computed from the logits that S and E give to every
window's tokens after each layer. BERT (arXiv:1810.04805v2) section 4.2.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..answers import Answer, to_answer
from ..data.examples import Example, validated_example
from ..engine import Engine, OnBatch, OnProgress, as_array, ignore
from ..features import Feature
from ..identity import installed_version
from ..qa import QuestionAnsweringOutput
from ..settings import AnswerSettings
from ..spans import Array, Span, WindowLogits, argmax_span, beam_spans, best_spans
from ..tokenization import Pieces
from .attribution import (
    Attribution,
    Candidates,
    Gradients,
    Occlusion,
    WordVectors,
    integrated_gradients,
    plain,
    sentences,
    without,
)
from .inside import AttentionRows, EmbeddingParts, inside
from .page import page

STEPS = 64  # of integrated gradients
# For the progress bar: one forward and backward pass costs as much as three forward passes.
BOTH_WAYS = 3

# Why a decoder's choice differs from the choice of the exact search.
RULES = {
    "order": "it ends before it starts",
    "null": "both its ends are [CLS], which means “no answer”",
    "outside": "it reaches outside the passage, into the question or a special token",
    "length": "it is longer than {} tokens",
    "blank": "it is only white space",
    "beam": "the best pair is not among the 20 best starts and the 20 best ends",
    "tie": "another span has the same sum of logits, or has the same characters and a higher sum",
}


@dataclass(frozen=True, slots=True)
class Candidate(Answer):
    """One of the best answers, the window that gives its logits, and its tokens in this window."""

    window: int = 0
    token_start: int = 0  # in that window; 0 for "no answer"
    token_end: int = 0  # inclusive


@dataclass(frozen=True, slots=True)
class Decoded:
    """The span that one decoder chooses in one window."""

    decoder: str  # "argmax", "beam" or "exact"
    token_start: int
    token_end: int  # inclusive; before token_start if the two argmaxes cross
    text: str
    logit: float  # start_logit + end_logit
    rule: str  # a key of `Explanation.rules`: why the exact search differs; "" if it agrees


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of one window with their logits, and the answer from this window alone."""

    tokens: tuple[str, ...]  # (T,)
    ids: tuple[int, ...]
    segments: tuple[int, ...]
    starts: tuple[int, ...]  # code points of the question; from context_start on, of the context
    ends: tuple[int, ...]  # exclusive; both are -1 for a special token
    start_logits: tuple[float, ...]
    end_logits: tuple[float, ...]
    token_start: int  # the first of the context's pieces in this window
    context_start: int  # the position of this piece among the window's tokens
    context_end: int  # exclusive
    left: int | None  # context tokens before the answer; None if the window lacks the answer
    right: int | None  # context tokens after the answer
    # If the window has only white space, this is "": with probability 0, or 1 with `no_answer`.
    alone: Candidate
    decoders: tuple[Decoded, ...]  # then there is no "exact"


@dataclass(frozen=True, slots=True)
class Layer:
    """The answer after one layer: S and E applied to its hidden states (layer 0: embeddings)."""

    layer: int
    answer: str
    start: int
    end: int
    score: float
    final_score: float  # the score of the model's final answer, after this layer


@dataclass(frozen=True)
class Explanation:
    """Why this span: plain data without tensors, which a notebook shows as a page."""

    question: str
    context: str
    # Best first: the `top_k` best. "No answer" is one more if it is allowed, but not among them.
    answers: tuple[Candidate, ...]
    windows: tuple[Window, ...]
    layers: tuple[Layer, ...]
    stays_from: int  # from this layer on, the answer is the model's final answer
    question_words: tuple[tuple[int, int], ...]  # code points, end exclusive
    context_words: tuple[tuple[int, int], ...]
    rules: Mapping[str, str]  # name of a rule -> its sentence
    max_answer_len: int
    no_answer: bool
    temperature: float  # see `Calibration`
    null_threshold: float
    made_with: Mapping[str, str]  # "model", "computes_with" (device and precision), "version"
    question_unread: str  # the end of a question that is too long; "" if all was read
    embeddings: EmbeddingParts  # of the best answer's window
    attention: AttentionRows  # in the best answer's window
    attribution: Attribution | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same data as dicts and lists of plain values, for JSON."""
        data: dict[str, Any] = as_data(self)
        return data

    def to_html(self) -> str:
        """The page: one HTML file that needs no other file."""
        return page(self.to_dict())

    def _repr_html_(self) -> str:
        """The page in a frame of the notebook, where its script cannot reach anything outside."""
        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" sandbox="allow-scripts" '
            'title="Why this answer?" width="100%" height="720" style="border:0"></iframe>'
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a context, cut into windows, and how its answers are chosen."""

    engine: Engine
    question: str
    context: str
    settings: AnswerSettings
    features: Sequence[Feature]  # the windows; their offsets are widened to whole graphemes

    @classmethod
    def of(cls, engine: Engine, question: str, context: str, settings: AnswerSettings) -> "Asked":
        example = validated_example("", question, context)
        (features,) = engine.windows_of([example], {})
        return cls(engine, question, context, settings, features)

    def best(self, logits: Sequence[WindowLogits], top_k: int) -> list[Candidate]:
        """The best answers by these logits of the windows."""
        settings = replace(self.settings, top_k=top_k)
        offsets = self.features[0].context.offsets
        spans = best_spans(logits, settings, offsets, calibration=self.engine.calibration)
        return [self.candidate(span) for span in spans]

    def candidate(self, span: Span) -> Candidate:
        """A span as an answer, with its window and its tokens there."""
        answer = asdict(to_answer(span, self.context, self.features[0].context.offsets))
        if span.is_null:
            return Candidate(**answer, window=span.window)
        feature = self.features[span.window]
        shift = feature.context_slice.start - feature.token_start
        start, end = span.token_start + shift, span.token_end + shift
        return Candidate(**answer, window=span.window, token_start=start, token_end=end)

    def candidates(self) -> Candidates:
        """All spans that compete in the softmax."""
        longest, no_answer = self.settings.max_answer_len, self.settings.no_answer
        return Candidates.of(self.features, longest, no_answer, self.engine.calibration)

    @property
    def question_slice(self) -> slice:
        """The positions of the question among the tokens of a window."""
        return slice(1, len(self.features[0].prefix) - self.engine.tokenizer.separators)

    @property
    def unread(self) -> str:
        """The part of the question that the model does not read, because it is too long."""
        starts = self.engine.tokenizer.encode(self.question).offsets[:, 0]
        read = self.question_slice.stop - self.question_slice.start
        return self.question[starts[read] :] if read < len(starts) else ""


def explain(
    engine: Engine,
    question: str,
    context: str,
    settings: AnswerSettings = AnswerSettings(top_k=10),
    attribution: bool = True,
    on_progress: OnProgress = ignore,
) -> Explanation:
    """Why the model answers this question in this way.

    The answers are the `settings.top_k` best ones of `QuestionAnswerer`, computed from the same
    numbers. `attribution=False` leaves out the part that reads the text many more times;
    `attribute` adds it later. Raises `InputError` as `QuestionAnswerer` does.
    """
    asked = Asked.of(engine, question, context, settings)
    depths = layer_logits(engine, asked.features, counter(on_progress, len(asked.features)))
    by_layer = [
        [cut_to_context(f, *sides) for f, sides in zip(asked.features, depth, strict=True)]
        for depth in depths
    ]
    answers = asked.best(by_layer[-1], settings.top_k)
    answers = [a for rank, a in enumerate(answers) if rank < settings.top_k or not a.answer]
    place = answers[0].start, answers[0].end
    candidates = asked.candidates()
    layers = []
    for depth, logits in enumerate(by_layer):
        here, log_p = asked.best(logits, 1)[0], candidates.log_p_of(logits, *place)
        assert log_p is not None
        layers.append(Layer(depth, here.answer, here.start, here.end, here.score, math.exp(log_p)))
    others = [layer.layer for layer in layers if (layer.start, layer.end) != place]
    answered_from = asked.features[answers[0].window]
    embeddings, attention = inside(engine, answered_from, asked.question_slice)
    explanation = Explanation(
        question=question,
        context=context,
        answers=tuple(answers),
        windows=tuple(view(asked, w, sides, answers[0]) for w, sides in enumerate(depths[-1])),
        layers=tuple(layers),
        stays_from=max(others, default=-1) + 1,
        question_words=words(engine.tokenizer.encode(question)),
        context_words=words(asked.features[0].context),
        rules=RULES | {"length": RULES["length"].format(settings.max_answer_len)},
        max_answer_len=settings.max_answer_len,
        no_answer=settings.no_answer,
        temperature=engine.calibration.temperature,
        null_threshold=engine.calibration.null_threshold,
        made_with={
            "model": engine.name,
            "computes_with": engine.computes_with,
            "version": installed_version(),
        },
        question_unread=asked.unread,
        embeddings=embeddings,
        attention=attention,
    )
    if not attribution:
        return explanation
    return replace(explanation, attribution=attribute(engine, explanation, on_progress))


def attribute(
    engine: Engine, explanation: Explanation, on_progress: OnProgress = ignore
) -> Attribution:
    """Which words the best answer of an explanation depends on: `occlude` and `integrate`."""
    whole = len(explanation.windows)
    rows = left_out(engine, explanation)
    examples = [Example("", row.question, row.context) for row in rows]
    windows = list(engine.windows_of(examples, {}))
    advance = counter(on_progress, sum(map(len, windows)) + BOTH_WAYS * STEPS * whole)
    return Attribution(
        occlude(engine, explanation, rows, windows, advance),
        integrate(engine, explanation, on_step=lambda points: advance(BOTH_WAYS * points * whole)),
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question and a context, one without a word or a sentence that it had."""

    side: str  # "question" or "context": which one lacks something
    start: int  # code points of the part that is left out
    end: int
    question: str
    context: str


def left_out(engine: Engine, explanation: Explanation) -> list[LeftOut]:
    """A row for each word of the question, which is left out of the question, and a row for each
    sentence in the answer's window, which is left out of the context.

    An only word or an only sentence is not left out: nothing would remain to ask or to read.
    """
    question, context = explanation.question, explanation.context
    window = explanation.windows[explanation.answers[0].window]
    first, last = window.starts[window.context_start], window.ends[window.context_end - 1]
    rows = [
        LeftOut("question", a, b, without(question, a, b), context)
        for a, b in explanation.question_words
        if any(map(str.isalnum, question[a:b]))
    ] + [
        LeftOut("context", a, b, question, without(context, a, b))
        for a, b in sentences(context)
        if a < last and first < b
    ]
    encode = engine.tokenizer.encode_batch
    return [
        row
        for row in rows
        if not any(pieces.blank.all() for pieces in encode((row.question, row.context)))
    ]


def occlude(
    engine: Engine,
    explanation: Explanation,
    rows: Sequence[LeftOut],
    windows: Sequence[Sequence[Feature]],
    on_batch: OnBatch = ignore,
) -> tuple[Occlusion, ...]:
    """For each row, the best answer, and the log-probability of the explained answer.

    `windows` are the windows of each row.
    """
    settings = AnswerSettings(1, explanation.max_answer_len, explanation.no_answer)
    best = explanation.answers[0]
    logits = iter(engine.logits([f for features in windows for f in features], on_batch))
    occlusions = []
    for row, features in zip(rows, windows, strict=True):
        asked = Asked(engine, row.question, row.context, settings, features)
        read = list(islice(logits, len(features)))
        now = asked.best(read, 1)[0]
        removed = len(explanation.context) - len(row.context)
        moved = shifted((best.start, best.end), row.start, removed)
        log_p = None if moved is None else asked.candidates().log_p_of(read, *moved)
        occlusions.append(Occlusion(row.side, row.start, row.end, log_p, now.answer, now.score))
    return tuple(occlusions)


def integrate(
    engine: Engine,
    explanation: Explanation,
    steps: int = STEPS,
    on_step: Callable[[int], None] = ignore,
) -> Gradients:
    """Integrated gradients of the answer's log p with respect to the vectors of all words.

    Always in float32. The baseline has [PAD]'s vector for each word of question and context, and
    the own vectors of special tokens and of white space: a text of the same length without content.
    """
    settings = AnswerSettings(1, explanation.max_answer_len, explanation.no_answer)
    asked = Asked.of(engine, explanation.question, explanation.context, settings)
    features, inside = asked.features, asked.question_slice
    pieces, question = features[0].context, engine.tokenizer.encode(explanation.question)
    is_word = np.zeros((len(features), max(map(len, features))), dtype=bool)  # (W, T)
    for row, feature in zip(is_word, features, strict=True):
        row[inside] = of_words(question)[: inside.stop - inside.start]
        shown = slice(feature.token_start, feature.token_end + 1)
        row[feature.context_slice] = of_words(pieces)[shown]
    candidates = asked.candidates()
    group = candidates.find(explanation.answers[0].start, explanation.answers[0].end)
    assert group is not None
    model, pad_id = plain(engine.model), engine.tokenizer.pad_id
    line = WordVectors(model, features, is_word, pad_id, candidates, group, engine.batch_size)
    at_once = max(1, engine.batch_size // len(features))
    sums = integrated_gradients(line.log_p, line.vectors, line.baseline, steps, at_once, on_step)
    shares = sums.double().cpu().numpy()  # (W, T)
    with torch.no_grad():
        log_p, baseline_log_p = (line.log_p(v[None]).item() for v in (line.vectors, line.baseline))
    difference = log_p - baseline_log_p  # 0 if the answer is the only candidate

    # every window shows the question and some of the context's pieces
    of_context = np.zeros(len(pieces))
    for row, feature in zip(shares, features, strict=True):
        of_context[feature.token_start : feature.token_end + 1] += row[feature.context_slice]
    return Gradients(
        by_word(question, shares[:, inside].sum(0)),
        by_word(pieces, of_context),
        log_p,
        baseline_log_p,
        steps,
        gap=abs(float(shares.sum()) - difference) / (abs(difference) or 1.0),
    )


def layer_logits(
    engine: Engine, features: Sequence[Feature], on_batch: OnBatch
) -> list[list[tuple[Array, Array]]]:
    """The logits that S and E give after every layer: [layer][window] -> start and end, (T,)
    float32. The logits of the last layer equal `engine.logits`."""
    layers = engine.model.config.num_hidden_layers + 1
    depths: list[dict[int, tuple[Array, Array]]] = [{} for _ in range(layers)]

    def keep(indices: list[int], out: QuestionAnsweringOutput) -> None:
        for depth, states in zip(depths, out.hidden_states, strict=True):
            start, end = as_array(*engine.model.head(states))  # (2, B, T)
            for row, k in enumerate(indices):
                depth[k] = start[row, : len(features[k])], end[row, : len(features[k])]

    engine.forward(features, keep, on_batch, every_layer=True)
    return [[depth[k] for k in range(len(features))] for depth in depths]


def cut_to_context(feature: Feature, start: Array, end: Array) -> WindowLogits:
    """The logits of a whole window -> the logits of its context, and of [CLS]."""
    inside = feature.context_slice
    nulls = (float(start[0]), float(end[0]))
    return WindowLogits(feature.token_start, start[inside], end[inside], nulls)


def shifted(place: tuple[int, int], start: int, length: int) -> tuple[int, int] | None:
    """A place in a text, after `length` characters at `start` were removed; None if the place was
    removed with them."""
    if length == 0 or place[1] <= start:
        return place
    return (place[0] - length, place[1] - length) if place[0] >= start + length else None


def view(asked: Asked, index: int, logits: tuple[Array, Array], answer: Candidate) -> Window:
    """One window: its tokens, their logits, and the answer from this window alone."""
    feature, tokenizer = asked.features[index], asked.engine.tokenizer
    inside, of_question = feature.context_slice, asked.question_slice
    places = np.full((len(feature), 2), -1)
    read = of_question.stop - of_question.start
    places[of_question] = tokenizer.encode(asked.question).offsets[:read]
    shown = slice(feature.token_start, feature.token_end + 1)
    places[inside] = feature.context.offsets[shown]

    # alone, the window is the whole context, and its pieces are counted from 0
    whole = feature.context
    pieces = Pieces(whole.ids[shown], whole.offsets[shown], whole.words[shown])
    single = replace(feature, context=pieces, token_start=0, token_end=len(pieces) - 1)
    own = replace(cut_to_context(feature, *logits), token_start=0)
    if pieces.blank.all():  # no span has text
        alone = Candidate("", float(asked.settings.no_answer), 0, 0, *own.null_logits)
        exact = None
    else:
        alone, *_ = best = replace(asked, features=[single]).best([own], 1)
        exact = next(span for span in best if span.token_end)  # not "no answer"

    first, last = 0, -1  # the answer's pieces, counted in the whole context
    if answer.token_end:
        source = asked.features[answer.window]
        shift = source.token_start - source.context_slice.start
        first, last = answer.token_start + shift, answer.token_end + shift
    left, right = first - feature.token_start, feature.token_end - last
    holds = answer.token_end > 0 and left >= 0 and right >= 0
    return Window(
        tokens=tuple(tokenizer.tokens(feature.input_ids)),
        ids=tuple(feature.input_ids),
        segments=tuple(feature.token_type_ids),
        starts=tuple(places[:, 0].tolist()),
        ends=tuple(places[:, 1].tolist()),
        start_logits=tuple(logits[0].tolist()),
        end_logits=tuple(logits[1].tolist()),
        token_start=feature.token_start,
        context_start=inside.start,
        context_end=inside.stop,
        left=left if holds else None,
        right=right if holds else None,
        alone=replace(alone, window=index),
        decoders=decoded(asked, feature, logits, exact, places),
    )


def decoded(
    asked: Asked,
    feature: Feature,
    logits: tuple[Array, Array],
    exact: Candidate | None,
    places: Array,
) -> tuple[Decoded, ...]:
    """The spans that the three decoders choose in one window; `exact` is the exact search's, None
    if the window has only white space.

    `places` (T, 2) are the characters of the window's tokens in the question or the context.
    """
    inside, of_question = feature.context_slice, asked.question_slice
    tokens = asked.engine.tokenizer.tokens(feature.input_ids)
    starts, ends = logits

    def text(start: int, end: int) -> str:
        for source, side in ((asked.question, of_question), (asked.context, inside)):
            if side.start <= start <= end < side.stop:
                return source[places[start, 0] : places[end, 1]]
        return " ".join(tokens[start : end + 1])

    def rule(start: int, end: int, otherwise: str) -> str:
        if exact and start == exact.token_start and end == exact.token_end:
            return ""
        if end < start:
            return "order"
        if asked.settings.no_answer and end == 0:
            return "null"
        if start < inside.start or end >= inside.stop:
            return "outside"
        if end - start >= asked.settings.max_answer_len:
            return "length"
        return "blank" if places[start, 0] >= places[end, 1] else otherwise

    choices = [("argmax", *argmax_span(starts, ends), "tie")]
    choices += [("beam", i, j, "beam") for i, j, _ in beam_spans(starts, ends)[:1]]
    if exact:
        choices.append(("exact", exact.token_start, exact.token_end, ""))
    return tuple(
        Decoded(name, i, j, text(i, j), float(starts[i]) + float(ends[j]), rule(i, j, otherwise))
        for name, i, j, otherwise in choices
    )


def as_data(value: Any) -> Any:
    """Dataclasses, also those in tuples, as dicts.

    `dataclasses.asdict` copies every number separately. For the weights of a window of 384 tokens
    that takes 0.4 s.
    """
    if is_dataclass(value):
        return {field.name: as_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return tuple(map(as_data, value))
    return dict(value) if isinstance(value, Mapping) else value


def of_words(pieces: Pieces) -> npt.NDArray[np.bool_]:
    """(T,): whether each piece belongs to a word. Pieces of white space belong to none."""
    starts, ends = pieces.word_offsets().T
    in_word: npt.NDArray[np.bool_] = starts < ends
    return in_word


def words(pieces: Pieces) -> tuple[tuple[int, int], ...]:
    """The characters of each word of a text."""
    return tuple(dict.fromkeys((int(a), int(b)) for a, b in pieces.word_offsets() if a < b))


def by_word(pieces: Pieces, shares: Array) -> tuple[float, ...]:
    """The sum of the shares of each word's pieces, in the order of `words`."""
    sums = dict.fromkeys(words(pieces), 0.0)
    # the end of a question that is too long was not read
    for (a, b), share in zip(pieces.word_offsets(), shares, strict=False):
        if a < b:
            sums[int(a), int(b)] += float(share)
    return tuple(sums.values())


def counter(on_progress: OnProgress, total: int) -> OnBatch:
    """An `OnBatch` that adds up the windows for a progress bar."""
    done = 0

    def advance(windows: int) -> None:
        nonlocal done
        done += windows
        on_progress(done, total)

    return advance
