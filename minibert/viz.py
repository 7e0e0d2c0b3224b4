"""Pictures for the notebooks: numbers in, a matplotlib figure out.

The colours are Okabe and Ito's, because colour-blind people can tell them apart. Magnitudes use
"viridis", because it is also readable in grey. matplotlib is imported with the first picture.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

# Okabe and Ito 2008
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#999999"
WIDTH = 9.0  # inches: the width of a page


def canvas(
    rows: int = 1, columns: int = 1, height: float = 3.0, **grid: Any
) -> tuple["Figure", Any]:
    """A figure as wide as a page and `height` inches high, without frames at the top and right."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **grid
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # otherwise a notebook shows the figure twice
    return figure, axes if rows * columns > 1 else axes[0, 0]


def input_rows(
    tokens: Sequence[str], ids: Sequence[int], segments: Sequence[int], mask: Sequence[int]
) -> "Figure":
    """The model's input: the pieces as a coloured strip, above their ids, segments and mask.

    All four have one entry per token, (T,). A mask of 0 means padding.
    """
    from matplotlib.patches import FancyBboxPatch

    figure, axis = canvas(height=2.2)
    style = "round,pad=0,rounding_size=0.1"
    for k, (token, id_, segment, kept) in enumerate(zip(tokens, ids, segments, mask, strict=True)):
        colour = (SKY, ORANGE)[segment] if kept else "#DDDDDD"
        axis.add_patch(FancyBboxPatch((k - 0.4, 2.2), 0.8, 1.6, style, fc=colour, ec="none"))
        axis.text(k, 3, token, ha="center", va="center", fontsize=8, rotation=90)
        for row, value in enumerate((kept, segment, id_)):
            axis.text(k, row * 0.75, str(value), ha="center", va="center", fontsize=8)
    axis.set(xlim=(-0.6, len(tokens) - 0.4), ylim=(-0.5, 4.0), xticks=[])
    axis.set_yticks([0, 0.75, 1.5, 3], ["mask", "segment", "id", "piece"])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def adding_strips(strips: Mapping[str, Array], tokens: Sequence[str]) -> "Figure":
    """Vectors of the same tokens as strips of (T, dimensions), one below the other. The last strip
    is the sum. All strips share a colour scale with 0 in the middle. It covers 99 % of the numbers.
    """
    height = (0.5 + 0.12 * len(tokens)) * len(strips)
    figure, axes = canvas(len(strips), height=height, sharex=True)
    largest = float(np.percentile(np.abs(np.stack(list(strips.values()))), 99))
    for k, (axis, (name, strip)) in enumerate(zip(axes.flat, strips.items(), strict=True)):
        image = axis.imshow(strip, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
        sign = "=" if k == len(strips) - 1 else "+" if k else " "
        axis.set_title(f"{sign} {name}", loc="left", fontsize=10)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
        axis.tick_params(length=0)
    axes.flat[-1].set_xlabel("dimension")
    figure.colorbar(image, ax=axes, shrink=0.4, extend="both")
    return figure


def cosine_matrix(vectors: Array, label: str) -> "Figure":
    """The similarity of every pair of vectors (K, dimensions): the cosine of their angle."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    figure, axis = canvas(height=5.0)
    image = axis.imshow(unit @ unit.T, cmap="viridis")
    axis.set(xlabel=label, ylabel=label)
    figure.colorbar(image, ax=axis, label="cosine")
    return figure


def attention_panels(panels: Mapping[str, Array], tokens: Sequence[str]) -> "Figure":
    """Matrices (T, T) next to each other: the token of the row looks at the token of the column.

    Every matrix has its own colour scale. Masked scores and numbers that are not finite are grey.
    """
    figure, axes = canvas(1, len(panels), height=4.0)
    for axis, (name, matrix) in zip(np.atleast_1d(axes).flat, panels.items(), strict=True):
        hidden = ~np.isfinite(matrix) | (matrix < -1e9)
        shown = np.ma.array(np.where(hidden, 0.0, matrix), mask=hidden)  # 0.0 avoids an overflow
        axis.set_facecolor("#BBBBBB")
        image = axis.imshow(shown, cmap="viridis")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
        axis.tick_params(length=0)
        figure.colorbar(image, ax=axis, shrink=0.5)
    return figure


def head_grid(probabilities: Array, tokens: Sequence[str]) -> "Figure":
    """The attention of all heads of a layer, (N, T, T): from the row's token to the column's."""
    columns = 4
    rows = -(-len(probabilities) // columns)
    figure, axes = canvas(rows, columns, height=2.35 * rows, sharex=True, sharey=True)
    for k, axis in enumerate(axes.flat):
        axis.set_visible(k < len(probabilities))
        if k < len(probabilities):
            image = axis.imshow(probabilities[k], cmap="viridis", vmin=0, vmax=1)
            axis.set_title(f"head {k}", fontsize=9)
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=6)
        axis.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.4, label="probability")
    return figure


def error_by_layer(errors: Mapping[str, Sequence[float]], tolerance: float) -> "Figure":
    """The largest error of the states after each layer: one curve per model, on a log scale.

    A log scale has no 0, so an exact 0 lies on the line at the bottom.
    """
    figure, axis = canvas(height=4.4)
    floor = 1e-8
    for k, (name, curve) in enumerate(errors.items()):
        colour = (BLUE, ORANGE, GREEN, RED, PINK, BLACK)[k % 6]
        shown = [max(error, 2 * floor) if error else floor for error in curve]
        axis.plot(shown, color=colour, marker="osD^vP"[k % 6], lw=2, clip_on=False, zorder=3)
        style = {"va": "center", "fontsize": 9, "color": colour, "textcoords": "offset points"}
        axis.annotate(name, (len(shown) - 1, shown[-1]), (10, 0), **style)
    layers = len(next(iter(errors.values())))
    axis.axhline(floor, color=GREY, lw=1)
    axis.axhline(tolerance, color=BLACK, ls="--", lw=1)
    axis.text(0, tolerance * 1.3, f"tolerance {tolerance:g}", fontsize=9)
    axis.set_yscale("log")
    axis.set(ylim=(floor, 500), xlim=(-0.1, layers - 1), ylabel="largest error of a state")
    powers = range(-6, 3, 2)
    ticks = [floor, *(10.0**power for power in powers)]
    axis.set_yticks(ticks, ["exactly 0", *(f"$10^{{{power}}}$" for power in powers)])
    axis.set_xticks(range(layers), ["embeddings", *(f"layer {k}" for k in range(1, layers))])
    return figure


def probability_bars(tokens: Sequence[str], rows: Mapping[str, tuple[Array, Array]]) -> "Figure":
    """For each token: the probability that the answer starts there (up) or ends there (down).

    `rows` are named pairs of (T,) probabilities. Each pair gets its own panel, for example one from
    a model before its training and one from after it.
    """
    figure, axes = canvas(len(rows), height=1.2 + 1.5 * len(rows), sharex=True)
    for axis, (name, (start, end)) in zip(np.atleast_1d(axes).flat, rows.items(), strict=True):
        axis.bar(range(len(tokens)), start, color=BLUE, label="start")
        axis.bar(range(len(tokens)), -end, color=ORANGE, label="end")
        axis.axhline(0, color=BLACK, lw=0.8)
        axis.set(ylim=(-1.05, 1.05), ylabel="probability", title=name)
        axis.set_yticks([-1, 0, 1], ["1", "0", "1"])
    axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    np.atleast_1d(axes).flat[0].legend(frameon=False, ncols=2, loc="upper left")
    return figure


def span_map(
    scores: Array, legal: Array, tokens: Sequence[str], spans: Sequence[tuple[int, int]]
) -> "Figure":
    """The grid of all spans: rows are starts, columns are ends, the colour is S.T_i + E.T_j.

    `scores` and `legal` are (T, T). Spans that are not legal are hatched. `spans` (start, end
    inclusive) are marked 1, 2, 3, ...
    """
    figure, axis = canvas(height=7.0)
    image = axis.imshow(scores, cmap="viridis")
    veil = np.zeros((*legal.shape, 4))
    veil[~legal] = (1, 1, 1, 0.6)
    axis.imshow(veil)
    fine = np.kron(~legal, np.ones((8, 8)))  # the hatching must end at the edges of the cells
    within = (-0.5, len(tokens) - 0.5) * 2
    axis.contourf(fine, levels=[0.5, 1.5], colors="none", hatches=["////"], extent=within)
    for rank, (start, end) in enumerate(spans, start=1):
        box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": RED, "lw": 1.5}
        axis.text(end, start, str(rank), ha="center", va="center", fontsize=8, bbox=box)
    axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
    axis.tick_params(length=0)
    axis.set(xlabel="the span ends with", ylabel="the span starts with")
    figure.colorbar(image, ax=axis, shrink=0.6, label="start logit + end logit")
    return figure


def window_bars(
    bounds: Sequence[tuple[int, int]], spans: Mapping[str, tuple[int, int]]
) -> "Figure":
    """A document's windows as bars, (first token, end exclusive), and its `spans` as stripes."""
    figure, axis = canvas(height=1.2 + 0.28 * len(bounds))
    for k, (first, end) in enumerate(bounds):
        axis.barh(k, end - first, left=first, height=0.6, color=SKY, ec=BLUE)
        axis.text(first + 3, k, f"window {k}", va="center", fontsize=9)
    for k, (name, (first, end)) in enumerate(spans.items()):
        colour = (RED, GREEN, PINK)[k % 3]
        axis.axvspan(first, end, color=colour, alpha=0.7)
        axis.text(end, -0.9 - 0.9 * (k % 2), f" {name}", fontsize=9, color=colour)
    axis.set(ylim=(len(bounds) - 0.4, -2.4), xlabel="token of the document", yticks=[])
    axis.spines["left"].set_visible(False)
    return figure


def seen_by_windows(tokens: Sequence[str], logits: Mapping[str, tuple[Array, Array]]) -> "Figure":
    """The same tokens in several windows: start logits on the left, end logits on the right.

    `logits` are named pairs of (T,), one pair per window.
    """
    figure, axes = canvas(1, 2, height=3.2, sharey=True)
    for side, axis in enumerate(axes.flat):
        for k, (name, pair) in enumerate(logits.items()):
            colour, marker = (BLUE, ORANGE, GREEN)[k % 3], "osD"[k % 3]
            axis.plot(pair[side], color=colour, marker=marker, label=name)
        axis.set_title(("start logits", "end logits")[side], fontsize=10)
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    axes.flat[0].legend(frameon=False)
    return figure


def training_curves(
    steps: Sequence[int], losses: Sequence[float], learning_rates: Sequence[float], note: str = ""
) -> "Figure":
    """The loss (top) and the learning rate (bottom) over the steps, and a note at the top right."""
    figure, axes = canvas(2, height=4.2, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above, below = axes.flat
    above.plot(steps, losses, color=BLUE, lw=0.8, alpha=0.5)
    width = min(len(losses), max(5, len(losses) // 25))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    above.plot(steps[width - 1 :], smooth, color=BLUE, lw=2, label=f"mean of {width}")
    above.set(ylabel="loss", ylim=(0, None))
    if note:
        at = {"ha": "right", "va": "top", "transform": above.transAxes}
        above.text(1.0, 0.95, note, fontsize=10, **at)
    below.plot(steps, learning_rates, color=ORANGE, lw=2)
    below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    return figure


def figures_by_group(
    groups: Mapping[str, Mapping[str, tuple[float, int]]], overall: float
) -> "Figure":
    """F1 for the parts of a data set: one panel for each way to divide it.

    `groups` maps each way to its parts, and each part to (F1, number of questions).
    """
    widths = {"width_ratios": [len(parts) for parts in groups.values()]}
    figure, axes = canvas(1, len(groups), height=3.4, sharey=True, gridspec_kw=widths)
    for axis, (name, parts) in zip(np.atleast_1d(axes).flat, groups.items(), strict=True):
        values = [value for value, _ in parts.values()]
        axis.bar(range(len(parts)), values, color=SKY, ec=BLUE)
        for k, (value, count) in enumerate(parts.values()):
            axis.text(k, value + 1, f"{value:.0f}", ha="center", fontsize=8)
            axis.text(k, 3, f"{count:,}", ha="center", fontsize=7, rotation=90)
        axis.axhline(overall, color=BLACK, ls="--", lw=1)
        axis.set_xticks(range(len(parts)), parts, rotation=45, fontsize=8)
        axis.set(title=textwrap.fill(name, 3 * len(parts)), ylim=(0, 100))
    np.atleast_1d(axes).flat[0].set_ylabel("F1")
    return figure


def reliability(scores: Array, right: Array, counts: Array) -> "Figure":
    """How often answers with similar scores are right, (bins,). Calibrated ones lie on the line."""
    figure, axes = canvas(2, height=5.0, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above, below = axes.flat
    above.plot([0, 1], [0, 1], color=GREY, ls="--")
    above.plot(scores, right, color=BLUE, marker="o")
    above.set(ylabel="part that is right", xlim=(0, 1), ylim=(0, 1))
    below.bar(scores, counts, width=0.08, color=SKY, ec=BLUE)
    below.set(xlabel="score", ylabel="answers")
    return figure


def threshold_curve(thresholds: Array, f1: Mapping[str, Array], chosen: float) -> "Figure":
    """F1 at each threshold on the null odds: one curve per group, and a line at the chosen one."""
    figure, axis = canvas(height=3.4)
    for k, (name, values) in enumerate(f1.items()):
        style = {"color": (BLACK, BLUE, ORANGE)[k % 3], "ls": ("-", "--", ":")[k % 3]}
        axis.plot(thresholds, values, label=name, lw=2, drawstyle="steps-post", **style)
    axis.axvline(chosen, color=GREY, lw=1)
    axis.set(xlabel='threshold on the null odds: beyond it the answer is ""', ylabel="F1")
    axis.set_ylim(0, 102)
    axis.legend(frameon=False)
    return figure
