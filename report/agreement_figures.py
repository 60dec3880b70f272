"""The study's figures of agreement: how alike the clusterings of different methods are."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from associations import UPSTREAM
from report.agreement import GROUPS, alignment_matrix
from report.agreement import measure_correlations as correlations
from report.experiments import NETWORK
from report.style import REGULARIZERS, TRAINED, UNTRAINED, WIDTH, NothingToShow, bars, figure, heat_map, label

MEASURES = {
    "element_sim": "element-centric similarity",
    "score": "alignment score",
    "rmi_norm": "reduced mutual information (normalized)",
    "vi_norm": "mutual information (normalized)",
    "adj_spearman_r": "rank correlation of matrices",
}
GROUP_MEASURES = {
    "element_sim": "element-centric similarity\n(dashes: expected by chance)",
    "adjusted": "element-centric similarity\nbeyond chance",
    "rmi_norm": "reduced mutual\ninformation (normalized)",
}


@figure
def agreement(table, authors=None):
    """Finding 2: agreement between methods within upstream, within downstream and across, untrained and trained.

    Args: authors: the same table of the original program's network, drawn as stars.
    """
    if not len(table):
        raise NothingToShow("No alignments of different methods in these tables.")
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.6), sharex=True)
    conditions = list(table["condition"].unique())
    styles = {"untrained": (UNTRAINED, "x"), "trained": (TRAINED, "o")}
    styles |= {name: (shown.color, shown.marker) for name, shown in REGULARIZERS.items()}
    for ax, (measure, name) in zip(axes, GROUP_MEASURES.items(), strict=True):
        for i, condition in enumerate(conditions):
            rows = table[table["condition"] == condition].set_index("group").reindex(GROUPS)
            color, marker = styles[condition]
            x = np.arange(3) + (i - (len(conditions) - 1) / 2) * 0.15
            lengths = bars(rows, measure, f"{measure}_low", f"{measure}_high")
            shown = REGULARIZERS[condition].label if condition in REGULARIZERS else condition
            title = f"{shown} (n = {rows['n'].max():.0f})"
            ax.errorbar(x, rows[measure], yerr=lengths, linestyle="", color=color, marker=marker, label=title)
            if measure == "element_sim":
                ax.hlines(rows["expected"], x - 0.06, x + 0.06, color=color, linewidth=1.2)
        if authors is not None and len(authors):
            rows = authors[authors["condition"] == "trained"].set_index("group").reindex(GROUPS)
            star = {"linestyle": "", "marker": "*", "color": "black"}
            ax.errorbar(np.arange(3) + 0.42, rows[measure], **star, label="original program, MNIST (n = 1)")
        if measure != "element_sim":
            ax.axhline(0, color="0.5", linewidth=0.6)
        ax.set_ylabel(name)
        ax.set_xticks(range(3), [group.replace(" ", "\n") for group in GROUPS])
    axes[0].set_ylim(0, None)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.2)
    return fig


def agreement_panel(ax, values, low, high, cmap):
    """One matrix of agreement between methods with its numbers, and lines between upstream and the others."""
    image = heat_map(ax, values, low, high, cmap, 4.8)
    border = sum(method in UPSTREAM for method in values.index) - 0.5
    ax.axhline(border, color="black", linewidth=0.8)
    ax.axvline(border, color="black", linewidth=0.8)
    names = [label(method) for method in values.index]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=5.5)
    ax.set_yticks(range(len(names)), names, fontsize=5.5)
    ax.label_outer()
    return image


@figure
def alignment_matrices(tables, measure="element_sim", difference=False):
    """Mean agreement of each pair of methods, one panel for each of some tables of alignments.

    Args:
        tables: {title: rows of an alignment table}; empty ones are left out.
        difference: add a panel, the last table's matrix less the first one's.
    """
    tables = {title: table for title, table in tables.items() if len(table)}
    if not tables:
        raise NothingToShow("No alignments in these tables.")
    matrices = {f"{title} (n = {networks(table)})": alignment_matrix(table, measure) for title, table in tables.items()}
    methods = alignment_matrix(pd.concat(tables.values()), measure).index
    matrices = {title: values.reindex(index=methods, columns=methods) for title, values in matrices.items()}
    difference = difference and len(matrices) > 1
    panels = len(matrices) + difference
    columns = min(3, panels)
    rows = -(-panels // columns)
    size = (WIDTH * max(columns, 2) / 3, 2.0 * rows + 1.5)
    options = {"squeeze": False, "layout": "compressed", "sharex": True, "sharey": True}
    fig, axes = plt.subplots(rows, columns, figsize=size, **options)
    for ax in axes.flat[panels:]:
        ax.set_axis_off()
    for ax, (title, values) in zip(axes.flat, matrices.items(), strict=False):
        image = agreement_panel(ax, values, 0, 1, "cividis")
        ax.set_title(title)
    below = {"location": "bottom", "aspect": 40}
    fig.colorbar(image, ax=axes[:, : columns - difference], shrink=0.5, label=MEASURES[measure], **below)
    if difference:
        first, *_, last = matrices.values()
        ax = axes.flat[panels - 1]
        image = agreement_panel(ax, last - first, -0.4, 0.4, "PuOr_r")
        ax.set_title("difference")
        fig.colorbar(image, ax=ax, shrink=0.9, label="difference", **below | {"aspect": 20})
    return fig


def networks(align):
    """Number of networks in a table of alignments."""
    return len(align.drop_duplicates([name for name in NETWORK if name in align]))


@figure
def measure_correlations(align, measures=tuple(MEASURES)):
    """Rank correlations between the measures of agreement over all pairs of different methods, layers and networks."""
    if not len(align):
        raise NothingToShow("No alignments in these tables.")
    fig, ax = plt.subplots(figsize=(WIDTH * 0.7, 2.6))
    image = heat_map(ax, correlations(align, measures), -1, 1, "PuOr_r", 7)
    ax.set_xticks(range(len(measures)), [m.replace("_", "\n", 1) for m in measures])
    ax.set_yticks(range(len(measures)), [MEASURES[m] for m in measures])
    ax.set_aspect("auto")
    fig.colorbar(image, shrink=0.8, label="Spearman's ρ")
    return fig
