"""Exact search against two nested loops; and the seed's two decoders, with how they fail."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minibert
from minibert.spans import Span, WindowLogits, argmax_span, beam_spans, best_spans


def brute_force(windows: list[WindowLogits], n_best: int, max_answer_len: int) -> list[Span]:
    """The definition, one span at a time."""
    spoken_for: dict[tuple[int, int], tuple[int, float, float]] = {}
    for window in windows:
        T = len(window.start_logits)
        for i in range(T):
            for j in range(i, min(i + max_answer_len, T)):
                around = min(i, T - 1 - j)
                place = (window.token_start + i, window.token_start + j)
                if place not in spoken_for or around > spoken_for[place][0]:
                    logits = float(window.start_logits[i]), float(window.end_logits[j])
                    spoken_for[place] = (around, *logits)
    top = max(s + e for _, s, e in spoken_for.values())
    total = math.fsum(math.exp(s + e - top) for _, s, e in spoken_for.values())
    order = sorted(spoken_for, key=lambda place: (-sum(spoken_for[place][1:]), place))
    return [
        Span(*place, s, e, math.exp(s + e - top) / total)
        for place in order[:n_best]
        for _, s, e in [spoken_for[place]]
    ]


def assert_same(found: list[Span], expected: list[Span]) -> None:
    """Places and logits exactly, in order; probabilities to the rounding of a sum."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
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
        windows.append(WindowLogits(first, start, final))
    return windows


@settings(max_examples=1000, deadline=None)
@given(windows=documents(), n_best=st.integers(1, 40), max_answer_len=st.integers(1, 12))
def test_search_equals_two_nested_loops(windows, n_best, max_answer_len):
    found = best_spans(windows, n_best, max_answer_len)
    assert_same(found, brute_force(windows, n_best, max_answer_len))


@pytest.mark.parametrize("tokens", [1, 2, 30, 31, 384])
def test_search_equals_two_nested_loops_at_full_length(tokens):
    rng = np.random.default_rng(tokens)
    for _ in range(5):
        start, end = rng.normal(0, 4, (2, tokens)).astype("float32")
        windows = [WindowLogits(0, start, end)]
        assert_same(best_spans(windows, 20, 30), brute_force(windows, 20, 30))


@settings(deadline=None)
@given(windows=documents())
def test_scores_are_one_probability(windows):
    """Over windows too: each in [0, 1], all together 1, in the order of the logits."""
    spans = best_spans(windows, n_best=10_000)
    assert math.fsum(span.score for span in spans) == pytest.approx(1.0, rel=1e-9)
    assert all(0.0 <= span.score <= 1.0 for span in spans)
    sums = [span.start_logit + span.end_logit for span in spans]
    assert sums == sorted(sums, reverse=True)
    assert len({(s.token_start, s.token_end) for s in spans}) == len(spans)


def test_fewer_spans_than_asked():
    window = WindowLogits(0, np.zeros(3, "float32"), np.zeros(3, "float32"))
    assert len(best_spans([window], n_best=100)) == 6
    assert len(best_spans([window], n_best=100, max_answer_len=1)) == 3


def test_ties_go_to_the_earlier_start_then_to_the_shorter_span():
    window = WindowLogits(0, np.zeros(3, "float32"), np.zeros(3, "float32"))
    places = [(s.token_start, s.token_end) for s in best_spans([window])]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_a_tie_in_float32_is_none_in_the_sum():
    """2^24 + 1 is 2^24 in float32; the longer span is better all the same."""
    start, end = np.array([2.0**24, 0.0], "float32"), np.array([0.0, 1.0], "float32")
    assert best_spans([WindowLogits(0, start, end)])[0].token_end == 1


def test_the_window_that_shows_most_context_speaks():
    """Token 5 is the last of the first window and in the middle of the second."""
    low, high = np.zeros(6, "float32"), np.zeros(6, "float32")
    low[5], high[2] = 9.0, 1.0
    spans = best_spans([WindowLogits(0, low, low), WindowLogits(3, high, high)], n_best=99)
    chosen = next(s for s in spans if s.token_start == s.token_end == 5)
    assert (chosen.start_logit, chosen.end_logit) == (1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_raise(value):
    good, bad = np.zeros(4, "float32"), np.array([0, 0, value, 0], "float32")
    for start, end in ((good, bad), (bad, good)):
        with pytest.raises(minibert.InputError, match="not finite"):
            best_spans([WindowLogits(0, good, good), WindowLogits(2, start, end)])


def test_bad_arguments():
    window = WindowLogits(0, np.zeros(3, "float32"), np.zeros(3, "float32"))
    for arguments in ({"n_best": 0}, {"max_answer_len": 0}):
        with pytest.raises(minibert.InputError, match="=0"):
            best_spans([window], **arguments)


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
