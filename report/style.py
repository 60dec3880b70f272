"""How figures look here, and the parts that they share.

Every figure's function takes tables of `experiments.Results` or `findings` and returns a matplotlib figure at the size
that a paper prints. A method has the same colour in every figure; upstream methods (forward_…) are solid lines with
filled markers, downstream ones (backward_…) dashed lines with open markers. Error bars are 95% intervals of means over
networks (Student's t).
"""

import functools
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython import display
from matplotlib.ticker import FixedLocator, MaxNLocator
from PIL import Image

from associations import DOWNSTREAM, FAMILIES, METHOD_TABLE, UPSTREAM
from report import findings
from report.experiments import GRID_POINT, NETWORK
from report.intervals import means_by
from study import grids

WIDTH = 7.2  # inches, across a page
COLORS = {method.name: method.color for method in METHOD_TABLE}
MARKERS = {method.name: method.marker for method in METHOD_TABLE}
REGULARIZERS = grids.REGULARIZERS
UNTRAINED, TRAINED = "0.6", "black"  # colours of conditions; those of regularizers are in their table
PER_ROW = 4  # panels, where each shows a method
VALUES = {
    "score": "modularity Q",
    "score_without_silent": "modularity Q without\nunits that never fire",
    "num_clusters": "number of clusters",
    "l1_norm": "L1 norm",
    "l2_norm": "L2 norm",
    "nuc_norm": "nuclear norm",
    "sparsity": "share of weights\nbelow 0.001",
    "z": "z of Q against\nshuffled matrices",
    "rotation_z": "z of Q against\nrotated matrices",
    "mean_specialization": "specialization, bits\n(lesions to the mean)",
    "zero_specialization": "specialization, bits\n(lesions to zero)",
    "mean_specialization_z": "z of specialization\n(lesions to the mean)",
    "zero_specialization_z": "z of specialization\n(lesions to zero)",
}
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.hinting": "none",  # hinted text has other widths at other resolutions, and the layout is found at one
    "figure.dpi": 95,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "figures",
}
BAND = "0.55"


class NothingToShow(Exception):
    """Why a figure cannot be drawn from the tables given; shown in its place."""


def figure(draw):
    """Makes a function draw in this project's style; the notebook shows what it returns, once."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            try:
                drawn = draw(*args, **kwargs)
            except NothingToShow as reason:
                drawn = _placeholder(str(reason))
            lay_out(drawn)
            plt.close(drawn)
        return drawn

    return styled


def lay_out(drawn):
    """Finds a figure's layout for good: saving and showing need not find it again.

    Ticks are kept after a first pass. How many of them fit follows from the layout, and the layout from how wide their
    labels are: left free, the two may go round for ever.
    """
    engine = drawn.get_layout_engine()
    engine.execute(drawn)
    for axis in (axis for ax in drawn.axes for axis in (ax.xaxis, ax.yaxis)):
        if isinstance(axis.get_major_locator(), MaxNLocator):
            axis.set_major_locator(FixedLocator(axis.get_majorticklocs()))
    engine.execute(drawn)
    drawn.set_layout_engine("none")


def save(drawn, name, folder=Path("figures")):
    """Writes a figure as <folder>/<name>.svg and .png; returns both paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("svg", "png")]
    with plt.rc_context(STYLE):
        drawn.savefig(paths[0], metadata={"Date": None})
        drawn.savefig(paths[1], metadata={"Software": None})
    return paths


def keep(drawn, name, folder=Path("figures")):
    """Saves a figure, and returns an image of it, so that a notebook shows what it keeps: in 256 colours of its own,
    which take less than half of the space and look the same."""
    save(drawn, name, folder)
    full, shown = io.BytesIO(), io.BytesIO()
    drawn.savefig(full, format="png", dpi=STYLE["figure.dpi"])
    Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(shown, "png", optimize=True)
    return display.Image(shown.getvalue())


def _placeholder(text):
    """A figure that says why there is none."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.5))
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center")
    return fig


def label(method):
    """A method's name in figures."""
    return str(method).replace("_", " ")


def line_style(method):
    """Colour, line and marker of a method; grey for one that `METHOD_TABLE` does not know."""
    color, dashed = COLORS.get(method, "0.4"), method in DOWNSTREAM
    return {
        "color": color,
        "linestyle": "--" if dashed else "-",
        "marker": MARKERS.get(method, "x"),
        "markerfacecolor": "white" if dashed else color,
    }


def by_family(methods):
    """{title: methods} of the families among some methods; further ones, such as combined matrices, come last."""
    found = {title: [m for m in methods if m in family] for title, family in FAMILIES.items()}
    found["others"] = [m for m in methods if m not in UPSTREAM + DOWNSTREAM]
    return {title: family for title, family in found.items() if family}


# ---- panels ---------------------------------------------------------------------------------------------------------


def regularizer_panels(table, models, rows=1, height=2.3, **options):
    """A figure with a column of panels for each regularizer of which a table has two strengths.

    Returns: the figure, its axes (rows, columns), and (regularizer, its axes, its rows of the table, place) a column;
        `place` maps strengths to x. Strengths that are too much are hatched.
    """
    names = findings.present_regularizers(table)
    if not names:
        raise NothingToShow("No regularizer has two strengths in these tables.")
    options = {"sharey": "row", "sharex": "col", "squeeze": False, "figsize": (WIDTH, height)} | options
    fig, axes = plt.subplots(rows, len(names), **options)
    failed = findings.failures(models)
    columns = []
    for name, column in zip(names, axes.T, strict=True):
        shown = findings.along(table, name)
        for ax in column:
            place = strength_axis(ax, name, shown["strength"])
            too_much_shade(ax, failed, name, place)
            ax.label_outer()
        columns.append((name, column, shown, place))
    return fig, axes, columns


def method_panels(methods, height, xlabel="", ylabel=""):
    """A figure with a panel for each of some methods, each family in rows of its own: the figure and {method: axes}."""
    if not methods:
        raise NothingToShow("No method was evaluated.")
    rows = [family[i : i + PER_ROW] for family in by_family(methods).values() for i in range(0, len(family), PER_ROW)]
    size = WIDTH, height * (len(rows) + 0.2) / 2.2
    columns = max(map(len, rows))
    fig, grid = plt.subplots(len(rows), columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    panels = {}
    for i, row in enumerate(rows):
        for j, ax in enumerate(grid[i]):
            if j >= len(row):
                ax.remove()
                continue
            lowest = all(len(below) <= j for below in rows[i + 1 :])
            ax.xaxis.set_tick_params(labelbottom=lowest)
            ax.set_xlabel(xlabel if lowest else "")
            ax.set_ylabel(ylabel if j == 0 else "")
            ax.set_title(label(row[j]), color=COLORS.get(row[j], "black"))
            panels[row[j]] = ax
    return fig, panels


def heat_map(ax, values, low, high, cmap, size):
    """A matrix in colours with its numbers; returns the image."""
    image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high)
    for i, j in np.ndindex(values.shape):
        value = values.iloc[i, j]
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = f"{value:.2f}".replace("0.", ".", 1)
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    return image


# ---- axes -----------------------------------------------------------------------------------------------------------


def strength_axis(ax, regularizer, strengths):
    """The x axis of a regularizer; a logarithmic one has a place for zero at its left end.

    Returns: the function that maps strengths to x.
    """
    ax.set_xlabel(REGULARIZERS[regularizer].label)
    strengths = np.sort(np.unique(strengths))
    positive = strengths[strengths > 0]
    if not logarithmic(regularizer) or not len(positive):
        return np.asarray
    zero = positive[0] / (10**0.75)
    ax.set_xscale("log")
    if len(positive) < len(strengths):
        powers = 10.0 ** np.arange(np.ceil(np.log10(positive[0]) - 1e-9), np.log10(positive[-1]) + 1e-9)
        ax.set_xticks([zero, *powers], ["0", *(f"$10^{{{np.log10(p):.0f}}}$" for p in powers)])
        ax.minorticks_off()
    return lambda x: np.where(np.asarray(x) > 0, x, zero)


def logarithmic(regularizer):
    """Whether a regularizer's axis is."""
    return REGULARIZERS[regularizer].scale == "log"


def beside(place, regularizer, shift):
    """The same places, moved sideways by a hair's breadth times `shift`, so that equal values stay visible."""
    if logarithmic(regularizer):
        return lambda x: place(x) * 10 ** (0.03 * shift)
    return lambda x: place(x) + 0.004 * shift


def untrained_band(ax, values, color=BAND, sigmas=(3, 2, 1)):
    """Shades mean ± so many standard deviations of untrained networks; several bands in a panel have 1 each."""
    values = values.dropna()
    if len(values):
        ax.axhline(values.mean(), color=color, linewidth=0.5, zorder=0)
    for k in sigmas if len(values) > 1 else ():
        spread = k * values.std()
        ax.axhspan(values.mean() - spread, values.mean() + spread, color=color, alpha=0.18, linewidth=0, zorder=0)


def too_much_shade(ax, failures, regularizer, place):
    """Hatches the strengths at which over half of the runs fail to learn."""
    rows = failures[failures["regularizer"] == regularizer]
    if not rows["too_much"].any():
        return
    x = np.sort(place(rows["strength"]))
    first = place(rows.loc[rows["too_much"], "strength"]).min()
    before = x[x < first].max() if (x < first).any() else first
    left = np.sqrt(first * before) if logarithmic(regularizer) else (first + before) / 2
    ax.axvspan(
        left,
        x.max() * (1.5 if logarithmic(regularizer) else 1.03),
        facecolor="none",
        edgecolor="0.75",
        hatch="////",
        linewidth=0,
        zorder=0,
    )


def crop(ax, table, value, by):
    """Ends the y axis half the range of the means in a table and 0 beyond it, on either side: the z of a failed network
    may be in the hundreds, and the interval of two networks anywhere. Where no value is negative, nor is the axis."""
    table = table.dropna(subset=value)
    means = means_by(table, [*GRID_POINT, *by], value)["mean"]
    low, high = min(means.min(), 0), max(means.max(), 0)
    if high > low:
        bottom, top = ax.get_ylim()
        lowest = 1.5 * low - 0.5 * high if table[value].min() < 0 else -0.05 * high  # room for the markers of zeros
        ax.set_ylim(max(bottom, lowest), min(top, 1.5 * high - 0.5 * low))


def curve(ax, place, table, value, by="strength", **style):
    """Draws the means of a column at each strength (or other column), with their intervals."""
    means = means_by(table.dropna(subset=value), [by], value)
    ax.errorbar(place(means[by]), means["mean"], yerr=bars(means, "mean", "low", "high"), elinewidth=0.7, **style)


def bars(rows, value, low, high):
    """Lengths of error bars below and above the values of a table, (2, n); 0 where there is no interval."""
    return np.nan_to_num(np.abs(rows[[low, high]].to_numpy().T - rows[value].to_numpy()))


def sizes(table, by="strength"):
    """How many networks a curve has at each strength."""
    return table.drop_duplicates([*NETWORK, by]).groupby(by).size()


def in_range(sizes):
    """Numbers of networks in words: one number, or from the least to the most.

    >>> in_range([9, 9]), in_range([9, 8]), in_range([])
    ('n = 9', 'n = 8–9', 'n = 0')
    """
    low, high = min(sizes, default=0), max(sizes, default=0)
    return f"n = {low}" if low == high else f"n = {low}–{high}"


def caption(fig, table, regularizer=None, band="Grey: mean ± 1, 2, 3 σ"):
    """Says below a figure what its bars, bands and n are."""
    shown = [regularizer] if regularizer else findings.present_regularizers(table)
    n = in_range([n for name in shown for n in sizes(findings.along(table, name))])
    null = findings.untrained(table).drop_duplicates("run")
    note(
        fig,
        f"Bars: 95% intervals over networks ({n} a point). {band} of untrained networks (n = {len(null)}). "
        "Hatched: over half of the runs fail to learn.",
    )


def note(fig, text):
    """A line below a figure."""
    fig.supxlabel(text, fontsize=6, color="0.35")
