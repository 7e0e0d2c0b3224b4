"""Exact search against two nested loops; and the blog post's two decoders, with how they fail."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import minibert
from minibert.data.metric import normalize_answer
from minibert.settings import AnswerSettings, Calibration
from minibert.spans import (
    Span,
    WindowLogits,
    argmax_span,
    beam_spans,
    best_spans,
    candidate_grid,
    letter_sums,
    null_candidate,
    text_scores,
)


def brute_force(
    windows: list[WindowLogits],
    settings: AnswerSettings,
    offsets: np.ndarray | None = None,
    words: np.ndarray | None = None,
) -> list[Span]:
    """The definition, one span at a time."""
    spoken_for: dict[tuple[int, int], tuple[int, float, float]] = {}
    for window in windows:
        T = len(window.start_logits)
        for i in range(T):
            for j in range(i, min(i + settings.max_answer_len, T)):
                around = min(i, T - 1 - j)
                place = (window.token_start + i, window.token_start + j)
                if place not in spoken_for or around > spoken_for[place][0]:
                    logits = float(window.start_logits[i]), float(window.end_logits[j])
                    spoken_for[place] = (around, *logits)
    order = sorted(spoken_for, key=lambda place: (-sum(spoken_for[place][1:]), place))

    def first_of_each(order: list[tuple[int, int]], places: np.ndarray) -> list[tuple[int, int]]:
        first: dict[tuple[int, int], tuple[int, int]] = {}
        for i, j in order:
            first.setdefault((places[i, 0], places[j, 1]), (i, j))
        return list(first.values())

    if offsets is not None:
        order = first_of_each(order, offsets)
    candidates = [Span(*place, *spoken_for[place][1:], 0.0) for place in order]
    nothing = Span(-1, -1, *min((w.null_logits for w in windows), key=sum), 0.0)
    logits = [s.start_logit + s.end_logit for s in candidates + [nothing] * settings.no_answer]
    total = math.fsum(math.exp(logit - max(logits)) for logit in logits)
    if words is not None:
        kept = first_of_each(order, words)
        candidates = [s for s in candidates if (s.token_start, s.token_end) in kept]
    candidates = candidates[: settings.top_k]
    if settings.no_answer:  # behind those that it ties with
        candidates.append(nothing)
        candidates.sort(key=lambda s: -(s.start_logit + s.end_logit))
    return [
        replace(s, score=math.exp(s.start_logit + s.end_logit - max(logits)) / total)
        for s in candidates
    ]


def assert_same(spans: list[Span], expected: list[Span]) -> None:
    """Places and logits exactly, in order; probabilities to the rounding of a sum."""
    assert len(spans) == len(expected)
    for a, b in zip(spans, expected, strict=True):
        places = [(s.token_start, s.token_end, s.start_logit, s.end_logit) for s in (a, b)]
        assert places[0] == places[1]
        assert a.score == pytest.approx(b.score, rel=1e-9)


real_logits = st.floats(-20, 20, width=32)
tied_logits = st.sampled_from([-1.0, 0.0, 0.5, 1.0])  # so few values that most spans tie


@st.composite
def documents(draw: st.DrawFn) -> list[WindowLogits]:
    """Windows as a document is cut into: of one length, overlapping, the last one shorter."""
    values = draw(st.sampled_from([real_logits, tied_logits]))
    room = draw(st.integers(1, 9))
    bounds = minibert.features.window_bounds(
        draw(st.integers(1, 24)), room, draw(st.integers(0, room - 1))
    )
    windows = []
    for first, end in bounds:
        start, final = (
            np.array(draw(st.lists(values, min_size=end - first, max_size=end - first)), "float32")
            for _ in range(2)
        )
        windows.append(WindowLogits(first, start, final, (draw(values), draw(values))))
    return windows


def places(draw: st.DrawFn, tokens: int) -> np.ndarray:
    """Where so many tokens stand; some share their place with the one before."""
    shared = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    starts = np.cumsum([not s for s in shared]) * 3
    return np.stack((starts, starts + 2), axis=1)


@hypothesis_settings(max_examples=1000, deadline=None)
@given(data=st.data(), top_k=st.integers(1, 40), max_answer_len=st.integers(1, 12))
def test_search_equals_two_nested_loops(data, top_k, max_answer_len):
    windows = data.draw(documents())
    tokens = max(w.token_start + len(w.start_logits) for w in windows)
    offsets, words = (places(data.draw, tokens) if data.draw(st.booleans()) else None for _ in "12")
    rules = AnswerSettings(top_k, max_answer_len, data.draw(st.booleans()))
    spans = best_spans(windows, rules, offsets, words)
    assert_same(spans, brute_force(windows, rules, offsets, words))


@pytest.mark.parametrize("tokens", [1, 2, 30, 31, 384])
def test_search_equals_two_nested_loops_at_full_length(tokens):
    rng = np.random.default_rng(tokens)
    for _ in range(5):
        start, end = rng.normal(0, 4, (2, tokens)).astype("float32")
        windows = [WindowLogits(0, start, end)]
        assert_same(
            best_spans(windows, AnswerSettings(20)), brute_force(windows, AnswerSettings(20))
        )


@hypothesis_settings(deadline=None)
@given(windows=documents(), no_answer=st.booleans())
def test_scores_are_one_probability(windows, no_answer):
    """Over windows too: each in [0, 1], all together 1, in the order of the logits."""
    spans = best_spans(windows, AnswerSettings(10_000, no_answer=no_answer))
    assert math.fsum(span.score for span in spans) == pytest.approx(1.0, rel=1e-9)
    assert all(0.0 <= span.score <= 1.0 for span in spans)
    sums = [span.start_logit + span.end_logit for span in spans]
    assert sums == sorted(sums, reverse=True)
    assert len({(s.token_start, s.token_end) for s in spans}) == len(spans)
    assert sum(span.is_null for span in spans) == no_answer


# Words that read alike in several ways, and some that only seem to.
WORDS = [
    "the", "The", "a", "an", "Ada", "ADA", "Ada.", "(ada)", "U.S.", "us", ".", "--", "tea", "eat",
    "b-a", "ba", "\u0130z", "i\u0307z", "\u03a3\u039f\u03a3", "\u03c3\u03bf\u03c2",
    "\u03c3\u03bf\u03c3", "cafe\u0301", "caf\u00e9", "\U0001f56f",
]  # fmt: skip


@hypothesis_settings(max_examples=500, deadline=None)
@given(
    data=st.data(),
    top_k=st.integers(1, 40),
    max_answer_len=st.integers(1, 6),
    no_answer=st.booleans(),
    widened=st.booleans(),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    threshold=st.sampled_from([0.0, 2.0]),
)
def test_a_text_s_score_equals_a_loop_over_every_span(
    data, top_k, max_answer_len, no_answer, widened, temperature, threshold
):
    windows = data.draw(documents())
    tokens = max(w.token_start + len(w.start_logits) for w in windows)
    context, offsets = "", []
    for _ in range(tokens):  # some tokens share their place with the one before
        if not offsets or data.draw(st.integers(0, 9)):
            context += data.draw(st.sampled_from(["", " ", "  ", "-"]))
            word = data.draw(st.sampled_from(WORDS))
            offsets.append((len(context), len(context) + len(word)))
            context += word
        else:
            offsets.append(offsets[-1])
    offsets = np.array(offsets)
    places = offsets
    if widened:  # each pair of tokens is a word
        first = np.arange(tokens) // 2 * 2
        places = np.stack((offsets[first, 0], offsets[np.minimum(first + 1, tokens - 1), 1]), 1)

    def text(span: Span) -> str:
        if span.is_null:
            return ""
        return context[places[span.token_start, 0] : places[span.token_end, 1]]

    expected: dict[str, float] = {}
    all_spans = AnswerSettings(10**6, max_answer_len, no_answer)
    every = brute_force(windows, all_spans, offsets)
    logits = [s.start_logit + s.end_logit - threshold * s.is_null for s in every]
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    for span, weight in zip(every, weights, strict=True):
        key = normalize_answer(text(span))
        expected[key] = expected.get(key, 0.0) + weight / math.fsum(weights)
    words = places if widened else None
    # the temperature of one span's score is another one, and changes nothing
    calibration = Calibration(7.0, threshold, temperature)
    settings = replace(all_spans, top_k=top_k)
    spans = best_spans(windows, settings, offsets, words, calibration)
    grid, _ = candidate_grid(windows, max_answer_len, offsets)
    asked = grid, null_candidate(windows, settings, calibration), context, places, temperature
    scores = text_scores([text(span) for span in spans], *asked)
    for span, score in zip(spans, scores, strict=True):
        assert score == pytest.approx(expected[normalize_answer(text(span))], rel=1e-9)
    same = replace(calibration, temperature=temperature)  # then it is a sum of scores
    spans = best_spans(windows, settings, offsets, words, same)
    assert all(a >= b.score * (1 - 1e-9) for a, b in zip(scores, spans, strict=True))
    every = best_spans(windows, all_spans, offsets, words, calibration)
    scores = text_scores([text(span) for span in every], *asked)
    once = {normalize_answer(text(s)): score for s, score in zip(every, scores, strict=True)}
    assert math.fsum(once.values()) == pytest.approx(1.0, rel=1e-9)
    assert once.keys() == expected.keys()


@given(st.lists(st.sampled_from(WORDS)), st.sampled_from(["", " ", "\u3000", " - "]))
def test_texts_that_read_alike_have_the_same_sum(words, between):
    text = between.join(words)
    assert letter_sums(text)[-1] == letter_sums(normalize_answer(text))[-1]
    assert letter_sums("Ada")[-1] != letter_sums("Ida")[-1]


@given(st.text())
def test_any_two_texts_that_read_alike_have_the_same_sum(text):
    assert letter_sums(text)[-1] == letter_sums(normalize_answer(text))[-1]


def test_a_text_s_score_where_others_are_far_below():
    """Logits apart by more than a float's exponent: no NaN, and what stands twice counts twice."""
    logits = np.array([0.0, -2000.0, 0.0], "float32")
    windows = [WindowLogits(0, logits, logits, (9000.0, 0.0))]
    context, offsets = "Ada Bo Ada", np.array([[0, 3], [4, 6], [7, 10]])
    grid, _ = candidate_grid(windows, 1, offsets)
    texts = ["Ada", "Ada", "Bo"]
    assert text_scores(texts, grid, -math.inf, context, offsets, 1.0) == [1.0, 1.0, 0.0]
    assert text_scores(["", *texts], grid, 9000.0, context, offsets, 1.0) == [1.0, 0.0, 0.0, 0.0]


class Counted(np.ndarray):
    """An array that counts the numbers that go through element-wise operations on it."""

    numbers = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        Counted.numbers += max(np.size(x) for x in inputs)
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **keywords)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


def test_the_grid_is_searched_once_for_all_texts():
    """The texts of 300 answers cost hardly more than the text of one."""
    words = [f"w{k}" for k in range(300)]
    context = " ".join(words)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack((ends - [len(word) for word in words], ends), axis=1)
    logits = np.linspace(-3, 3, 300, dtype="float32")
    grid, _ = candidate_grid([WindowLogits(0, logits, logits)], 8, offsets)
    costs = []
    for texts in (words[:1], words):
        Counted.numbers = 0
        scores = text_scores(texts, grid.view(Counted), -math.inf, context, offsets, 1.0)
        assert len(set(scores)) == len(texts)
        costs.append(Counted.numbers)
    assert costs[0] >= grid.size and costs[1] - costs[0] < grid.size


def old_score(window: WindowLogits, token: int) -> float:
    """The removed pipeline's, of a span of one token: softmax times softmax, in one window."""
    k = token - window.token_start
    starts, ends = np.exp(window.start_logits), np.exp(window.end_logits)
    return float(starts[k] / starts.sum() * ends[k] / ends.sum())


def test_a_softmax_a_window_is_no_probability():
    """The old rule multiplies the softmaxes of starts and of ends, window by window. Two windows
    that see the same sure answer give it twice; merged by its text and summed, it is nearly 2."""
    windows = []
    for at in (5, 2):  # token 5 of the context, seen from windows that begin at 0 and at 3
        sure = np.zeros(8, "float32")
        sure[at] = 20.0
        windows.append(WindowLogits(5 - at, sure, sure))

    old = sum(old_score(window, 5) for window in windows)
    assert old == pytest.approx(2, abs=0.01)
    (best,) = best_spans(windows)
    assert (best.token_start, best.token_end) == (5, 5) and 0.99 < best.score <= 1


def test_a_softmax_a_window_makes_the_surer_of_two_lose():
    """Window by window, a weak answer that stands alone beats a strong one that has a rival."""
    weak, strong = np.full(8, -20.0, "float32"), np.full(8, -20.0, "float32")
    weak[0] = 1.0
    strong[[2, 6]] = 9.0
    windows = [WindowLogits(0, weak, weak), WindowLogits(8, strong, strong)]
    assert old_score(windows[0], 0) > 0.99 > 0.3 > old_score(windows[1], 10)
    assert best_spans(windows)[0].token_start == 10


def test_no_answer_has_the_least_logit_of_a_window_s_cls():
    """An answer in one window is an answer: the [CLS] of the others don't speak against it."""
    logits = np.array([0.0, 3.0], "float32")
    windows = [
        WindowLogits(0, logits, logits, (8.0, 8.0)),
        WindowLogits(2, logits, logits, (1.0, 0.5)),
    ]
    spans = best_spans(windows, AnswerSettings(no_answer=True))
    assert [s.is_null for s in spans] == [False, True]
    assert (spans[1].start_logit, spans[1].end_logit) == (1.0, 0.5)
    assert not any(s.is_null for s in best_spans(windows, AnswerSettings(99)))
    with pytest.raises(minibert.InputError, match="not finite"):
        window = WindowLogits(0, logits, logits, (math.nan, 0.0))
        best_spans([window], AnswerSettings(no_answer=True))


def test_fewer_spans_than_asked():
    window = WindowLogits(0, np.zeros(3, "float32"), np.zeros(3, "float32"))
    assert len(best_spans([window], AnswerSettings(100))) == 6
    assert len(best_spans([window], AnswerSettings(100, max_answer_len=1))) == 3


def test_ties_go_to_the_earlier_start_then_to_the_shorter_span():
    window = WindowLogits(0, np.zeros(3, "float32"), np.zeros(3, "float32"))
    places = [(s.token_start, s.token_end) for s in best_spans([window], AnswerSettings(20))]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_a_tie_in_float32_is_none_in_the_sum():
    """2^24 + 1 is 2^24 in float32; the longer span is better all the same."""
    start, end = np.array([2.0**24, 0.0], "float32"), np.array([0.0, 1.0], "float32")
    assert best_spans([WindowLogits(0, start, end)])[0].token_end == 1


def test_the_window_that_shows_most_context_speaks():
    """Token 5 is the last of the first window and in the middle of the second."""
    low, high = np.zeros(6, "float32"), np.zeros(6, "float32")
    low[5], high[2] = 9.0, 1.0
    spans = best_spans([WindowLogits(0, low, low), WindowLogits(3, high, high)], AnswerSettings(99))
    chosen = next(s for s in spans if s.token_start == s.token_end == 5)
    assert (chosen.start_logit, chosen.end_logit) == (1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_raise(value):
    good, bad = np.zeros(4, "float32"), np.array([0, 0, value, 0], "float32")
    for start, end in ((good, bad), (bad, good)):
        with pytest.raises(minibert.InputError, match="not finite"):
            best_spans([WindowLogits(0, good, good), WindowLogits(2, start, end)])


def test_settings_are_checked_where_they_are_made():
    for arguments in ({"top_k": 0}, {"max_answer_len": 0}):
        with pytest.raises(minibert.InputError, match="=0"):
            AnswerSettings(**arguments)


def test_independent_argmax_can_end_before_it_starts():
    start, end = np.array([0.0, 1.0, 5.0], "float32"), np.array([4.0, 2.0, 0.0], "float32")
    assert argmax_span(start, end) == (2, 0)
    best = best_spans([WindowLogits(0, start, end)])[0]
    assert (best.token_start, best.token_end) == (2, 2)


def test_the_beam_can_miss_the_best_span():
    """Twenty high ends stand before twenty high starts: no pair of them is legal, so the beam is
    empty; exact search finds the best of the rest."""
    start, end = np.zeros(60, "float32"), np.zeros(60, "float32")
    end[:20], start[40:] = 5.0, 5.0
    assert beam_spans(start, end) == []
    best = best_spans([WindowLogits(0, start, end)])[0]
    assert best.start_logit + best.end_logit == 5.0


@given(data=st.data())
def test_the_beam_is_exact_where_it_is_wide_enough(data):
    lists = st.lists(real_logits, min_size=1, max_size=12)
    start = np.array(data.draw(lists), "float32")
    end = np.array(
        data.draw(st.lists(real_logits, min_size=len(start), max_size=len(start))), "float32"
    )
    best = best_spans([WindowLogits(0, start, end)])[0]
    assert beam_spans(start, end)[0][2] == best.start_logit + best.end_logit


def test_blank_pieces_have_no_part_in_a_text_s_probability():
    """A piece of white space alone, as byte-level BPE makes of a double space (see `Pieces`)."""
    windows = [WindowLogits(0, np.float32([0, 5, 1]), np.float32([0, 1, 3]))]
    offsets = np.array([[0, 3], [4, 3], [4, 10]])
    spans = best_spans(windows, AnswerSettings(9), offsets)
    texts = ["the France"[offsets[s.token_start, 0] : offsets[s.token_end, 1]] for s in spans]
    assert sorted(texts) == ["France", "the", "the France"]
    grid, _ = candidate_grid(windows, 30, offsets)
    scores = text_scores(texts, grid, -math.inf, "the France", offsets, 1.0)
    # "the France" and "France" have one normalised text; the normalised text of "the" is empty
    assert sum(sorted(set(scores))) == pytest.approx(1)
