"""The pictures show the numbers that they are given, and no text is cut off."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures: pip install -e '.[test]'")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from minibert import viz

TOKENS = ["[CLS]", "who", "?", "[SEP]", "ada", "lit", "it", "[SEP]"]
T = len(TOKENS)
GENERATOR = np.random.default_rng(0)
SQUARE = GENERATOR.random((T, T))
ROWS = GENERATOR.random((T, 6))

PICTURES = {
    "input_rows": lambda: viz.input_rows(TOKENS, range(T), [0] * 4 + [1] * 4, [1] * 7 + [0]),
    "adding_strips": lambda: viz.adding_strips({"word": ROWS, "sum": 2 * ROWS}, TOKENS),
    "cosine_matrix": lambda: viz.cosine_matrix(ROWS, "position"),
    "attention_panels": lambda: viz.attention_panels({"scores": SQUARE, "softmax": SQUARE}, TOKENS),
    "head_grid": lambda: viz.head_grid(GENERATOR.random((8, T, T)), TOKENS),
    "error_by_layer": lambda: viz.error_by_layer({"ours": [0, 0], "theirs": [0, 1e-3]}, 1e-5),
    "probability_bars": lambda: viz.probability_bars(TOKENS, {"before": (ROWS[:, 0], ROWS[:, 1])}),
    "span_map": lambda: viz.span_map(SQUARE, np.triu(SQUARE) > 0, TOKENS, [(1, 2), (4, 4)]),
    "window_bars": lambda: viz.window_bars([(0, 90), (50, 140)], {"Ada": (60, 62)}),
    "seen_by_windows": lambda: viz.seen_by_windows(TOKENS, {"window 0": (ROWS[:, 0], ROWS[:, 1])}),
    "training_curves": lambda: viz.training_curves([1, 2, 3], [3.0, 2.0, 1.0], [0.0, 2e-4, 0.0]),
    "figures_by_group": lambda: viz.figures_by_group(
        {"words": dict.fromkeys("abc", (80.0, 9)), "a long name": dict.fromkeys("abcd", (70.0, 9))},
        75.0,
    ),
    "reliability": lambda: viz.reliability(ROWS[0], ROWS[1], ROWS[2]),
    "threshold_curve": lambda: viz.threshold_curve(ROWS[0], {"all": ROWS[1]}, 0.5),
}


def test_every_picture_is_here():
    public = {
        name
        for name, value in vars(viz).items()
        if callable(value) and getattr(value, "__module__", "") == viz.__name__ and name[0] != "_"
    }
    assert public == {*PICTURES, "canvas"}


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_leaves_the_page(name):
    """Every visible text lies within the figure, up to one pixel of rounding."""
    figure = PICTURES[name]()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page = figure.bbox.padded(1.0)
    ticks = {
        id(label)
        for axis in figure.axes
        for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim()))
        for tick in one.get_major_ticks()
        if not min(low, high) <= tick.get_loc() <= max(low, high)  # not drawn
        for label in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in ticks:
            box = text.get_window_extent(renderer)
            assert page.x0 <= box.x0 and box.x1 <= page.x1, text
            assert page.y0 <= box.y0 and box.y1 <= page.y1, text


def test_bars_are_the_probabilities():
    start, end = ROWS[:, 0], ROWS[:, 1]
    (axis,) = viz.probability_bars(TOKENS, {"one": (start, end)}).axes
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == pytest.approx([*start, *-end])


def test_an_exact_zero_lies_on_the_bottom_line():
    (axis,) = viz.error_by_layer({"ours": [0.0, 0.0], "theirs": [0.0, 1e-3]}, 1e-5).axes
    ours, theirs = axis.lines[0].get_ydata(), axis.lines[1].get_ydata()
    assert list(ours) == [axis.get_ylim()[0]] * 2 and theirs[1] == 1e-3


def test_what_is_masked_is_not_coloured():
    scores = np.where(np.arange(T) < 6, SQUARE, -3.4e38)
    axis = viz.attention_panels({"masked": scores}, TOKENS).axes[0]
    shown = axis.images[0].get_array()
    assert (shown.mask == (scores < -1e9)).all()
