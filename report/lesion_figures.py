"""The study's figures of lesions: how specialized modules are, and which classes each of them serves."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import CenteredNorm

from report import findings, lesion_findings, module_figures
from report.lesion_findings import KINDS
from report.style import (
    COLORS,
    PER_ROW,
    REGULARIZERS,
    TRAINED,
    UNTRAINED,
    WIDTH,
    NothingToShow,
    by_family,
    caption,
    crop,
    curve,
    figure,
    in_range,
    label,
    note,
    regularizer_panels,
    untrained_band,
)
from report.text import setting

CHANCE = {"color": "0.2", "linewidth": 0.6, "linestyle": ":", "zorder": 0}
EFFECTS = (
    "Red: a lesion of the cluster raises the class's loss; blue: it lowers it; each panel to its own largest effect."
)
PAIR = ("forward_jac", "backward_jac")  # an upstream and a downstream method


def lesioned(results):
    """The results with lesions' values in place of modules'; NothingToShow if there are none."""
    if not len(results.lesions):
        raise NothingToShow("No lesions in these tables: eval.py makes them unless told to skip them.")
    return lesion_findings.as_modules(results)


@figure
def specialization_vs_regularization(results, kind="mean"):
    """z of specialization of all methods against each regularizer, mean over layers."""
    return module_figures.modules_vs_regularization.__wrapped__(lesioned(results), lesion_findings.z_of(kind))


@figure
def specialization_by_layer(results, regularizer, kind="mean"):
    """z of specialization of each method against one regularizer, a line a layer."""
    return module_figures.modules_by_layer.__wrapped__(lesioned(results), regularizer, lesion_findings.z_of(kind))


@figure
def family_differences(results):
    """z of specialization upstream less downstream, within each network: a row per kind of lesion, a line a layer."""
    lesioned(results)
    pairs = {kind: lesion_findings.network_differences(results, kind) for kind in KINDS}
    models, layers = results.models, sorted(results.lesions["layer"].unique())
    fig, axes, columns = regularizer_panels(pairs["mean"], models, len(KINDS), 1.9 * len(KINDS))
    markers = module_figures.layer_markers(len(layers))
    for (kind, table), row in zip(pairs.items(), axes, strict=True):
        for (regularizer, _, _, place), ax in zip(columns, row, strict=True):
            ax.axhline(0, **CHANCE)
            rows = findings.along(table, regularizer)
            for layer, (pale, marker) in zip(layers, markers, strict=True):
                color = str(pale)
                style = {"color": color, "marker": marker, "label": f"layer {layer}"}
                curve(ax, place, rows[rows["layer"] == layer], "difference", **style)
                null = findings.untrained(table)
                untrained_band(ax, null.loc[null["layer"] == layer, "difference"], color, sigmas=(1,))
        row[0].set_ylabel(f"upstream − downstream\nz, {KINDS[kind]}")
        crop(row[0], findings.usable(table, models), "difference", ["layer"])
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption(fig, pairs["mean"], band="Shaded: mean ± σ")
    return fig


@figure
def conditions(results, kind="mean"):
    """z of specialization of each method in untrained and in all trained networks, a panel a layer."""
    lesioned(results)
    value = lesion_findings.z_of(kind)
    table = lesion_findings.by_condition(results, value)
    layers, methods = sorted(table["layer"].unique()), findings.present_methods(table)
    fig, axes = plt.subplots(1, len(layers), figsize=(WIDTH, 0.22 * len(methods) + 0.8), sharey=True, squeeze=False)
    for layer, ax in zip(layers, axes[0], strict=True):
        ax.axvline(0, **CHANCE)
        for condition, color, shift in (("untrained", UNTRAINED, 0.12), ("trained", TRAINED, -0.12)):
            rows = table[(table["layer"] == layer) & (table["condition"] == condition)].set_index("assoc")
            for i, method in enumerate(m for m in methods if m in rows.index):
                row = rows.loc[method]
                ends = np.nan_to_num(np.abs([[row[f"{value}_low"]], [row[f"{value}_high"]]] - row[value]))
                ax.errorbar(
                    row[value],
                    methods.index(method) + shift,
                    xerr=ends,
                    fmt="o",
                    color=color,
                    label=f"{condition} ({in_range(rows['n'])})" if i == 0 else None,
                )
        ax.set(title=f"layer {layer}", xlabel="z")
    axes[0, 0].set_yticks(range(len(methods)), [label(method) for method in methods])
    for tick, method in zip(axes[0, 0].get_yticklabels(), methods, strict=True):
        tick.set_color(COLORS.get(method, "black"))
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    note(fig, f"z of specialization, {KINDS[kind]}. Bars: 95% intervals over networks. Dotted: shuffled clusterings.")
    return fig


# ---- effects --------------------------------------------------------------------------------------------------------


def effect_matrix(ax, effects, classes):
    """Effects of lesions, clusters × classes, red where they hurt; relative to the largest."""
    largest = np.abs(effects).max() if effects.size else 0
    ax.imshow(effects, cmap="RdBu_r", norm=CenteredNorm(0, largest or 1), aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(classes)), [f"{k:g}" for k in classes])
    ax.set_yticks(range(len(effects)), range(1, len(effects) + 1))
    ax.tick_params(length=0)


def drawable(table):
    """The rows that have effects of at least one cluster; NothingToShow if there are none."""
    known = [isinstance(effects, np.ndarray) and len(effects) > 0 for effects in table.get("mean_effects", [])]
    if not any(known):
        raise NothingToShow("No lesions in these tables: they need checkpoints evaluated with lesions.")
    return table[known]


@figure
def effects_of_methods(table):
    """What a lesion of each cluster does to each class, for all methods of one layer of one network.

    Args: table: rows with assoc and analysis.EFFECT_FIELDS, one a method.
    """
    table = drawable(table)
    rows = {row.assoc: row for row in table.itertuples()}
    lines = [
        family[i : i + PER_ROW]
        for family in by_family(findings.present_methods(table)).values()
        for i in range(0, len(family), PER_ROW)
    ]
    columns = max(map(len, lines))
    fig, axes = plt.subplots(2 * len(lines), columns, figsize=(WIDTH, 2.5 * len(lines) + 0.3), squeeze=False)
    for pair, names in zip(axes.reshape(len(lines), 2, columns), lines, strict=True):
        for ax in pair[:, len(names) :].flat:
            ax.remove()
        for column, name in enumerate(names):
            row = rows[name]
            for ax, kind in zip(pair[:, column], KINDS, strict=True):
                effect_matrix(ax, getattr(row, f"{kind}_effects"), row.classes)
                name_of = f"{label(name)}: " if kind == "mean" else ""
                bits = getattr(row, f"{kind}_specialization")
                ax.set_title(f"{name_of}{bits:.2f} bits", color=COLORS.get(name))
            pair[1, column].set_xlabel("class")
        for ax, title in zip(pair[:, 0], KINDS.values(), strict=True):
            ax.set_ylabel(f"{title}\ncluster")
    note(fig, EFFECTS)
    return fig


@figure
def effects_side_by_side(examples, methods=PAIR, kind="mean"):
    """Which classes modules serve: effects by clusters of an upstream and of a downstream method, side by side.

    A row per network (a hardly regularized one, and one with the most dropout), a pair of panels per layer.

    Args: examples: `experiments.Results.examples`.
    """
    examples = drawable(examples)
    chosen = [examples[examples["part"] == "l2"], examples[examples["part"] == "drop"]]
    chosen[1] = chosen[1][chosen[1]["drop"] == chosen[1]["drop"].max()]
    networks = [network for network in chosen if len(network)]
    if not networks:
        raise NothingToShow("No trained network among the examples.")
    layers = sorted({0, examples["layer"].max()})
    panels = [(layer, method) for layer in layers for method in methods]
    fig, axes = plt.subplots(len(networks), len(panels), figsize=(WIDTH, 1.7 * len(networks)), squeeze=False)
    for network, line in zip(networks, axes, strict=True):
        for (layer, method), ax in zip(panels, line, strict=True):
            found = network[(network["assoc"] == method) & (network["layer"] == layer)]
            if not len(found):
                ax.axis("off")
                continue
            row = found.iloc[0]
            effect_matrix(ax, row[f"{kind}_effects"], row["classes"])
            title = f"layer {layer}, {label(method)}: {row[f'{kind}_specialization']:.2f} bits"
            ax.set_title(title, color=COLORS.get(method), fontsize=6.5)
        line[0].set_ylabel(f"{in_words(network.iloc[0])}\ncluster")
    for ax in axes[-1]:
        ax.set_xlabel("class")
    note(fig, f"{KINDS[kind].capitalize()}. {EFFECTS}")
    return fig


def in_words(row):
    """A network's regularization."""
    if row["part"] == "drop":
        return setting("drop", row["drop"])
    return setting("l2", row["l2"]) if row["l2"] else f"no {REGULARIZERS['l2'].label}"
