"""Figures of an encoder's health: its features in the plane, their spectrum, and the loss around its weights.

As in `astra_gym.experiments.plotting.run_plots`, every function takes data and a path and writes a PNG in the style of
`astra_gym.experiments.plotting.style`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter
from torch import Tensor

from astra_gym.experiments.plotting.run_plots import Array
from astra_gym.experiments.plotting.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    STYLE,
    label,
    new_figure,
    save_figure,
)
from astra_gym.ssl_core.evaluation.embedding_metrics import entropy_rank, normalized, singular_values
from astra_gym.ssl_core.evaluation.landscape import LossCurves
from astra_gym.ssl_core.evaluation.representation import Landscape

SHOWN = 500
"""Number of images in the plane: more points would cover each other, and the projection's time grows faster than their
number."""
FAINT = "#bbbbbb"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#CC79A7") * 2
# All different, for a reader in gray; markers of the same color are easy to tell apart.
MARKERS = ("o", "^", "s", "D", "v", "X", "*", "P", "<", ">")
COLUMNS = 5
MARKERS_OF_CURVES = (("o", BLUE), ("s", ORANGE), ("^", GREEN), ("D", PURPLE))
"""Marker and color of each encoder among several."""


def plane(clean: Tensor, attacked: Tensor, seed: int) -> tuple[Array, Array]:
    """Map clean and attacked features (n, d) into one plane, (n, 2) each.

    This is t-SNE (van der Maaten and Hinton 2008) of all features together, normalized, started at their first two
    principal components. The same features, seed and number of threads give the same plane bit for bit.

    Args:
        clean, attacked: features of the same images.
        seed: seed of scikit-learn's generator.

    Raises:
        ValueError: if the shapes differ, or as `astra_gym.ssl_core.evaluation.embedding_metrics.normalized`.
    """
    if clean.shape != attacked.shape:
        raise ValueError(f"clean is {tuple(clean.shape)}, attacked {tuple(attacked.shape)}: expected (n, d) twice")
    # Imported here, since scikit-learn takes a second to import and the other figures do not need it.
    from sklearn.manifold import TSNE

    both = torch.cat([normalized(clean, "clean"), normalized(attacked, "attacked")]).float().numpy()
    perplexity = min(30.0, (len(both) - 1) / 3)
    placed = TSNE(init="pca", perplexity=perplexity, learning_rate="auto", random_state=seed).fit_transform(both)
    placed = np.asarray(placed, dtype=np.float64)
    return placed[: len(clean)], placed[len(clean) :]


@matplotlib.rc_context(STYLE)
def tsne(
    clean: Tensor, attacked: Tensor, labels: Tensor | None, classes: Sequence[str], path: Path | str, seed: int = 0
) -> None:
    """Draw clean and attacked features in one plane, in two panels of the same coordinates, a mark for each class.

    Args:
        clean, attacked: (n, d) features of the same images; the first `SHOWN` are drawn.
        labels: (n,) positions in `classes`; None for one mark.
        classes: names; the first ten are marked, the others light gray.
        path: path of the PNG.
        seed: seed of t-SNE.

    Raises:
        ValueError: as `plane`, or if there are not as many labels as features.
    """
    if labels is not None and len(labels) != len(clean):
        raise ValueError(f"{len(labels)} labels for {len(clean)} features: expected one each")
    before, after = plane(clean[:SHOWN], attacked[:SHOWN], seed)
    kinds = np.zeros(len(before), dtype=np.int64) if labels is None else labels[:SHOWN].numpy()
    names = ["images"] if labels is None else [_short(name) for name in classes[: len(MARKERS)]]
    others = kinds >= len(names)
    # one square for both panels, so that the same place in both means the same feature
    low, high = (end(np.concatenate([before, after]), axis=0) for end in (np.min, np.max))
    center, reach = (low + high) / 2, 0.53 * float((high - low).max())
    lines = 0 if labels is None else -(-(len(names) + bool(others.any())) // COLUMNS)
    figure, axes = new_figure(1, 3.65 + 0.25 * lines, columns=2)
    axes[1].add_collection(
        LineCollection(list(np.stack([before, after], axis=1)), color=FAINT, linewidth=0.7, zorder=0)
    )
    for axis, points, title in zip(axes, (before, after), ("clean", "attacked (line: from clean)"), strict=True):
        for kind, (name, color, marker) in enumerate(zip(names, COLORS, MARKERS, strict=False)):
            x, y = points[kinds == kind].T
            axis.scatter(x, y, s=22, color=color, marker=marker, linewidths=0, label=name)
        if others.any():
            x, y = points[others].T
            axis.scatter(x, y, s=10, color=FAINT, linewidths=0, label="other", zorder=0.5)
        axis.set(title=title, xticks=[], yticks=[], aspect="equal")
        axis.set(xlim=(center[0] - reach, center[0] + reach), ylim=(center[1] - reach, center[1] + reach))
        axis.spines[:].set_visible(True)
    if labels is not None:
        pairs = list(zip(*axes[0].get_legend_handles_labels(), strict=True))
        # a legend is filled column by column, but names are read row by row
        handles, words = zip(*(pair for column in range(COLUMNS) for pair in pairs[column::COLUMNS]), strict=True)
        figure.legend(
            handles,
            words,
            loc="outside lower center",
            ncols=COLUMNS,
            markerscale=1.4,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    save_figure(figure, path)


def _short(name: str, most: int = 12) -> str:
    return label(name if len(name) <= most else f"{name[: most - 1]}…")


@matplotlib.rc_context(STYLE)
def spectrum(vectors: Mapping[str, Tensor], path: Path | str) -> None:
    """Draw the singular values of normalized features, each as its share of their sum, with the effective rank.

    Args:
        vectors: (n, d) by name, such as "clean" and "attacked"; at most four.
        path: path of the PNG.

    Raises:
        ValueError: if there are none or too many, or as `astra_gym.ssl_core.evaluation.embedding_metrics.normalized`.
    """
    lines = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
    if not 1 <= len(vectors) <= len(lines):
        raise ValueError(f"{len(vectors)} sets of vectors are given: expected 1 to {len(lines)}")
    figure, (axis,) = new_figure(1, 3.4)
    lowest = 100.0
    for (name, z), (color, dash) in zip(vectors.items(), lines, strict=False):
        values = singular_values(z)
        share = (100 * values / values.sum()).numpy()
        # values below float32's rounding of the largest are noise
        share = share[share > 1e-6 * share[0]]
        lowest = min(lowest, share[-1])
        rank = np.arange(1, len(share) + 1)
        words = f"{name} (effective rank {entropy_rank(values):.1f})"
        axis.plot(rank, share, dash, color=color, label=words, marker="o" if len(share) == 1 else "")
    axis.set(yscale="log", xlabel="singular value, the largest first", ylabel="share of their sum (%)")
    axis.set_ylim(bottom=lowest / 1.5)
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.grid(axis="y")
    axis.legend(loc="upper right")
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def landscape(data: Landscape, path: Path | str) -> None:
    """Draw the contrastive loss along the median and the sharpest direction in weight space.

    Args:
        data: landscape from `representation_health`.
        path: path of the PNG.
    """
    figure, (axis,) = new_figure(1, 3.4)
    axis.axvline(0, color=INK, linewidth=0.8, dashes=(1, 3))
    for losses, (color, mark), name in zip(
        (data.median, data.sharpest), ((BLUE, "o-"), (ORANGE, "s--")), ("median", "sharpest"), strict=True
    ):
        axis.plot(data.radii, losses, mark, color=color, ms=4, label=f"{name} of {data.candidates} directions")
    note = f"(1: each filter moves by its own norm; directions compared at {data.radius:g})"
    axis.set(xlabel=f"distance in weight space\n{note}", ylabel="contrastive loss (nats)")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.02)
    axis.grid(axis="y")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def downstream_loss(curves: Mapping[str, Mapping[str, LossCurves]], path: Path | str) -> None:
    """Draw the downstream loss along the weights of classifiers: a panel for each protocol, in it a color for each
    encoder, clean solid and attacked dashed.

    Args:
        curves: by protocol and name of the encoder, at most four.
        path: path of the PNG.

    Raises:
        ValueError: if there is none, or more than four encoders.
    """
    encoders = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    if not 1 <= len(encoders) <= len(MARKERS_OF_CURVES):
        raise ValueError(f"{len(encoders)} encoders are given: expected 1 to {len(MARKERS_OF_CURVES)}")
    # two names of usual runs do not fit beside each other
    columns = 2 if max(map(len, encoders)) <= 20 else 1
    figure, axes = new_figure(len(curves), 0.9 + 2.8 * len(curves) + (2 - columns) * 0.5 * len(encoders), sharex=True)
    for axis, (protocol, panel) in zip(axes, curves.items(), strict=True):
        for name, found in panel.items():
            marker, color = MARKERS_OF_CURVES[encoders.index(name)]
            for losses, dash, kind in ((found.clean, "-", "clean"), (found.attacked, "--", "attacked")):
                words = label(f"{name}, {kind}", width=50)
                axis.plot(found.radii, losses, f"{marker}{dash}", color=color, ms=4, label=words)
        axis.axvline(0, color=INK, linewidth=0.8, dashes=(1, 3))
        axis.set(ylabel="cross entropy (nats)", title=protocol.upper(), yscale="log")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.margins(x=0.02)
        axis.grid(axis="y")
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncols=columns)
    axes[-1].set_xlabel("distance in weight space (1: each filter moves by its own norm)")
    save_figure(figure, path)
