"""The study's figures of matrices: associations between units, as numbered and sorted by cluster."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm

from associations import METHOD_TABLE
from modularity import girvan_newman, sort_by_cluster
from report.style import COLORS, WIDTH, figure, label, note, placeholder

SHOWN = tuple(method.name for method in METHOD_TABLE if method.shown)
NO_MATRICES = "No matrices in these tables: they need the evaluated checkpoints."
SHADES = "Darker is stronger (square-root scale up to each matrix's 99th percentile); lines separate clusters."


def order_of(clusters):
    """Order of the units that puts clusters together, and the positions between one cluster and the next."""
    order = sort_by_cluster(torch.from_numpy(np.asarray(clusters))).numpy()
    labels = np.where(clusters.any(1), clusters.argmax(1), -1)[order]
    return order, np.flatnonzero(np.diff(labels)) + 0.5


def matrix(ax, adj, order=None, borders=()):
    """One association matrix in shades of grey, relative to its 99th percentile; square-root scale."""
    order = np.arange(len(adj)) if order is None else order
    top = np.percentile(adj, 99) or 1
    ax.imshow(adj[np.ix_(order, order)], cmap="Greys", norm=PowerNorm(0.5, 0, top, clip=True), interpolation="nearest")
    for border in borders:
        ax.axhline(border, color="#D55E00", linewidth=0.5)
        ax.axvline(border, color="#D55E00", linewidth=0.5)
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)


def modularity(adj, clusters):
    """Q of clusters on a matrix, both arrays."""
    return girvan_newman(torch.from_numpy(adj), torch.from_numpy(clusters)).item()


@figure
def sorted_matrices(examples):
    """Association matrices of one layer of one network, by method: units as numbered, and sorted by cluster.

    Args: examples: rows with assoc, score, adj, clusters, one per method.
    """
    examples = examples[examples["score"].notna()] if len(examples) else examples
    if not len(examples):
        return placeholder(NO_MATRICES)
    n = len(examples)
    fig, axes = (
        plt.subplots(4, 4, figsize=(WIDTH, 7.6)) if n > 4 else plt.subplots(2, n, figsize=(WIDTH, 3.9), squeeze=False)
    )
    for ax in axes.flat[2 * n :]:
        ax.remove()
    for i, row in enumerate(examples.itertuples()):
        above = axes[2 * (i // 4), i % 4]
        below = axes[2 * (i // 4) + 1, i % 4]
        matrix(above, row.adj)
        matrix(below, row.adj, *order_of(row.clusters))
        above.set_title(label(row.assoc), color=COLORS.get(row.assoc, "black"))
        below.set_title(f"Q = {row.score:.3f}, {int(row.clusters.any(0).sum())} clusters")
    for i in range(0, len(axes), 2):
        axes[i, 0].set_ylabel("units as numbered")
        axes[i + 1, 0].set_ylabel("units by cluster")
    note(fig, SHADES)
    return fig


@figure
def matrices_in_each_order(examples):
    """Each method's matrix (rows) in the order of each method's clusters (columns), and its Q under them."""
    if not len(examples):
        return placeholder(NO_MATRICES)
    shown = [examples[examples["assoc"] == method].iloc[0] for method in SHOWN if (examples["assoc"] == method).any()]
    fig, axes = plt.subplots(len(shown), len(shown), figsize=(WIDTH, WIDTH * 1.08), squeeze=False)
    for row, a in zip(axes, shown, strict=True):
        for ax, b in zip(row, shown, strict=True):
            matrix(ax, a.adj, *order_of(b.clusters))
            ax.set_xlabel(
                f"Q = {modularity(a.adj, b.clusters):.3f}", labelpad=2, fontweight="bold" if a is b else "normal"
            )
        row[0].set_ylabel(f"{label(a.assoc)}\nmatrix", color=COLORS[a.assoc])
    for ax, b in zip(axes[0], shown, strict=True):
        ax.set_title(f"by {label(b.assoc)}\nclusters", color=COLORS[b.assoc])
    note(fig, SHADES)
    return fig


@figure
def matrices_vs_dropout(examples, layer=0):
    """Matrices of one layer, sorted by cluster, from untrained to much dropout (columns), by method (rows)."""
    examples = examples[examples["layer"] == layer] if len(examples) else examples
    if not len(examples):
        return placeholder(NO_MATRICES)
    titles = {
        "dummy": lambda row: "untrained",
        "l2": lambda row: "dropout 0",
        "drop": lambda row: f"dropout {row.drop:g}",
    }
    columns = {}
    for row in examples.itertuples():
        columns.setdefault(titles[row.part](row), {})[row.assoc] = row
    fig, axes = plt.subplots(
        len(SHOWN), len(columns), figsize=(WIDTH, 1.22 * len(SHOWN) * 6 / max(6, len(columns)) + 0.4), squeeze=False
    )
    for column, (title, rows) in zip(axes.T, columns.items(), strict=True):
        for ax, method in zip(column, SHOWN, strict=True):
            matrix(ax, rows[method].adj, *order_of(rows[method].clusters))
            ax.set_xlabel(f"Q = {rows[method].score:.3f}", labelpad=2)
        column[0].set_title(title)
    for ax, method in zip(axes[:, 0], SHOWN, strict=True):
        ax.set_ylabel(label(method), color=COLORS[method])
    note(fig, SHADES)
    return fig
