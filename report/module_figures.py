"""The study's figures about modules: Q and cluster counts against regularization and depth, and by chance."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from associations import DOWNSTREAM
from report import findings
from report.style import (
    REGULARIZERS,
    TRAINED,
    UNTRAINED,
    VALUES,
    WIDTH,
    NothingToShow,
    beside,
    by_family,
    caption,
    crop,
    curve,
    figure,
    in_range,
    label,
    line_style,
    method_panels,
    note,
    regularizer_panels,
    sizes,
    strength_axis,
    too_much_shade,
    untrained_band,
)
from report.text import setting
from study import grids

ONE_SIGMA = "Shaded in their colours: mean ± σ"


@figure
def modules_vs_regularization(results, value="score"):
    """Q (or another column) of all methods against each regularizer, mean over layers; upstream above.

    Each curve has the band of the same method's mean over layers in untrained networks.
    """
    modules = findings.per_network(results.modules, [value])
    null = findings.untrained(modules)
    families = by_family(findings.present_methods(modules.dropna(subset=value)))
    if not families:
        raise NothingToShow(f"No values of {value} in these tables.")
    height = 1.9 * len(families)
    fig, axes, columns = regularizer_panels(modules, results.models, len(families), height, sharey=True)
    for (title, family), row in zip(families.items(), axes, strict=True):
        for (regularizer, _, rows, place), ax in zip(columns, row, strict=True):
            for i, method in enumerate(family):
                at = beside(place, regularizer, i - (len(family) - 1) / 2)
                style = line_style(method)
                curve(ax, at, rows[rows["assoc"] == method], value, label=label(method), **style)
                untrained_band(ax, null.loc[null["assoc"] == method, value], style["color"], sigmas=(1,))
        row[0].set_ylabel(VALUES[value])
        row[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), title=title, handlelength=3)
    crop(axes[0, 0], findings.usable(modules, results.models), value, ["assoc"])
    caption(fig, modules, band=ONE_SIGMA)
    return fig


@figure
def modules_by_layer(results, regularizer, value="score", authors=None):
    """Q (or another column) of each method against one regularizer: a line and an untrained networks' band per layer.

    Args: authors: a table of modules by the study's original program, drawn as stars where its hyperparameters fit.
    """
    rows = findings.along(results.modules, regularizer)
    layers = sorted(rows["layer"].unique())
    null, failed = findings.untrained(results.modules), findings.failures(results.models)
    methods = findings.present_methods(rows.dropna(subset=value))
    fig, panels = method_panels(methods, 3.6, REGULARIZERS[regularizer].label, VALUES[value])
    starred = False
    for method, ax in panels.items():
        xlabel = ax.get_xlabel()
        place = strength_axis(ax, regularizer, rows["strength"])
        ax.set_xlabel(xlabel)
        for layer, style in zip(layers, layer_styles(method, len(layers)), strict=True):
            here = (rows["assoc"] == method) & (rows["layer"] == layer)
            curve(ax, place, rows[here], value, **style)
            band = null.loc[(null["assoc"] == method) & (null["layer"] == layer), value]
            untrained_band(ax, band, style["color"], sigmas=(1,))
            for q in authors_values(authors, results, method, layer, value):
                at = place(grids.L2_ALONE if regularizer == "l2" else 0.0)
                edge = {"markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.5, "zorder": 5}
                ax.plot(at, q, "*", color=style["color"], **edge)
                starred = True
        too_much_shade(ax, failed, regularizer, place)
    legend_of_layers(fig, layers, starred)
    crop(ax, findings.usable(rows, results.models), value, ["assoc", "layer"])
    caption(fig, results.modules, regularizer, ONE_SIGMA)
    return fig


def authors_values(authors, results, method, layer, value):
    """The original program's values for one method and layer, if it was run on this experiment's data set."""
    if authors is None or not len(authors) or not set(authors["dataset"]) & set(results.models["dataset"]):
        return []
    return authors.loc[(authors["assoc"] == method) & (authors["layer"] == layer), value].dropna()


def layer_markers(n):
    """How pale and with which marker each of n layers is drawn: darker with depth."""
    return [(0.6 * (1 - i / max(1, n - 1)), "os^DvP"[i % 6]) for i in range(n)]


def layer_styles(method, n):
    """Colour and line of a method's layers."""
    style = line_style(method)
    rgb = np.array(to_rgb(style["color"]))
    for pale, marker in layer_markers(n):
        color = tuple(rgb + (1 - rgb) * pale)
        face = "white" if method in DOWNSTREAM else color
        yield style | {"color": color, "marker": marker, "markersize": 3, "markerfacecolor": face}


def legend_of_layers(fig, layers, authors=False):
    """Says which marker is which layer, to the right of the panels."""
    handles = [
        Line2D([], [], color=str(pale), marker=marker, markersize=3, label=f"layer {layer}")
        for layer, (pale, marker) in zip(layers, layer_markers(len(layers)), strict=True)
    ]
    if authors:
        handles.append(Line2D([], [], color="black", marker="*", linestyle="", label="original\nprogram"))
    fig.legend(handles=handles, loc="outside right center")


@figure
def modules_vs_depth(results, value="score"):
    """Q (or another column) of each method against depth: untrained, hardly regularized, and strongly regularized."""
    conditions = depth_conditions(results)
    methods = findings.present_methods(results.modules.dropna(subset=value))
    fig, panels = method_panels(methods, 3.4, "hidden layer", VALUES[value])
    shifts = np.linspace(-0.08, 0.08, len(conditions))
    for method, ax in panels.items():
        for (name, (rows, style)), shift in zip(conditions.items(), shifts, strict=True):
            rows = rows[rows["assoc"] == method]
            title = f"{name} ({in_range(sizes(rows, 'layer'))})"
            curve(ax, lambda x, shift=shift: np.asarray(x) + shift, rows, value, by="layer", label=title, **style)
        ax.set_xticks(sorted(results.modules["layer"].unique()))
        ax.margins(x=0.12)
    crop(ax, pd.concat([rows for rows, _ in conditions.values()]), value, ["assoc", "layer"])
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3)
    return fig


def depth_conditions(results):
    """{title: (rows, style)} of untrained, hardly regularized, and (usably) most regularized networks."""
    modules = findings.usable(results.modules, results.models)
    base = findings.along(modules, "drop")
    conditions = {
        "untrained": (findings.untrained(modules), {"color": UNTRAINED, "linestyle": "-", "marker": "x"}),
        setting("l2", grids.L2_ALONE): (
            base[base["strength"] == 0],
            {"color": TRAINED, "linestyle": "-", "marker": "o"},
        ),
    }
    for i, name in enumerate(findings.present_regularizers(modules)):
        rows = findings.along(modules, name)
        top = rows["strength"].max()
        style = {"color": REGULARIZERS[name].color, "linestyle": ("--", ":", "-.")[i % 3], "markerfacecolor": "white"}
        conditions[setting(name, top)] = rows[rows["strength"] == top], style | {"marker": REGULARIZERS[name].marker}
    return {name: condition for name, condition in conditions.items() if len(condition[0])}


@figure
def null_distributions(results):
    """Q and number of clusters per method, layers pooled: untrained networks (boxes), hardly regularized ones (points).

    Bars: Q of matrices shuffled with their units' strengths kept.
    """
    methods = findings.present_methods(results.modules)
    if not methods:
        raise NothingToShow("No method was evaluated.")
    null = findings.untrained(results.modules)
    base = findings.along(results.modules, "drop").query("strength == 0")
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.8), sharex=True)
    random = np.random.default_rng(0)
    for ax, value in zip(axes, ("score", "num_clusters"), strict=True):
        for i, method in enumerate(methods):
            untrained, trained = (t[t["assoc"] == method] for t in (null, base))
            thin = {"linewidth": 0.6}
            ax.boxplot(
                untrained[value].dropna(),
                positions=[i - 0.2],
                widths=0.3,
                patch_artist=True,
                boxprops=thin | {"facecolor": "0.85"},
                medianprops={"color": "black"},
                flierprops={"markersize": 1.5},
                whiskerprops=thin,
                capprops=thin,
            )
            x = i + 0.2 + random.uniform(-0.1, 0.1, len(trained))
            ax.plot(x, trained[value], **line_style(method) | {"linestyle": "", "markersize": 3})
            if value == "score":
                for rows, at in ((untrained, i - 0.2), (trained, i + 0.2)):
                    ax.plot([at - 0.17, at + 0.17], [rows["null_mean"].mean()] * 2, color="black", linewidth=1.4)
        ax.set_ylabel(VALUES[value])
    axes[1].set_xticks(range(len(methods)), [label(m).replace(" ", "\n", 1) for m in methods])
    n = [t.drop_duplicates("run").shape[0] for t in (null, base)]
    note(
        fig,
        f"Boxes: layers of untrained networks (n = {n[0]}). Points: layers of networks with L2 = 1e-5 "
        f"(n = {n[1]}). Black bars: mean Q of shuffled matrices.",
    )
    return fig
