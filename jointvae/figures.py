"""Every figure of the book, in one style that reads on a light and on a dark page.

Backgrounds are transparent and text is a mid grey, so the same picture serves both themes.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

GREY = "#7d7d7d"
# Distinguishable with the common colour-vision deficiencies, and against both backgrounds (after Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c99700", "#56b4e9", "#8c6bb1", "#7d7d7d")


def use_style() -> None:
    """Set matplotlib's defaults for the book. Call it once at the top of a chapter."""
    plt.rcParams.update(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.transparent": True,
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "text.color": GREY,
            "axes.edgecolor": GREY,
            "axes.labelcolor": GREY,
            "axes.titlecolor": GREY,
            "axes.titlesize": 10,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "grid.color": GREY,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "image.cmap": "gray",
        }
    )


def to_plane(points: np.ndarray) -> np.ndarray:
    """Points of the simplex over three categories, shape (..., 3), as coordinates in a triangle, shape (..., 2)."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    return points @ corners


def draw_simplex(ax: Axes, labels: tuple[str, str, str] = ("1", "2", "3")) -> None:
    """An empty triangle with a labelled corner for each of three categories."""
    corners = to_plane(np.eye(3))
    ax.plot(*corners[[0, 1, 2, 0]].T, color=GREY, linewidth=1)
    for corner, label, offset in zip(corners, labels, [(-0.05, -0.03), (0.05, -0.03), (0, 0.05)], strict=True):
        ax.text(*(corner + offset), label, ha="center", va="center")
    ax.set_aspect("equal")
    ax.set_axis_off()
