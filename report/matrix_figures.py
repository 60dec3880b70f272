"""The study's figures of matrices: associations between units, as numbered and sorted by cluster."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm

from associations import METHOD_TABLE
from modularity import girvan_newman, sort_by_cluster
from report import findings
from report.style import COLORS, PER_ROW, WIDTH, NothingToShow, by_family, figure, label, note

SHOWN = tuple(method.name for method in METHOD_TABLE if method.shown)
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


def evaluated(examples):
    """The rows whose matrix was clustered, and their methods; NothingToShow if there are none."""
    examples = examples[examples["score"].notna()] if len(examples) else examples
    if not len(examples):
        raise NothingToShow("No matrices in these tables: they need the evaluated checkpoints.")
    return examples, findings.present_methods(examples)


@figure
def sorted_matrices(examples):
    """Association matrices of one layer of one network, by method: units as numbered, and sorted by cluster.

    Args: examples: rows with assoc, score, adj, clusters, one per method.
    """
    examples, methods = evaluated(examples)
    matrices = {row.assoc: row for row in examples.itertuples()}
    rows = [family[i : i + PER_ROW] for family in by_family(methods).values() for i in range(0, len(family), PER_ROW)]
    columns = max(map(len, rows))
    scale = max(columns, 3) / PER_ROW  # any smaller, and the labels do not fit
    fig, axes = plt.subplots(2 * len(rows), columns, figsize=(WIDTH * scale, 3.8 * len(rows) * scale), squeeze=False)
    for pair, names in zip(axes.reshape(len(rows), 2, columns), rows, strict=True):
        for ax in pair[:, len(names) :].flat:
            ax.remove()
        for above, below, name in zip(*pair[:, : len(names)], names, strict=True):
            row = matrices[name]
            matrix(above, row.adj)
            matrix(below, row.adj, *order_of(row.clusters))
            above.set_title(label(name), color=COLORS.get(name, "black"))
            below.set_title(f"Q = {row.score:.3f}, {int(row.clusters.any(0).sum())} clusters")
        pair[0, 0].set_ylabel("units as numbered")
        pair[1, 0].set_ylabel("units by cluster")
    note(fig, SHADES)
    return fig


@figure
def matrices_in_each_order(examples):
    """Each method's matrix (rows) in the order of each method's clusters (columns), and its Q under them."""
    examples, methods = evaluated(examples)
    shown = [examples[examples["assoc"] == method].iloc[0] for method in SHOWN if method in methods]
    if not shown:
        raise NothingToShow(f"None of {', '.join(SHOWN)} was evaluated.")
    fig, axes = plt.subplots(len(shown), len(shown), figsize=(WIDTH, WIDTH * 1.08), squeeze=False)
    for row, a in zip(axes, shown, strict=True):
        for ax, b in zip(row, shown, strict=True):
            matrix(ax, a.adj, *order_of(b.clusters))
            q = f"Q = {modularity(a.adj, b.clusters):.3f}"
            ax.set_xlabel(q, labelpad=2, fontweight="bold" if a is b else "normal")
        row[0].set_ylabel(f"{label(a.assoc)}\nmatrix", color=COLORS[a.assoc])
    for ax, b in zip(axes[0], shown, strict=True):
        ax.set_title(f"by {label(b.assoc)}\nclusters", color=COLORS[b.assoc])
    note(fig, SHADES)
    return fig


@figure
def matrices_vs_dropout(examples, layer=0):
    """Matrices of one layer, sorted by cluster, from untrained to much dropout (columns), by method (rows)."""
    examples, _ = evaluated(examples[examples["layer"] == layer] if len(examples) else examples)
    methods = [method for method in SHOWN if (examples["assoc"] == method).any()]
    titles = {"dummy": "untrained", "l2": "dropout 0"}
    columns = {}
    for row in examples.itertuples():
        columns.setdefault(titles.get(row.part, f"dropout {row.drop:g}"), {})[row.assoc] = row
    if not methods:
        raise NothingToShow(f"None of {', '.join(SHOWN)} was evaluated.")
    size = (WIDTH, 1.22 * len(methods) * 6 / max(6, len(columns)) + 0.4)
    fig, axes = plt.subplots(len(methods), len(columns), figsize=size, squeeze=False)
    for column, (title, rows) in zip(axes.T, columns.items(), strict=True):
        for ax, method in zip(column, methods, strict=True):
            if method in rows:
                matrix(ax, rows[method].adj, *order_of(rows[method].clusters))
                ax.set_xlabel(f"Q = {rows[method].score:.3f}", labelpad=2)
            else:
                ax.set_axis_off()
        column[0].set_title(title)
    for ax, method in zip(axes[:, 0], methods, strict=True):
        ax.set_ylabel(label(method), color=COLORS[method])
    note(fig, SHADES)
    return fig
