"""The study's figures of trainings: accuracy and norms of weights against regularization."""

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from analysis import ACCURACIES
from report import findings
from report.style import VALUES, caption, curve, figure, regularizer_panels, untrained_band
from report.text import number

ALMOST_ONE = 0.9998  # where an accuracy of 1 is drawn


@figure
def accuracy_vs_regularization(models):
    """Train, validation and test accuracy against each regularizer; the axis spreads out both ends, and ends at 0.9998,
    which is where 1 is drawn."""
    models = findings.evaluated(models)
    fig, axes, columns = regularizer_panels(models, models)
    for _, (ax,), rows, place in columns:
        for name, color, marker in zip(ACCURACIES, ("0.6", "#56B4E9", "black"), "^so", strict=True):
            shown = rows.assign(**{name: rows[name].clip(upper=ALMOST_ONE)})
            curve(ax, place, shown, name, color=color, marker=marker, label=name.removesuffix("_acc"))
        untrained_band(ax, findings.untrained(models)["test_acc"])
        ax.axhline(models["pass_mark"].iloc[0], color="0.5", linewidth=0.6, linestyle=":")
    axes[0, 0].set_yscale("logit", one_half="0.5")
    axes[0, 0].set_ylim(0.06, 0.99987)
    ticks = [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    axes[0, 0].set_yticks([*ticks, ALMOST_ONE], [*map("{:g}".format, ticks), "1"])
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("accuracy")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption(fig, models)
    return fig


@figure
def norms_vs_regularization(models):
    """Norms of the weights, and their sparsity, against each regularizer."""
    names = ("l1_norm", "l2_norm", "nuc_norm", "sparsity")
    models = findings.evaluated(models)
    fig, axes, columns = regularizer_panels(models, models, rows=len(names), height=5.2)
    for _, column, rows, place in columns:
        for ax, name in zip(column, names, strict=True):
            curve(ax, place, rows, name, color="black", marker="o")
            untrained_band(ax, findings.untrained(models)[name])
            if name != "sparsity":
                ax.set_yscale("log")
            ax.label_outer()
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(VALUES[name])
        if name != "sparsity":
            label_log_axis(ax.yaxis)
    caption(fig, models)
    return fig


def label_log_axis(axis):
    """Labels a logarithmic axis at powers of ten; of up to two decades at 1, 2 and 5 times these as well, and a shorter
    one at a few round numbers."""
    decades = np.ptp(np.log10(axis.get_view_interval()))
    powers = LogLocator(subs=[1] if decades > 2 else [1, 2, 5])
    axis.set_major_locator(powers if decades > 0.8 else MaxNLocator(4))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


@figure
def failures_vs_regularization(models):
    """Share of the runs that fail to learn against each regularizer: how much is too much?"""
    models = findings.evaluated(models)
    failed = findings.failures(models)
    fig, axes, columns = regularizer_panels(models, models, height=1.9)
    for regularizer, (ax,), _, place in columns:
        rows = failed[failed["regularizer"] == regularizer]
        ax.plot(place(rows["strength"]), rows["failed"], color="black", marker="o", clip_on=False)
        ax.axhline(0.5, color="0.5", linewidth=0.6, linestyle=":")
        first = rows.loc[rows["too_much"], "strength"].min()
        ax.set_title("no strength is too much" if np.isnan(first) else f"too much from {number(first)}")
        ax.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel(f"share of runs below\n{models['pass_mark'].iloc[0]:g} test accuracy")
    return fig
