"""Every figure of the book, in one style that reads on a light and on a dark page.

Backgrounds are transparent and text is a mid grey, so the same picture serves both themes.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc
from torch import Tensor

from jointvae import structure
from jointvae.evaluation import Evaluation, one_to_one
from jointvae.model import JointVAE
from jointvae.results import Record
from jointvae.traversals import decode_images, one_hot_codes, prior_quantiles, traverse_z

GREY = "#7d7d7d"
# Distinguishable with the common colour-vision deficiencies, and against both backgrounds (after Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c99700", "#56b4e9", "#8c6bb1", "#9a6324")


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
            "axes.prop_cycle": cycler(color=COLOURS),
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
        x, y = corner + offset
        ax.text(x, y, label, ha="center", va="center")
    ax.set_aspect("equal")
    ax.set_axis_off()


def show_grid(ax: Axes, images: Float[Tensor, "n channels side side"], columns: int) -> None:
    """Images side by side, `columns` to a row, with values in [0, 1]."""
    from torchvision.utils import make_grid  # its import takes a second

    grid = make_grid(images, nrow=columns, padding=2, pad_value=0.5)
    ax.imshow(grid.permute(1, 2, 0).numpy(), vmin=0, vmax=1)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def label_rows(ax: Axes, labels: Sequence[str], side: int) -> None:
    """A label for each row of a grid of images whose side is `side` pixels."""
    ax.set_yticks([(side + 2) * (row + 0.5) for row in range(len(labels))], labels)
    ax.tick_params(length=0)


def traversal_figure(model: JointVAE, kl_z: Sequence[float], category: int = 0, columns: int = 10) -> Figure:
    """A row per unit of z, the most used first, from its 5 % to its 95 % quantile under the prior.

    The first discrete unit, if the model has any, stays in `category`, the others in their first one.
    """
    order = np.argsort(kl_z)[::-1]
    values = prior_quantiles(columns)
    categories = [category] + [0] * (len(model.spec.c) - 1) if model.spec.c else []
    rows = torch.cat([traverse_z(model, int(unit), values, categories) for unit in order])
    fig, ax = plt.subplots(figsize=(7, 0.62 * len(order) + 0.6))
    show_grid(ax, rows, columns)
    label_rows(ax, [f"$z_{{{unit + 1}}}$: {kl_z[unit]:.2f} nats" for unit in order], model.image.size)
    ticks = [(model.image.size + 2) * (column + 0.5) for column in range(columns)]
    ax.set_xticks(ticks, [f"{value:.1f}" for value in values])
    ax.set_xlabel("value of the unit, in standard deviations of the prior")
    return fig


def category_figure(model: JointVAE, names: Sequence[str], generator: torch.Generator, columns: int = 10) -> Figure:
    """A row per category of the first discrete unit: the image at z = 0, then samples of z from the prior."""
    rows = []
    for category in range(model.spec.c[0]):
        codes = one_hot_codes(model, [category] + [0] * (len(model.spec.c) - 1), columns)
        codes[1:, : model.spec.z] = torch.randn(columns - 1, model.spec.z, generator=generator)
        rows.append(decode_images(model, codes))
    fig, ax = plt.subplots(figsize=(7, 0.62 * len(rows) + 0.6))
    show_grid(ax, torch.cat(rows), columns)
    label_rows(ax, names, model.image.size)
    ticks = [(model.image.size + 2) * (column + 0.5) for column in range(columns)]
    ax.set_xticks(ticks, ["z = 0", *[f"draw {i}" for i in range(1, columns)]])
    return fig


def matched_order(evaluation: Evaluation) -> list[int]:
    """The categories in the order of the classes they are matched to, unmatched ones last."""
    matrix = np.array(evaluation.confusion)
    match = one_to_one(matrix)[1]
    return sorted(range(matrix.shape[1]), key=lambda category: match.get(category, len(matrix)))


def confusion_figure(evaluations: Sequence[tuple[str, Evaluation]], classes: Sequence[str]) -> Figure:
    """The share of every class (row) in every category (column), columns in matched order; up to four side by side."""
    panels = len(evaluations)
    labelled = panels < 3
    columns = panels if panels <= 4 else min(4, 3, key=lambda across: -panels % across)  # the fewest places empty
    rows = -(-len(evaluations) // columns)
    widths = [len(matched_order(found)) for _, found in evaluations] if rows == 1 else None  # cells of one size
    fig, axes = plt.subplots(
        rows,
        columns,
        width_ratios=widths,
        figsize=(min(3.3 * columns + 0.6, 8.2), 3.6 if labelled else (2.3 if columns == 4 else 2.7) * rows),
        sharey=True,
        squeeze=False,
    )
    for ax, (title, evaluation) in zip(axes.flat, evaluations, strict=False):
        matrix = np.array(evaluation.confusion, dtype=float)
        order = matched_order(evaluation)
        shares = 100 * matrix[:, order] / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # a split may lack a class
        sns.heatmap(
            shares, ax=ax, cmap="viridis", vmin=0, vmax=100, annot=labelled, fmt=".0f", cbar=False,
            annot_kws={"fontsize": 7}, xticklabels=[k + 1 for k in order], yticklabels=list(classes), square=True,
        )  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel("category of c")
        ax.tick_params(axis="y", rotation=0)
        if columns == 4 or len(order) > 10:
            ax.tick_params(axis="x", labelsize=6.5)
    for ax in axes.flat[len(evaluations) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("class, share in %" if labelled else "class")
    if not labelled:
        fig.colorbar(
            axes.flat[0].collections[0], ax=axes, label="share of the class, in %", shrink=0.7 if rows == 1 else 0.5
        )
    return fig


def capacity_figure(records: Sequence[tuple[str, Record]]) -> Figure:
    """Reconstruction, KL_z and KL_c over training, with the capacities that hold the divergences, in nats per image."""
    fig, axes = plt.subplots(1, 3, figsize=(8.2, 2.6 + 0.2 * -(-len(records) // 4)))
    for colour, (label, record) in zip(itertools.cycle(COLOURS), records, strict=False):
        curves, steps = record.curves, np.array(record.curves["step"]) / 1000
        style = {"color": colour, "linewidth": 1.2}
        axes[0].plot(steps, curves["reconstruction"], label=label, **style)
        axes[1].plot(steps, np.sum(curves["kl_z"], axis=1), **style)
        axes[2].plot(steps, np.sum(curves["kl_c"], axis=1), **style)
    for ax, name in ((axes[1], "C_z"), (axes[2], "C_c")):
        for _, record in records:
            if name in record.curves:
                steps = np.array(record.curves["step"]) / 1000
                ax.plot(steps, record.curves[name], color=GREY, linestyle="--", linewidth=1.2, zorder=3)
    titles = ("reconstruction", "$KL_z$, dashed: $C_z$", "$KL_c$, dashed: $C_c$")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_xlabel("step, in thousands")
        ax.grid(True)
    axes[0].set_ylabel("nats per image")
    fig.legend(fontsize=8, ncols=4, loc="outside lower center")
    return fig


def runs_figure(rows: Sequence[tuple[str, Sequence[float], dict[str, Any]]]) -> Figure:
    """Test accuracies of groups of runs as dots on one axis, a line per group; each group brings its marker style."""
    fig, ax = plt.subplots(figsize=(7, 0.5 * len(rows) + 0.8))
    for height, (_, accuracies, style) in enumerate(reversed(rows)):
        ax.scatter([100 * a for a in accuracies], [height] * len(accuracies), zorder=3, **style)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlim(0, 100)
    ax.set_xlabel("test accuracy, one-to-one, in %")
    ax.grid(True, axis="x")
    return fig


def modules_figure() -> Figure:
    """The modules of the package from top to bottom, and an arc from each one down to every module that imports it.

    The order is that of `structure.STAGES`, a colour each; the imports are read from the source. An import against the
    order would bow to the left. What everything imports, the ground, is grey.
    """
    places = {module: row for row, module in enumerate(structure.ORDER)}
    colours = dict(zip(structure.STAGES, (GREY, *COLOURS), strict=False))
    fig, ax = plt.subplots(figsize=(3.6, 0.27 * len(places)))
    for stage, modules in structure.STAGES.items():
        first, last = places[modules[0]], places[modules[-1]]
        ax.plot([-4.8, -4.8], [first - 0.3, last + 0.3], color=colours[stage], linewidth=3, solid_capstyle="butt")
        ax.text(-5.1, (first + last) / 2, stage, ha="right", va="center")
        for module in modules:
            ax.text(-0.4, places[module], module, ha="right", va="center", family="monospace", fontsize=9)
            ax.plot(0, places[module], "o", color=colours[stage], markersize=4)
            users = [user for user in places if module in structure.imports(structure.PACKAGE / f"{user}.py")]
            for user in users:
                _arc(ax, places[module], places[user], colours[stage])
    ax.set_xlim(-8.9, 7.7)
    ax.set_ylim(len(places) - 0.4, -0.6)
    ax.set_axis_off()
    return fig


def _arc(ax: Axes, start: int, end: int, colour: str) -> None:
    """Half an ellipse between two rows: to the right if it leads down, to the left if up."""
    height = abs(end - start)
    width = 7.5 * (height / len(structure.ORDER)) ** 0.75
    side = -90 if end > start else 90
    arc = Arc((0, (start + end) / 2), 2 * width, height, theta1=side, theta2=side + 180, color=colour, linewidth=1)
    arc.set_alpha(0.5 if colour == GREY else 0.9)
    ax.add_patch(arc)
