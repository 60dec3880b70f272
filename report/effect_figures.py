"""Figures of what regularizers do to Q: effects, effects beside accuracy, and Q against accuracy among networks."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from report import findings
from report.intervals import means_by
from report.style import (
    REGULARIZERS,
    VALUES,
    WIDTH,
    NothingToShow,
    bars,
    crop,
    figure,
    label,
    line_style,
    method_panels,
    note,
)
from report.text import number, signed


@figure
def effects(table):
    """Finding 1: the change of Q from the weakest to the strongest usable regularization, per method."""
    regularizers = list(table["regularizer"].unique())
    if not regularizers:
        raise NothingToShow("No regularizer has two usable strengths.")
    methods = findings.present_methods(table)
    fig, axes = plt.subplots(1, len(regularizers), figsize=(WIDTH, 2.3), sharex=True, sharey=True, squeeze=False)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
    for ax, regularizer in zip(axes[0], regularizers, strict=True):
        rows = table[table["regularizer"] == regularizer]
        lengths = bars(rows, "change", "change_low", "change_high").T
        for row, length in zip(rows.itertuples(), lengths, strict=True):
            y = -methods.index(row.assoc)
            ax.errorbar(row.change, y, xerr=length[:, None], **line_style(row.assoc) | {"linestyle": ""})
            beside = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "left"}
            ax.annotate(f"ρ = {signed(row.rho)}", (1.0, y), fontsize=6, color="0.3", **beside)
        ax.axvline(0, color="0.5", linewidth=0.6)
        ax.set_title(f"{REGULARIZERS[regularizer].label} up to {number(rows['at'].max())}")
        ax.set_xlabel("change of Q")
    axes[0, 0].set_yticks([-i for i in range(len(methods))], [label(m) for m in methods])
    note(fig, "Bars: 95% intervals (Welch's t). ρ: rank correlation of Q with strength over all networks.")
    return fig


@figure
def modularity_at_accuracy(results, value="score"):
    """Mean Q against mean test accuracy along each regularizer's usable grid, per method: effects at equal accuracy.

    The vertical line is the lowest accuracy that all regularizers reach, at which the table compares them.
    """
    curves = findings.accuracy_curves(results, value)
    if not len(curves):
        raise NothingToShow("No regularizer has two usable strengths.")
    fig, panels = method_panels(findings.present_methods(curves), 3.6, "mean test accuracy", VALUES[value])
    for method, ax in panels.items():
        for regularizer, rows in curves[curves["assoc"] == method].groupby("regularizer", sort=False):
            shown = REGULARIZERS[regularizer]
            accuracy = rows.groupby("strength")["test_acc"].mean().to_numpy()
            means = means_by(rows, ["strength"], value)
            lengths = bars(means, "mean", "low", "high")
            style = {"color": shown.color, "marker": shown.marker, "markersize": 2.5, "elinewidth": 0.6}
            ax.errorbar(accuracy, means["mean"], yerr=lengths, label=shown.label, **style)
        ax.axvline(findings.shared_accuracy(curves), color="0.5", linewidth=0.6, linestyle=":")
    ax.invert_xaxis()
    crop(ax, curves, value, ["assoc"])
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    note(
        fig, "Left to right: more regularization. Bars: 95% intervals of mean Q. Dotted: the lowest accuracy all reach."
    )
    return fig


@figure
def modularity_vs_accuracy(results, correlations):
    """Q against test accuracy of every usable trained network, per method; titles give the rank correlations."""
    usable = findings.trained(findings.usable(results.modules, results.models))
    networks = findings.per_network(usable, ["score", "test_acc"])
    fig, panels = method_panels(findings.present_methods(usable), 3.6, VALUES["score"], "test accuracy")
    for method, ax in panels.items():
        for part in findings.REGULARIZERS:
            rows = networks[(networks["assoc"] == method) & (networks["part"] == part)]
            if len(rows):
                shown = REGULARIZERS[part]
                hollow = {"markersize": 2.5, "markerfacecolor": "none", "markeredgewidth": 0.6}
                title = f"{shown.label} grid"
                ax.plot(rows["score"], rows["test_acc"], shown.marker, color=shown.color, label=title, **hollow)
        title = label(method)
        for row in correlations[correlations["assoc"] == method].itertuples():
            title += f"\nρ = {signed(row.overall)}"
            if not np.isnan(row.low):
                title += f", matched {signed(row.matched)}\n[{signed(row.low)}, {signed(row.high)}]"
        ax.set_title(title, color=line_style(method)["color"], fontsize=6.5)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
