"""The study's figures of trainings: accuracy and norms of weights against regularisation."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter

from analysis import ACCURACIES
from report import findings
from report.style import (
    VALUES,
    WIDTH,
    caption,
    curve,
    figure,
    number,
    strength_axis,
    too_much_shade,
    untrained_band,
)

# ---- training -------------------------------------------------------------------------------------------------------


@figure
def accuracy_vs_regularization(models):
    """Train, validation and test accuracy against each regulariser; the axis spreads out both ends, and ends at 0.9998,
    which is where 1 is drawn."""
    regularizers = findings.present_regularizers(models)
    fig, axes = plt.subplots(1, len(regularizers), figsize=(WIDTH, 2.3), sharey=True, squeeze=False)
    for ax, regularizer in zip(axes[0], regularizers, strict=True):
        rows = findings.along(models, regularizer)
        place = strength_axis(ax, regularizer, rows["strength"])
        for name, color, marker in zip(ACCURACIES, ("0.6", "#56B4E9", "black"), "^so", strict=True):
            shown = rows.assign(**{name: rows[name].clip(upper=0.9998)})
            curve(ax, place, shown, name, color=color, marker=marker, label=name.removesuffix("_acc"))
        untrained_band(ax, findings.untrained(models)["test_acc"])
        ax.axhline(models["pass_mark"].iloc[0], color="0.5", linewidth=0.6, linestyle=":")
        too_much_shade(ax, findings.failures(models), regularizer, place)
    axes[0, 0].set_yscale("logit", one_half="0.5")
    axes[0, 0].set_ylim(0.06, 0.99987)
    ticks = [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    axes[0, 0].set_yticks([*ticks, 0.9998], [*map("{:g}".format, ticks), "1"])
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("accuracy")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption(fig, models)
    return fig


@figure
def norms_vs_regularization(models):
    """Norms of the weights, and their sparsity, against each regulariser."""
    regularizers = findings.present_regularizers(models)
    names = ("l1_norm", "l2_norm", "nuc_norm", "sparsity")
    fig, axes = plt.subplots(4, len(regularizers), figsize=(WIDTH, 5.2), sharey="row", sharex="col", squeeze=False)
    for column, regularizer in zip(axes.T, regularizers, strict=True):
        rows = findings.along(models, regularizer)
        for ax, name in zip(column, names, strict=True):
            place = strength_axis(ax, regularizer, rows["strength"])
            curve(ax, place, rows, name, color="black", marker="o")
            untrained_band(ax, findings.untrained(models)[name])
            too_much_shade(ax, findings.failures(models), regularizer, place)
            if name != "sparsity":
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
            ax.label_outer()
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(VALUES[name])
    caption(fig, models)
    return fig


@figure
def failures_vs_regularization(models):
    """Share of the runs that fail to learn against each regulariser: how much is too much?"""
    failed = findings.failures(models)
    regularizers = findings.present_regularizers(models)
    fig, axes = plt.subplots(1, len(regularizers), figsize=(WIDTH, 1.9), sharey=True, squeeze=False)
    for ax, regularizer in zip(axes[0], regularizers, strict=True):
        rows = failed[failed["regularizer"] == regularizer]
        place = strength_axis(ax, regularizer, rows["strength"])
        ax.plot(place(rows["strength"]), rows["failed"], color="black", marker="o", clip_on=False)
        ax.axhline(0.5, color="0.5", linewidth=0.6, linestyle=":")
        first = rows.loc[rows["too_much"], "strength"].min()
        ax.set_title("no strength is too much" if np.isnan(first) else f"too much from {number(first)}")
        ax.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel(f"share of runs below\n{models['pass_mark'].iloc[0]:g} test accuracy")
    return fig
