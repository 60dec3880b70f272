"""The study's figures about modules: Q and cluster counts against regularisation and depth, and both findings."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from associations import DOWNSTREAM, METHODS, UPSTREAM
from report import findings
from report.style import (
    COLORS,
    SYMBOLS,
    VALUES,
    WIDTH,
    beside,
    caption,
    count,
    curve,
    figure,
    label,
    line_style,
    note,
    number,
    placeholder,
    signed,
    strength_axis,
    too_much_shade,
    untrained_band,
)
from study import grids

# ---- modularity -----------------------------------------------------------------------------------------------------


@figure
def modules_vs_regularization(results, value="score"):
    """Q (or another column) of all methods against each regulariser, mean over layers; upstream above."""
    modules = findings.per_network(results.modules, [value])
    regularizers = findings.present_regularizers(modules)
    fig, axes = plt.subplots(2, len(regularizers), figsize=(WIDTH, 3.8), sharey=True, sharex="col", squeeze=False)
    for row, family in zip(axes, (UPSTREAM, DOWNSTREAM), strict=True):
        for ax, regularizer in zip(row, regularizers, strict=True):
            rows = findings.along(modules, regularizer)
            place = strength_axis(ax, regularizer, rows["strength"])
            for method, shift in zip(family, (-1.5, -0.5, 0.5, 1.5), strict=True):
                curve(
                    ax,
                    beside(place, regularizer, shift),
                    rows[rows["assoc"] == method],
                    value,
                    label=label(method),
                    **line_style(method),
                )
            means = findings.untrained(modules)[lambda t, family=family: t["assoc"].isin(family)]
            untrained_band(ax, means.groupby("run")[value].mean())
            too_much_shade(ax, findings.failures(results.models), regularizer, place)
            ax.label_outer()
        row[0].set_ylabel(VALUES[value])
        row[-1].legend(
            loc="upper left",
            bbox_to_anchor=(1, 1),
            title="upstream" if family is UPSTREAM else "downstream",
            handlelength=3,
        )
    crop(axes[0, 0], findings.usable(modules, results.models), value, ["assoc"])
    caption(fig, modules)
    return fig


@figure
def modules_by_layer(results, regularizer, value="score", authors=None):
    """Q (or another column) of each method against one regulariser: a line per layer, and the untrained networks' band.

    Args: authors: a table of modules by the study's original program, drawn as stars where its hyperparameters fit.
    """
    rows = findings.along(results.modules, regularizer)
    layers = sorted(rows["layer"].unique())
    fig, axes = plt.subplots(2, 4, figsize=(WIDTH, 3.6), sharex=True, sharey=True)
    for ax, method in zip(axes.flat, METHODS, strict=True):
        place = strength_axis(ax, regularizer, rows["strength"])
        for layer, style in zip(layers, layer_styles(method, len(layers)), strict=True):
            curve(ax, place, rows[(rows["assoc"] == method) & (rows["layer"] == layer)], value, **style)
            for q in authors_values(authors, results, method, layer, value):
                ax.plot(
                    place(grids.L2_ALONE if regularizer == "l2" else 0.0),
                    q,
                    "*",
                    color=style["color"],
                    markersize=6,
                    markeredgecolor="black",
                    markeredgewidth=0.5,
                    zorder=5,
                )
        null = findings.untrained(results.modules)
        untrained_band(ax, null[null["assoc"] == method].groupby("run")[value].mean())
        too_much_shade(ax, findings.failures(results.models), regularizer, place)
        ax.set_title(label(method), color=COLORS[method])
        ax.label_outer()
    for ax in axes[:, 0]:
        ax.set_ylabel(VALUES[value])
    legend_of_layers(fig, layers, len(authors_values(authors, results, METHODS[0], layers[0], value)) > 0)
    crop(axes[0, 0], findings.usable(rows, results.models), value, ["assoc", "layer"])
    caption(fig, results.modules, regularizer)
    return fig


def crop(ax, table, value, by):
    """Ends the y axis at 1.5 times the highest mean in a table: the z of a failed network may be in the hundreds."""
    means = findings.means_by(table.dropna(subset=value), ["part", "l2", "l1", "drop", *by], value)
    highest = means[["mean", "high"]].max(axis=None)
    if highest > 0:
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.5 * highest))


def authors_values(authors, results, method, layer, value):
    """The original program's values for one method and layer, if it was run on this experiment's data set."""
    if authors is None or not len(authors) or not set(authors["dataset"]) & set(results.models["dataset"]):
        return []
    return authors.loc[(authors["assoc"] == method) & (authors["layer"] == layer), value].dropna()


def layer_styles(method, n):
    """Colour (darker with depth) and line of a method's layers."""
    style = line_style(method)
    rgb = np.array(plt.matplotlib.colors.to_rgb(style["color"]))
    for i in range(n):
        pale = 0.6 * (1 - i / max(1, n - 1))
        yield style | {
            "color": tuple(rgb + (1 - rgb) * pale),
            "marker": "os^DvP"[i % 6],
            "markersize": 3,
            "markerfacecolor": "white" if method in DOWNSTREAM else tuple(rgb + (1 - rgb) * pale),
        }


def legend_of_layers(fig, layers, authors=False):
    """Says which marker is which layer, to the right of the panels."""
    handles = [
        Line2D(
            [],
            [],
            color=str(0.6 * (1 - i / max(1, len(layers) - 1))),
            marker="os^DvP"[i % 6],
            markersize=3,
            label=f"layer {layer}",
        )
        for i, layer in enumerate(layers)
    ]
    if authors:
        handles.append(Line2D([], [], color="black", marker="*", linestyle="", label="original\nprogram"))
    fig.legend(handles=handles, loc="outside right center")


@figure
def modules_vs_depth(results, value="score"):
    """Q (or another column) of each method against depth: untrained, hardly regularised, and strongly regularised."""
    conditions = depth_conditions(results)
    fig, axes = plt.subplots(2, 4, figsize=(WIDTH, 3.4), sharex=True, sharey=True)
    greys = dict(
        zip(
            conditions,
            zip(("0.6", "black", "#0072B2", "#D55E00", "#009E73"), ("-", "-", "--", ":", "-."), "xosD^", strict=True),
            strict=False,
        )
    )
    for ax, method in zip(axes.flat, METHODS, strict=True):
        for (name, rows), shift in zip(conditions.items(), np.linspace(-0.08, 0.08, len(conditions)), strict=True):
            color, line, marker = greys[name]
            rows = rows[rows["assoc"] == method].assign(strength=lambda t: t["layer"])
            curve(
                ax,
                lambda x, shift=shift: np.asarray(x) + shift,
                rows,
                value,
                color=color,
                linestyle=line,
                marker=marker,
                markerfacecolor="white" if line != "-" else color,
                label=f"{name} ({count(rows)})",
            )
        ax.set_title(label(method), color=COLORS[method])
        ax.set_xticks(sorted(results.modules["layer"].unique()))
        ax.margins(x=0.12)
    for ax in axes[-1]:
        ax.set_xlabel("hidden layer")
    for ax in axes[:, 0]:
        ax.set_ylabel(VALUES[value])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    return fig


def depth_conditions(results):
    """Rows of the untrained, the least, and for each regulariser the most (usably) regularised networks."""
    modules = findings.usable(results.modules, results.models)
    conditions = {"untrained": findings.untrained(modules)}
    base = findings.along(modules, "drop")
    conditions["L2 = 1e-5"] = base[base["strength"] == 0]
    for regularizer in findings.present_regularizers(modules):
        rows = findings.along(modules, regularizer)
        top = rows["strength"].max()
        conditions[f"{SYMBOLS[regularizer].removesuffix(' weight')} = {number(top)}"] = rows[rows["strength"] == top]
    return {name: rows for name, rows in conditions.items() if len(rows)}


@figure
def null_distributions(results):
    """Q and number of clusters per method, layers pooled: untrained networks (boxes), hardly regularised ones (points).

    Bars: Q of matrices shuffled with their units' strengths kept.
    """
    null = findings.untrained(results.modules)
    base = findings.along(results.modules, "drop").query("strength == 0")
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.8), sharex=True)
    random = np.random.default_rng(0)
    for ax, value in zip(axes, ("score", "num_clusters"), strict=True):
        for i, method in enumerate(METHODS):
            untrained, trained = (t.loc[t["assoc"] == method] for t in (null, base))
            ax.boxplot(
                untrained[value].dropna(),
                positions=[i - 0.2],
                widths=0.3,
                showfliers=True,
                patch_artist=True,
                boxprops={"facecolor": "0.85", "linewidth": 0.6},
                medianprops={"color": "black"},
                flierprops={"markersize": 1.5},
                whiskerprops={"linewidth": 0.6},
                capprops={"linewidth": 0.6},
            )
            x = i + 0.2 + random.uniform(-0.1, 0.1, len(trained))
            ax.plot(x, trained[value], **line_style(method) | {"linestyle": "", "markersize": 3})
            if value == "score":
                for rows, at in ((untrained, i - 0.2), (trained, i + 0.2)):
                    ax.plot([at - 0.17, at + 0.17], [rows["null_mean"].mean()] * 2, color="black", linewidth=1.4)
        ax.set_ylabel(VALUES[value])
    axes[1].set_xticks(range(len(METHODS)), [label(m).replace(" ", "\n", 1) for m in METHODS])
    n = [t.drop_duplicates("run").shape[0] for t in (null, base)]
    note(
        fig,
        f"Boxes: layers of untrained networks (n = {n[0]}). Points: layers of networks trained with L2 = 1e-5 "
        f"(n = {n[1]}). Black bars: mean Q of shuffled matrices with the same strengths.",
    )
    return fig


# ---- findings -------------------------------------------------------------------------------------------------------


@figure
def effects(table):
    """Finding 1: the change of Q from the weakest to the strongest usable regularisation, per method."""
    regularizers = list(table["regularizer"].unique())
    fig, axes = plt.subplots(1, len(regularizers), figsize=(WIDTH, 2.3), sharex=True, sharey=True, squeeze=False)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
    for ax, regularizer in zip(axes[0], regularizers, strict=True):
        for row in table[table["regularizer"] == regularizer].itertuples():
            y = -METHODS.index(row.assoc)
            bars = np.abs(np.array([[row.change_low], [row.change_high]]) - row.change)
            ax.errorbar(row.change, y, xerr=np.nan_to_num(bars), **line_style(row.assoc) | {"linestyle": ""})
            ax.annotate(
                f"ρ = {signed(row.rho)}",
                (1.0, y),
                xycoords=("axes fraction", "data"),
                fontsize=6,
                va="center",
                ha="left",
                color="0.3",
            )
        ax.axvline(0, color="0.5", linewidth=0.6)
        at = table.loc[table["regularizer"] == regularizer, "at"].max()
        ax.set_title(f"{SYMBOLS[regularizer]} up to {number(at)}")
        ax.set_xlabel("change of Q")
    axes[0, 0].set_yticks([-i for i in range(len(METHODS))], [label(m) for m in METHODS])
    note(fig, "Bars: 95% bootstrap intervals over networks. ρ: rank correlation of Q with strength over all networks.")
    return fig


@figure
def modularity_vs_accuracy(results, correlations):
    """Q against test accuracy of every usable trained network, per method; titles give the rank correlations."""
    networks = findings.per_network(
        findings.trained(findings.usable(results.modules, results.models)), ["score", "test_acc"]
    )
    fig, axes = plt.subplots(2, 4, figsize=(WIDTH, 3.6), sharex=True, sharey=True)
    for ax, method in zip(axes.flat, METHODS, strict=True):
        for part, color, marker in (("drop", "#0072B2", "s"), ("l1", "#D55E00", "D"), ("l2", "#009E73", "^")):
            rows = networks[(networks["assoc"] == method) & (networks["part"] == part)]
            if len(rows):
                ax.plot(
                    rows["score"],
                    rows["test_acc"],
                    marker,
                    color=color,
                    markersize=2.5,
                    label=f"{SYMBOLS[part]} grid",
                    markerfacecolor="none",
                    markeredgewidth=0.6,
                )
        title = label(method)
        for row in correlations[correlations["assoc"] == method].itertuples():
            title += f"\nρ = {signed(row.overall)}"
            if not np.isnan(row.low):
                title += f", matched {signed(row.matched)}\n[{signed(row.low)}, {signed(row.high)}]"
        ax.set_title(title, color=COLORS[method], fontsize=6.5)
    for ax in axes[-1]:
        ax.set_xlabel(VALUES["score"])
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@figure
def repeatability(table):
    """Number of clusters, its spread over runs, and overlap of sizes between runs; means over strengths and layers."""
    if not len(table):
        return placeholder("no grid point has two runs to compare")
    names = {
        "num_clusters": "number of clusters",
        "spread": "its standard deviation\nover runs",
        "size_overlap": "overlap of sorted sizes\nbetween runs",
    }
    table = table.assign(condition=table["part"].map({"dummy": "untrained"} | SYMBOLS))
    conditions = [c for c in ("untrained", *SYMBOLS.values()) if (table["condition"] == c).any()]
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.4))
    for ax, (name, text) in zip(axes, names.items(), strict=True):
        for method, shift in zip(METHODS, np.linspace(-0.3, 0.3, len(METHODS)), strict=True):
            means = table[table["assoc"] == method].groupby("condition")[name].mean().reindex(conditions)
            ax.plot(
                np.arange(len(conditions)) + shift, means, label=label(method), **line_style(method) | {"linestyle": ""}
            )
        ax.set_xticks(range(len(conditions)), [c.replace(" ", "\n") for c in conditions])
        ax.set_ylabel(text)
    axes[2].set_ylim(None, 1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
