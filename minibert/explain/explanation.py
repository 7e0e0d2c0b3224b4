"""Why this span: question and context in, an `Explanation` out: plain data that a page can show.

All of it comes from the logits that S and E give to every window's tokens, after each layer. BERT
(arXiv:1810.04805v2) section 4.2.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..batches import collate, token_batches
from ..data.examples import Example
from ..errors import InputError
from ..features import Feature, example_windows
from ..reader import QuestionAnswerer, validated_example, whole_graphemes
from ..spans import Array, Span, WindowLogits, argmax_span, beam_spans, best_spans
from ..tokenization import Pieces, Tokenizer
from .attribution import (
    Attribution,
    Candidates,
    Gradients,
    Occlusion,
    WordVectors,
    differentiable,
    integrated_gradients,
    sentences,
    without,
)
from .page import page

STEPS = 64  # of integrated gradients
# What reading a window backward as well costs, in windows read: for the progress bar.
BOTH_WAYS = 3

Progress = Callable[[int, int], None]  # windows read so far, windows to read

# Why a decoder's pick is not the exact search's.
RULES = {
    "order": "it ends before it starts",
    "outside": "it reaches outside the passage, into the question or a special token",
    "length": "it is longer than {} tokens",
    "blank": "it begins or ends with white space",
    "beam": "the best pair is not among the 20 best starts and the 20 best ends",
    "tie": "another span has the same score, or covers the same characters with a better one",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the best answers: `context[start:end] == answer`, or "" for "no answer"."""

    answer: str
    score: float  # probability among all candidates
    start: int  # code points
    end: int  # exclusive
    start_logit: float
    end_logit: float
    window: int  # the one that speaks for it
    token_start: int  # in that window; 0 for "no answer"
    token_end: int  # inclusive


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one decoder picks in one window."""

    decoder: str  # "argmax", "beam" or "exact"
    token_start: int
    token_end: int  # inclusive; before token_start where the two argmaxes cross
    text: str
    logit: float  # start_logit + end_logit
    rule: str  # which of `Explanation.rules` parts it from the exact search; "" where none does


@dataclass(frozen=True, slots=True)
class Window:
    """What one window saw, a column a token, and what it would have answered alone."""

    tokens: tuple[str, ...]  # (T,)
    ids: tuple[int, ...]
    segments: tuple[int, ...]
    starts: tuple[int, ...]  # code points of the question or, from context_start on, the context
    ends: tuple[int, ...]  # exclusive; both are -1 for a special token
    start_logits: tuple[float, ...]
    end_logits: tuple[float, ...]
    token_start: int  # of the context's pieces, the first that this window holds
    context_start: int  # where that one stands among the window's tokens
    context_end: int  # exclusive
    left: int | None  # tokens of context before the answer; None where the window lacks it
    right: int | None  # and after it
    alone: Candidate
    decoders: tuple[Decoded, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """The answer at one depth: S and E applied to the states after that layer (0: embeddings)."""

    layer: int
    answer: str
    start: int
    end: int
    score: float
    final_score: float  # of the model's answer, at this depth


@dataclass(frozen=True)
class Explanation:
    """Why this span. Plain data, no tensors; a notebook shows it as a page."""

    question: str
    context: str
    answers: tuple[Candidate, ...]  # best first
    windows: tuple[Window, ...]
    layers: tuple[Layer, ...]
    stays_from: int  # the layer from which on the answer is the model's
    question_words: tuple[tuple[int, int], ...]  # code points, end exclusive
    context_words: tuple[tuple[int, int], ...]
    rules: Mapping[str, str]  # name of a rule -> what it says
    max_answer_len: int
    no_answer: bool
    attribution: Attribution | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists of plain values, for JSON."""
        return asdict(self)

    def to_html(self) -> str:
        """The page: one file that needs nothing else."""
        return page(self.to_dict())

    def _repr_html_(self) -> str:
        """The page in a frame of the notebook; its script reaches nothing outside."""
        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" sandbox="allow-scripts" '
            'title="Why this answer?" width="100%" height="720" style="border:0"></iframe>'
        )


def explain(
    qa: QuestionAnswerer,
    question: str,
    context: str,
    n_best: int = 10,
    max_answer_len: int = 30,
    handle_impossible_answer: bool = False,
    attribution: bool = True,
    on_progress: Progress = lambda done, total: None,
) -> Explanation:
    """Why `qa(question, context)` answers as it does; arguments and errors as there.

    The answers are those of `qa(..., top_k=n_best)`, from the same numbers. `attribution=False`
    leaves out what reads the text many times more; `attribute` adds it later. `on_progress` is told
    how many windows have been read, of how many.
    """
    if n_best < 1 or max_answer_len < 1:
        raise InputError(f"n_best={n_best}, max_answer_len={max_answer_len}: expected 1 or more")
    null = handle_impossible_answer
    (features,) = windows_of(qa, [validated_example("", question, context)])
    depths = read_layers(qa, features, counter(on_progress, len(features)))
    offsets = features[0].context.offsets

    def best(logits: Sequence[WindowLogits], count: int) -> list[Candidate]:
        spans = best_spans(logits, count, max_answer_len, offsets, None, null, qa.calibration)
        return [candidate(context, features, logits, span) for span in spans]

    by_layer = [
        [cut_to_context(f, *sides) for f, sides in zip(features, depth, strict=True)]
        for depth in depths
    ]
    answers = best(by_layer[-1], n_best)
    explanation = Explanation(
        question=question,
        context=context,
        answers=tuple(answers),
        windows=tuple(
            view(qa, question, context, features, w, sides, answers[0], max_answer_len, null)
            for w, sides in enumerate(depths[-1])
        ),
        layers=(),
        stays_from=0,
        question_words=words(qa.tokenizer, qa.tokenizer.encode(question)),
        context_words=words(qa.tokenizer, features[0].context),
        rules=RULES | {"length": RULES["length"].format(max_answer_len)},
        max_answer_len=max_answer_len,
        no_answer=null,
    )
    place = characters(explanation)
    candidates = Candidates.of(features, max_answer_len, null, qa.calibration)
    layers = []
    for depth, logits in enumerate(by_layer):
        here, log_p = best(logits, 1)[0], candidates.log_p_of(logits, *place)
        assert log_p is not None
        layers.append(Layer(depth, here.answer, here.start, here.end, here.score, math.exp(log_p)))
    final = (answers[0].start, answers[0].end)
    others = [layer.layer for layer in layers if (layer.start, layer.end) != final]
    explanation = replace(explanation, layers=tuple(layers), stays_from=max(others, default=-1) + 1)
    if attribution:
        return replace(explanation, attribution=attribute(qa, explanation, on_progress=on_progress))
    return explanation


def attribute(
    qa: QuestionAnswerer,
    explanation: Explanation,
    on_progress: Progress = lambda done, total: None,
) -> Attribution:
    """What the best answer of an explanation hangs on: `occlude` and `integrate`."""
    whole = len(explanation.windows)
    rows = left_out(qa, explanation)
    windows = windows_of(qa, [Example("", row.question, row.context) for row in rows])
    total = sum(map(len, windows)) + BOTH_WAYS * STEPS * whole
    advance = counter(on_progress, total)
    return Attribution(
        occlude(qa, explanation, rows, windows, advance),
        integrate(qa, explanation, on_step=lambda points: advance(BOTH_WAYS * points * whole)),
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question and a context of which one lacks a word or a sentence."""

    side: str
    start: int  # code points
    end: int
    question: str
    context: str


def left_out(qa: QuestionAnswerer, explanation: Explanation) -> list[LeftOut]:
    """Without each word of the question, and each sentence of the window that the answer is from.

    But not without the only word: there would be nothing to ask, or to read.
    """
    question, context = explanation.question, explanation.context
    speaker = explanation.windows[explanation.answers[0].window]
    first, last = speaker.starts[speaker.context_start], speaker.ends[speaker.context_end - 1]
    rows = [
        LeftOut("question", a, b, without(question, a, b), context)
        for a, b in explanation.question_words
        if any(map(str.isalnum, question[a:b]))
    ] + [
        LeftOut("context", a, b, question, without(context, a, b))
        for a, b in sentences(context)
        if a < last and first < b
    ]
    return [r for r in rows if all(map(len, qa.tokenizer.encode_batch((r.question, r.context))))]


def occlude(
    qa: QuestionAnswerer,
    explanation: Explanation,
    rows: Sequence[LeftOut],
    windows: Sequence[Sequence[Feature]],
    on_batch: Callable[[int], None],
) -> tuple[Occlusion, ...]:
    """What `qa` answers to each of the rows, and what the answer's log p is then."""
    longest, null = explanation.max_answer_len, explanation.no_answer
    place = characters(explanation)
    logits = iter(qa.logits([f for features in windows for f in features], on_batch))
    occlusions = []
    for row, features in zip(rows, windows, strict=True):
        read = list(islice(logits, len(features)))
        offsets = features[0].context.offsets
        (span, *_) = best_spans(read, 1, longest, offsets, None, null, qa.calibration)
        now = candidate(row.context, features, read, span)
        moved = shifted(place, row.start, len(explanation.context) - len(row.context))
        log_p = None
        if moved is not None:
            rivals = Candidates.of(features, longest, null, qa.calibration)
            log_p = rivals.log_p_of(read, *moved)
        occlusions.append(Occlusion(row.side, row.start, row.end, log_p, now.answer, now.score))
    return tuple(occlusions)


def integrate(
    qa: QuestionAnswerer,
    explanation: Explanation,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda points: None,
) -> Gradients:
    """Integrated gradients of the answer's log p with respect to the vectors of all words.

    In float32, whatever `qa` reads in. The baseline has [PAD]'s vector for each word of question
    and context, and the special tokens' own: a text of the same length with nothing in it.
    """
    question = explanation.question
    (features,) = windows_of(qa, [Example("", question, explanation.context)])
    pieces, question_pieces = features[0].context, qa.tokenizer.encode(question)
    asked = question_slice(qa, features[0], question)
    is_word = np.zeros((len(features), max(map(len, features))), dtype=bool)  # (W, T)
    for row, feature in zip(is_word, features, strict=True):
        row[asked] = row[feature.context_slice] = True
    candidates = Candidates.of(
        features, explanation.max_answer_len, explanation.no_answer, qa.calibration
    )
    group = candidates.find(*characters(explanation))
    assert group is not None
    model, pad_id = differentiable(qa.model), qa.tokenizer.pad_id
    line = WordVectors(model, features, is_word, pad_id, candidates, group, qa.batch_size)
    at_once = max(1, qa.batch_size // len(features))
    found = integrated_gradients(line.log_p, line.vectors, line.baseline, steps, at_once, on_step)
    shares = found.double().cpu().numpy()  # (W, T)
    with torch.no_grad():
        log_p, baseline_log_p = (line.log_p(v[None]).item() for v in (line.vectors, line.baseline))
    difference = log_p - baseline_log_p

    # every window shows the question, and some of the context's pieces
    of_context = np.zeros(len(pieces))
    for row, feature in zip(shares, features, strict=True):
        of_context[feature.token_start : feature.token_end + 1] += row[feature.context_slice]
    return Gradients(
        by_word(qa.tokenizer, question_pieces, shares[:, asked].sum(0)),
        by_word(qa.tokenizer, pieces, of_context),
        log_p,
        baseline_log_p,
        steps,
        gap=abs(float(shares.sum()) - difference) / abs(difference),
    )


def windows_of(qa: QuestionAnswerer, examples: Sequence[Example]) -> list[list[Feature]]:
    """Each example's windows, cut as `qa` cuts them; their pieces cover whole letters, as answers
    do.
    """
    sizes = (qa.max_length, qa.doc_stride, qa.max_question_len)
    found = []
    for example, windows in zip(
        examples, example_windows(examples, qa.tokenizer, *sizes, {}), strict=True
    ):
        pieces = windows[0].context
        whole = replace(pieces, offsets=whole_graphemes(example.context, pieces.offsets))
        found.append([replace(window, context=whole) for window in windows])
    return found


@torch.inference_mode()
def read_layers(
    qa: QuestionAnswerer, features: Sequence[Feature], on_batch: Callable[[int], None]
) -> list[list[tuple[Array, Array]]]:
    """What S and E find after every layer: [layer][window] -> start and end logits, (T,) float32.

    The last layer's are those of `qa.logits`: the batches and the precision are the same.
    """
    qa.model.eval()
    weights = next(qa.model.parameters())
    device = weights.device
    mixed = qa.precision == "bf16" and weights.dtype == torch.float32
    multiple = math.gcd(16, qa.max_length)
    depths: list[dict[int, tuple[Array, Array]]] = [
        {} for _ in range(qa.model.config.num_hidden_layers + 1)
    ]
    for indices in token_batches(features, qa.batch_size * qa.max_length, multiple):
        chosen = [features[k] for k in indices]
        batch = collate(chosen, qa.tokenizer.pad_id, multiple).to(device)
        full = len(chosen[-1]) == batch.input_ids.shape[1]  # the shortest
        mask = None if full else batch.attention_mask
        with torch.autocast(device.type, torch.bfloat16, mixed):
            out = qa.model(batch.input_ids, mask, batch.token_type_ids)
            for depth, states in zip(depths, out.hidden_states, strict=True):
                start, end = (side.float().cpu().numpy() for side in qa.model.head(states))
                for row, (k, feature) in enumerate(zip(indices, chosen, strict=True)):
                    depth[k] = start[row, : len(feature)], end[row, : len(feature)]
        on_batch(len(indices))
    return [[depth[k] for k in range(len(features))] for depth in depths]


def cut_to_context(feature: Feature, start: Array, end: Array) -> WindowLogits:
    inside = feature.context_slice
    nulls = (float(start[0]), float(end[0]))
    return WindowLogits(feature.token_start, start[inside], end[inside], nulls)


def candidate(
    context: str, features: Sequence[Feature], logits: Sequence[WindowLogits], span: Span
) -> Candidate:
    """A span as the reader gives it, with the window that speaks for it and its tokens there."""
    if span.is_null:
        window = min(range(len(logits)), key=lambda w: sum(logits[w].null_logits))
        return Candidate("", span.score, 0, 0, span.start_logit, span.end_logit, window, 0, 0)

    def surroundings(w: int) -> int:
        first, last = features[w].token_start, features[w].token_end
        return min(span.token_start - first, last - span.token_end)

    window = max(range(len(features)), key=surroundings)  # of equals the first
    shift = features[window].context_slice.start - features[window].token_start
    offsets = features[0].context.offsets
    start, end = int(offsets[span.token_start, 0]), int(offsets[span.token_end, 1])
    return Candidate(
        context[start:end], span.score, start, end, span.start_logit, span.end_logit,
        window, span.token_start + shift, span.token_end + shift,
    )  # fmt: skip


def characters(explanation: Explanation) -> tuple[int, int]:
    """Where the pieces of the best answer begin and end in the context; (0, 0) for "no answer"."""
    best = explanation.answers[0]
    window = explanation.windows[best.window]
    if best.token_end == 0:
        return 0, 0
    return window.starts[best.token_start], window.ends[best.token_end]


def shifted(place: tuple[int, int], start: int, length: int) -> tuple[int, int] | None:
    """Where a place in a text is when `length` characters at `start` are out; None: with them."""
    if length == 0 or place[1] <= start:
        return place
    return (place[0] - length, place[1] - length) if place[0] >= start + length else None


def view(
    qa: QuestionAnswerer,
    question: str,
    context: str,
    features: Sequence[Feature],
    index: int,
    logits: tuple[Array, Array],
    answer: Candidate,
    max_answer_len: int,
    null: bool,
) -> Window:
    """One window: its tokens, their logits, and what it would have answered alone."""
    feature = features[index]
    inside, asked = feature.context_slice, question_slice(qa, feature, question)
    places = np.full((len(feature), 2), -1)
    places[asked] = qa.tokenizer.encode(question).offsets[: asked.stop - asked.start]
    places[inside] = feature.context.offsets[feature.token_start : feature.token_end + 1]

    # alone, it is the whole context, and its pieces are counted from 0
    shown = slice(feature.token_start, feature.token_end + 1)
    whole = feature.context
    pieces = Pieces(whole.ids[shown], whole.offsets[shown], whole.words[shown])
    single = [replace(feature, context=pieces, token_start=0, token_end=len(pieces) - 1)]
    own = [replace(cut_to_context(feature, *logits), token_start=0)]
    spans = best_spans(own, 1, max_answer_len, pieces.offsets, None, null, qa.calibration)
    alone, *_ = best = [candidate(context, single, own, span) for span in spans]
    exact = next(span for span in best if span.token_end)  # not "no answer"

    first, last = 0, -1  # of the answer, among the context's pieces
    if answer.token_end:
        speaker = features[answer.window]
        shift = speaker.token_start - speaker.context_slice.start
        first, last = answer.token_start + shift, answer.token_end + shift
    left, right = first - feature.token_start, feature.token_end - last
    holds = answer.token_end > 0 and left >= 0 and right >= 0

    tokens = qa.tokenizer.tokens(feature.input_ids)
    blank = places[:, 0] == places[:, 1]

    def text(start: int, end: int) -> str:
        for name, side in ((question, asked), (context, inside)):
            if side.start <= start <= end < side.stop:
                return name[places[start, 0] : places[end, 1]]
        return " ".join(tokens[start : end + 1])

    def rule(start: int, end: int, otherwise: str) -> str:
        if start == exact.token_start and end == exact.token_end:
            return ""
        if end < start:
            return "order"
        if start < inside.start or end >= inside.stop:
            return "outside"
        if end - start >= max_answer_len:
            return "length"
        return "blank" if blank[[start, end]].any() else otherwise

    start, end = logits
    picks = [("argmax", *argmax_span(start, end), "tie")]
    picks += [("beam", i, j, "beam") for i, j, _ in beam_spans(start, end)[:1]]
    picks.append(("exact", exact.token_start, exact.token_end, ""))
    return Window(
        tokens=tuple(tokens),
        ids=tuple(feature.input_ids),
        segments=tuple(feature.token_type_ids),
        starts=tuple(places[:, 0].tolist()),
        ends=tuple(places[:, 1].tolist()),
        start_logits=tuple(start.tolist()),
        end_logits=tuple(end.tolist()),
        token_start=feature.token_start,
        context_start=inside.start,
        context_end=inside.stop,
        left=left if holds else None,
        right=right if holds else None,
        alone=replace(alone, window=index),
        decoders=tuple(
            Decoded(name, i, j, text(i, j), float(start[i]) + float(end[j]), rule(i, j, otherwise))
            for name, i, j, otherwise in picks
        ),
    )


def question_slice(qa: QuestionAnswerer, feature: Feature, question: str) -> slice:
    """Where the question stands among the tokens of a window."""
    ids = qa.tokenizer.encode(question).ids[: qa.max_question_len].tolist()
    prefix = list(feature.prefix)
    start = next(k for k in range(len(prefix)) if prefix[k : k + len(ids)] == ids)
    return slice(start, start + len(ids))


def words(tokenizer: Tokenizer, pieces: Pieces) -> tuple[tuple[int, int], ...]:
    """Where each word of a text begins and ends."""
    return tuple(dict.fromkeys((int(a), int(b)) for a, b in tokenizer.word_offsets(pieces)))


def by_word(tokenizer: Tokenizer, pieces: Pieces, shares: Array) -> tuple[float, ...]:
    """The sum of the shares of each word's pieces, in the order of `words`."""
    sums = dict.fromkeys(words(tokenizer, pieces), 0.0)
    # of a question that is too long, the end was not read
    for (a, b), share in zip(tokenizer.word_offsets(pieces), shares, strict=False):
        sums[int(a), int(b)] += float(share)
    return tuple(sums.values())


def counter(on_progress: Progress, total: int) -> Callable[[int], None]:
    """Counts windows for a progress bar."""
    done = 0

    def advance(windows: int) -> None:
        nonlocal done
        done += windows
        on_progress(done, total)

    return advance
