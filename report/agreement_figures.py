"""The study's figures of agreement: how alike the clusterings of different methods are."""

import matplotlib.pyplot as plt
import numpy as np

from associations import METHODS, UPSTREAM
from report import findings
from report.style import SYMBOLS, WIDTH, figure, label

MEASURES = {
    "element_sim": "element-centric similarity",
    "score": "alignment score",
    "rmi_norm": "reduced mutual information (normalised)",
    "vi_norm": "mutual information (normalised)",
    "adj_spearman_r": "rank correlation of matrices",
}


@figure
def agreement(table, authors=None):
    """Finding 2: agreement between methods within upstream, within downstream and across, untrained and trained.

    Args: authors: the same table of the original program's network, drawn as stars.
    """
    measures = {
        "element_sim": "element-centric\nsimilarity",
        "excess": "alignment score\nabove shuffled clusterings",
        "rmi_norm": "reduced mutual\ninformation (normalised)",
    }
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.6), sharex=True)
    conditions = list(table["condition"].unique())
    for ax, (measure, name) in zip(axes, measures.items(), strict=True):
        for i, (condition, color) in enumerate(
            zip(conditions, ("0.6", "black", "#0072B2", "#D55E00", "#009E73"), strict=False)
        ):
            rows = table[table["condition"] == condition].set_index("group").reindex(findings.GROUPS)
            x = np.arange(3) + (i - (len(conditions) - 1) / 2) * 0.15
            bars = np.abs(rows[[f"{measure}_low", f"{measure}_high"]].to_numpy().T - rows[measure].to_numpy())
            title = f"{SYMBOLS.get(condition, condition)} (n = {rows['n'].max():.0f})"
            ax.errorbar(
                x, rows[measure], yerr=np.nan_to_num(bars), linestyle="", color=color, marker="xosD^"[i], label=title
            )
        if authors is not None and len(authors):
            rows = authors[authors["condition"] == "trained"].set_index("group").reindex(findings.GROUPS)
            star = {"linestyle": "", "marker": "*", "color": "black"}
            ax.errorbar(np.arange(3) + 0.42, rows[measure], **star, label="original program, MNIST (n = 1)")
        if measure != "element_sim":
            ax.axhline(0, color="0.5", linewidth=0.6)
        ax.set_ylabel(name)
        ax.set_xticks(range(3), ["within\nupstream", "within\ndownstream", "across"])
    axes[0].set_ylim(0, None)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.2)
    return fig


def agreement_panel(ax, values, low, high, cmap):
    """One 8 × 8 matrix of agreement with its numbers, and lines between upstream and downstream."""
    image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high)
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values.iloc[i, j]):
            red, green, blue, _ = image.cmap(image.norm(values.iloc[i, j]))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            ax.text(
                j,
                i,
                f"{values.iloc[i, j]:.2f}".replace("0.", ".", 1),
                ha="center",
                va="center",
                fontsize=4.8,
                color="white" if dark else "black",
            )
    ax.axhline(len(UPSTREAM) - 0.5, color="black", linewidth=0.8)
    ax.axvline(len(UPSTREAM) - 0.5, color="black", linewidth=0.8)
    ax.set_xticks(range(len(METHODS)), [label(m) for m in METHODS], rotation=90, fontsize=5.5)
    ax.set_yticks(range(len(METHODS)), [label(m) for m in METHODS], fontsize=5.5)
    ax.label_outer()
    return image


@figure
def alignment_matrices(tables, measure="element_sim", difference=False):
    """Mean agreement of each pair of methods, one panel for each of some tables of alignments.

    Args:
        tables: {title: rows of an alignment table}.
        difference: add a panel, the last table's matrix less the first one's.
    """
    matrices = {
        f"{title} (n = {networks(table)})": findings.alignment_matrix(table, measure) for title, table in tables.items()
    }
    panels = len(matrices) + difference
    columns = min(3, panels)
    rows = -(-panels // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH * max(columns, 2) / 3, 2.0 * rows + 1.5),
        squeeze=False,
        layout="compressed",
        sharex=True,
        sharey=True,
    )
    for ax in axes.flat[panels:]:
        ax.set_axis_off()
    for ax, (title, values) in zip(axes.flat, matrices.items(), strict=False):
        image = agreement_panel(ax, values, 0, 1, "cividis")
        ax.set_title(title)
    fig.colorbar(
        image, ax=axes[:, : columns - difference], location="bottom", shrink=0.5, aspect=40, label=MEASURES[measure]
    )
    if difference:
        first, *_, last = matrices.values()
        ax = axes.flat[panels - 1]
        image = agreement_panel(ax, last - first, -0.4, 0.4, "PuOr_r")
        ax.set_title("difference")
        fig.colorbar(image, ax=ax, location="bottom", shrink=0.9, aspect=20, label="difference")
    return fig


def networks(align):
    """Number of networks in a table of alignments."""
    return len(align.drop_duplicates([name for name in ("part", "l2", "l1", "drop", "run") if name in align]))


@figure
def measure_correlations(align, measures=tuple(MEASURES)):
    """Rank correlations between the measures of agreement over all pairs of different methods, layers and networks."""
    values = findings.measure_correlations(align, measures)
    fig, ax = plt.subplots(figsize=(WIDTH * 0.7, 2.6))
    image = ax.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1)
    for i, j in np.ndindex(values.shape):
        ax.text(
            j,
            i,
            f"{values.iloc[i, j]:.2f}",
            ha="center",
            va="center",
            color="white" if abs(values.iloc[i, j]) > 0.7 else "black",
        )
    ax.set_xticks(range(len(measures)), [m.replace("_", "\n", 1) for m in measures])
    ax.set_yticks(range(len(measures)), [MEASURES[m] for m in measures])
    ax.set_aspect("auto")
    fig.colorbar(image, shrink=0.8, label="Spearman's ρ")
    return fig
