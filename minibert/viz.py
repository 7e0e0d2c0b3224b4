"""Pictures for the notebooks: numbers in, a matplotlib figure out.

Colours are Okabe and Ito's, which the colour-blind tell apart, and magnitudes are "viridis" or
"cividis", which also read in grey. matplotlib is imported when a picture is asked for.
"""

from typing import TYPE_CHECKING, Any

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
    """A figure as wide as a page, `height` inches high; its axes have no frame above and right."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **grid
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # a notebook shows the figure that a cell returns, once
    return figure, axes if rows * columns > 1 else axes[0, 0]
